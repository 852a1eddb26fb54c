"""Halo attention in plain PyTorch: the specification that every kernel is measured against."""

import torch
import torch.nn.functional as F

from parhelion.ops.halo.contract import Window, table_widths
from parhelion.shapes import Float, Tensor


def halo_attention_reference(
    q: Float[Tensor, "b qh qw n d"],
    k: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    tables: tuple[Tensor, Tensor] | None,
    window: Window,
) -> Float[Tensor, "b qh qw n e"]:
    """Gather every window, then attend. Letters: block and head z, query (i, j) in it, key (a, c) in its window.

    Sizes are never compared, not even with 1, so that torch.export makes one program for all of them.
    """
    block, halo, side, queries = window.block, window.halo, window.geometry.side, window.geometry.queries
    blocks = ((k.shape[1] - 1) // block + 1, (k.shape[2] - 1) // block + 1)
    tiles = _squares(q * window.scale, blocks, queries, step=queries)
    keys, values = (_squares(x, blocks, side, step=block, before=halo) for x in (k, v))
    logits = torch.einsum("zijd,zacd->zijac", tiles, keys)
    if tables is not None:
        logits = logits + _relative_logits(tiles, tables, window)
    if window.border == "masked":
        seen = _squares(torch.ones_like(k[..., :1]), blocks, side, step=block, before=halo)
        logits = logits.masked_fill(seen.view(-1, 1, 1, side, side) == 0, float("-inf"))
    weights = logits.flatten(-2).softmax(dim=-1).view_as(logits).to(v.dtype)
    return _map(torch.einsum("zijac,zace->zije", weights, values), blocks, q.shape[:4]).to(v.dtype)


def _squares(
    x: Float[Tensor, "b h w n d"], blocks: tuple[int, int], side: int, *, step: int, before: int = 0
) -> Float[Tensor, "z a c d"]:
    """A square of side x side pixels for every block and head, from `before` pixels on; zeros outside the image."""
    after = side - 1 - before
    x = F.pad(x, (0, 0, 0, 0, before, after, before, after))
    _, _, w, heads, _ = x.shape
    # In one axis, which is never 1 pixel long: (block head a c). No remainder of a size, which ONNX does not take.
    count = torch.arange(blocks[0] * blocks[1] * heads * side * side, device=x.device)
    block, head = count // (heads * side * side), count // (side * side) % heads
    block_row = block // blocks[1]
    row = block_row * step + count // side % side
    col = (block - block_row * blocks[1]) * step + count % side
    pixels = x.flatten(1, 3).index_select(1, (row * w + col) * heads + head)
    return pixels.flatten(0, 1).unflatten(0, (-1, side, side))


def _map(x: Float[Tensor, "z i j e"], blocks: tuple[int, int], size: tuple[int, ...]) -> Float[Tensor, "b h w n e"]:
    """The blocks side by side, cut to `size`: images, rows, columns and heads."""
    batch, h, w, heads = size
    side = x.shape[1]
    count = torch.arange(h * w * heads, device=x.device)
    row, head = count // (w * heads), count % heads
    col = count // heads - row * w
    block = row // side * blocks[1] + col // side
    place = ((block * heads + head) * side + row % side) * side + col % side
    pixels = x.reshape(batch, blocks[0] * blocks[1] * heads * side * side, x.shape[3])
    # In two steps, whose sizes torch.export sees to fit.
    return pixels.index_select(1, place).unflatten(1, (h * w, heads)).unflatten(1, (h, w))


def _relative_logits(
    q: Float[Tensor, "z i j d"], tables: tuple[Tensor, Tensor], window: Window
) -> Float[Tensor, "z i j a c"]:
    """Each axis reads its own table at the offset key - step * query, whose lowest value is row 0."""
    geometry = window.geometry
    queries = torch.arange(geometry.queries, device=q.device) * geometry.step
    keys = torch.arange(geometry.side, device=q.device)
    rows = keys - queries[:, None] + (window.block - 1)
    embeddings_h, embeddings_w = (table.to(q.dtype)[rows] for table in tables)
    split = table_widths(q.shape[-1], window.relative)
    q_h, q_w = q.split(split, dim=-1) if window.relative == "halves" else (q, q)
    logits_h = torch.einsum("zijd,iad->zija", q_h, embeddings_h)
    logits_w = torch.einsum("zijd,jcd->zijc", q_w, embeddings_w)
    return logits_h[..., :, None] + logits_w[..., None, :]
