"""The public function of content attention: contract, checks, choice of implementation."""

from parhelion.ops.content.contract import check_maps
from parhelion.ops.content.cpu import content_attention_cpu, why_not_cpu
from parhelion.ops.content.reference import content_attention_reference
from parhelion.ops.content.triton import content_attention_triton, why_not_triton
from parhelion.ops.implementation import Implementation, chosen
from parhelion.ops.recording import told
from parhelion.shapes import Float, Tensor


def content_attention(
    q: Float[Tensor, "b h w n d"],
    k: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    *,
    normalize_queries: bool = False,
    impl: Implementation = "auto",
) -> Float[Tensor, "b h w n e"]:
    """Let every pixel read one summary of the whole image: `q · (softmax over pixels of k)ᵀ v`.

    The softmax runs over all pixels, separately for each key channel and once for all queries (arXiv 2010.03019,
    Fig. 1). No position enters: permuting pixels permutes the result. Cost: 2 d e multiply-adds per pixel and
    head; linear in pixels. There is no 1/sqrt(d).

    Args:
        q: Queries.
        k: Keys.
        v: Values; their width e may differ from d.
        normalize_queries: Put a softmax over the d channels of each query. That confines every output to a mean of
            the d summaries; the figure shows none, so the default leaves queries as they are.
        impl: "auto" chooses the fastest implementation that can run, "reference" is plain PyTorch, "cpu" compiled code
            for float32 and bfloat16, "triton" kernels for GPUs, float16 included (`why_not_cpu` and `why_not_triton`
            tell when they cannot run).

    Returns:
        One value per pixel, in the dtype of v. Float64, float32, bfloat16 and float16, on any device, contiguous
        or not.

    Raises:
        ValueError: shapes that do not fit together, an unknown `impl`, or one that cannot run.
    """
    check_maps(q, k, v)
    run = {"cpu": content_attention_cpu, "triton": content_attention_triton, "reference": content_attention_reference}
    name = chosen(impl, why_not_cpu=why_not_cpu(q, k, v), why_not_triton=why_not_triton(q, k, v))
    out = run[name](q, k, v, normalize_queries=normalize_queries)
    return told("content_attention", out, q=q, k=k, v=v, normalize_queries=normalize_queries)
