"""The public function of halo attention: contract, checks, choice of implementation."""

from parhelion.ops.halo.contract import (
    Border,
    Offsets,
    Relative,
    Window,
    check_maps,
    check_tables,
    check_window,
    table_rows,
    table_widths,
)
from parhelion.ops.halo.cpu import halo_attention_cpu, why_not_cpu
from parhelion.ops.halo.reference import halo_attention_reference
from parhelion.ops.halo.triton import halo_attention_triton, why_not_triton
from parhelion.ops.implementation import Implementation, chosen
from parhelion.ops.recording import told
from parhelion.shapes import Float, Tensor


def halo_attention(  # noqa: PLR0913  every argument is a choice that the paper names or leaves open
    q: Float[Tensor, "b qh qw n d"],
    k: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    table_h: Float[Tensor, "rows dh"] | None = None,
    table_w: Float[Tensor, "rows dw"] | None = None,
    *,
    block: int,
    halo: int,
    stride: int = 1,
    border: Border = "zero",
    scale: float = 1.0,
    relative: Relative = "halves",
    offsets: Offsets = "pixels",
    impl: Implementation = "auto",
) -> Float[Tensor, "b qh qw n e"]:
    """Let every pixel attend to the window of its block: the block and `halo` pixels round it.

    The image is cut into tiles of `block` x `block` pixels. All queries of a tile share one window of
    (block + 2 halo)² keys, and `softmax(scale * (q·k + q·r))` over the whole window weighs the values
    (arXiv 2103.12731). No mask centres the window on its pixel, so the operation commutes with shifts
    by whole blocks only. Cost: (block + 2 halo)² (d + e) multiply-adds per query and head; linear in pixels.

    Args:
        q: Queries. With `stride` s they stand at pixels 0, s, 2s, ... of each axis: qh = ceil(h / s).
        k: Keys, on every pixel. Any h and w.
        v: Values, on every pixel; their width e may differ from d.
        table_h: One embedding per vertical offset, key minus query, from -(block-1)-halo to (block-1)+halo, so
            2 block + 2 halo - 1 rows, shared by the heads. Cast to the dtype of q. None: content only.
        table_w: The same for horizontal offsets.
        block: Side of a tile in pixels of k.
        halo: Pixels that the window reaches beyond the tile on every side. 0 gives plain windows; a block as
            large as the map gives global attention.
        stride: Keeps every s-th query and the whole window; must divide `block`. The paper does not say
            which pixel of each s x s; we keep the top-left one, as strided convolutions do.
        border: What lies outside the image, be it halo or rounding up to whole blocks. "zero": keys and values
            of zero, which still have a relative logit and take softmax mass. "masked": no keys at all. The paper says
            only "with padding at boundaries"; we read it as zeros.
        scale: Factor on the logits. The paper writes none, so 1.0; pass d ** -0.5 for the usual one.
        relative: "halves": the first d // 2 channels of q meet `table_h`, the others `table_w` (the paper).
            "summed": all d channels meet both tables (timm).
        offsets: What a strided query counts its offsets from. "pixels": its own pixel, so that they are true.
            "queries": its index among the queries of the block, as timm does; the same without a stride.
        impl: "auto" chooses the fastest implementation that can run, "reference" is plain PyTorch, "cpu" compiled code
            for float32 and bfloat16, "triton" kernels for GPUs, float16 included (`why_not_cpu` and `why_not_triton`
            tell when they cannot run).

    Returns:
        One value per query, in the dtype of v. Float64, float32, bfloat16 and float16, on any device, contiguous
        or not.

    Raises:
        ValueError: shapes that do not fit together, an unknown choice, or an implementation that cannot run; the
            sentence says which and why.
    """
    window = Window(block, halo, stride, border, scale, relative, offsets)
    check_window(window)
    check_maps(q, k, v, stride)
    check_tables(table_h, table_w, table_rows(block, halo), table_widths(q.shape[-1], relative))
    tables = None if table_h is None or table_w is None else (table_h, table_w)
    run = {"cpu": halo_attention_cpu, "triton": halo_attention_triton, "reference": halo_attention_reference}
    name = chosen(impl, why_not_cpu=why_not_cpu(q, k, v), why_not_triton=why_not_triton(q, k, v, tables, window))
    out = run[name](q, k, v, tables, window)
    return told("halo_attention", out, q=q, k=k, v=v, tables=tables, window=window)
