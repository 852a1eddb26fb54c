"""The public function of axial attention: contract, checks, choice of implementation."""

from parhelion.ops.axial.contract import Axis, check_axis, check_maps, check_plus
from parhelion.ops.axial.cpu import axial_attention_cpu, why_not_cpu
from parhelion.ops.axial.reference import axial_attention_reference
from parhelion.ops.axial.triton import axial_attention_triton, why_not_triton
from parhelion.ops.implementation import Implementation, chosen
from parhelion.ops.recording import told
from parhelion.shapes import Float, Tensor


def axial_attention(
    q: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    table: Float[Tensor, "offsets d"],
    *,
    axis: Axis,
    plus: Float[Tensor, "b h w n e"] | None = None,
    impl: Implementation = "auto",
) -> Float[Tensor, "b h w n e"]:
    """Let every pixel attend to its own column or row by relative position: `sum_i (q_y · table[i - y]) v_i`.

    The embeddings act as keys; there is no softmax and no scale (arXiv 2010.03019, Fig. 1, which shows neither).
    Cost: (d + e) multiply-adds per pixel, head and pixel of the axis.

    Args:
        q: Queries.
        v: Values; their width e may differ from d.
        table: One embedding per offset, key minus query, shared by the heads. The middle row is offset 0. At least
            2 L - 1 rows for an axis L pixels long, an odd number; of a longer table the middle rows are used. Cast to
            the dtype of q.
        axis: "h" attends along columns (over rows i of the same column), "w" along rows.
        plus: Added to the result, which saves a pass over the maps where a kernel runs; in the dtype of v.
        impl: "auto" chooses the fastest implementation that can run, "reference" is plain PyTorch, "cpu" compiled code
            for float32 and bfloat16, "triton" kernels for GPUs, float16 included (`why_not_cpu` and `why_not_triton`
            tell when they cannot run).

    Returns:
        One value per pixel, in the dtype of v. Float64, float32, bfloat16 and float16, on any device, contiguous
        or not.

    Raises:
        ValueError: shapes that do not fit together, a table too short for the axis, an unknown choice, or an
            implementation that cannot run.
    """
    check_axis(axis)
    check_maps(q, v, table, axis)
    check_plus(plus, v)
    name = chosen(impl, why_not_cpu=why_not_cpu(q, v, plus), why_not_triton=why_not_triton(q, v, plus))
    if name == "reference":
        out = axial_attention_reference(q, v, table, axis=axis)
        out = out if plus is None else out + plus
    else:
        run = {"cpu": axial_attention_cpu, "triton": axial_attention_triton}
        out = run[name](q, v, table, plus, axis=axis)
    return told("axial_attention", out, q=q, v=v, table=table, axis=axis, plus=plus)
