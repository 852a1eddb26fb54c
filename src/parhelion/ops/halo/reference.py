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
    """Gather every window, then attend. Letters: block (y, x), query (i, j) in it, key (a, c) in its window."""
    block, halo = window.block, window.halo
    tiles = _blocks(q * window.scale, window.queries)
    logits = torch.einsum("byixjnd,byxacnd->byxnijac", tiles, _windows(k, block, halo))
    if tables is not None:
        logits = logits + _relative_logits(tiles, tables, window)
    if window.border == "masked":
        rows, cols = (_inside(size, window, q.device) for size in k.shape[1:3])
        seen = rows[:, None, None, None, None, :, None] & cols[:, None, None, None, None, :]
        logits = logits.masked_fill(~seen, float("-inf"))
    weights = logits.flatten(-2).softmax(dim=-1).view_as(logits).to(v.dtype)
    out = torch.einsum("byxnijac,byxacne->byixjne", weights, _windows(v, block, halo))
    return out.flatten(3, 4).flatten(1, 2)[:, : q.shape[1], : q.shape[2]].to(v.dtype)


def _blocks(x: Float[Tensor, "b h w n d"], block: int) -> Float[Tensor, "b y i x j n d"]:
    """The map in whole blocks, (b, blocks_h, block, blocks_w, block, n, d); zeros where it had to be rounded up."""
    beyond_h, beyond_w = (-size % block for size in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, 0, 0, beyond_w, 0, beyond_h))
    return x.unflatten(2, (-1, block)).unflatten(1, (-1, block))


def _windows(x: Float[Tensor, "b h w n d"], block: int, halo: int) -> Float[Tensor, "b y x a c n d"]:
    """Every block with its halo, (b, blocks_h, blocks_w, window_h, window_w, n, d); zeros outside the image."""
    rows, cols = (_window_pixels(size, block, halo, x.device) + halo for size in x.shape[1:3])
    beyond_h, beyond_w = (-size % block + halo for size in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, 0, halo, beyond_w, halo, beyond_h))
    pixels = rows[:, None, :, None] * x.shape[2] + cols[None, :, None, :]
    return x.flatten(1, 2).index_select(1, pixels.flatten()).unflatten(1, pixels.shape)


def _window_pixels(size: int, block: int, halo: int, device: torch.device) -> Tensor:
    """The pixel (blocks, window) that each window sees along an axis; negative or beyond `size` is outside."""
    starts = torch.arange(-(-size // block), device=device) * block - halo
    return starts[:, None] + torch.arange(block + 2 * halo, device=device)


def _inside(size: int, window: Window, device: torch.device) -> Tensor:
    """Which keys (blocks, window) of an axis lie inside the image."""
    pixels = _window_pixels(size, window.block, window.halo, device)
    return (pixels >= 0) & (pixels < size)


def _relative_logits(
    q: Float[Tensor, "b y i x j n d"], tables: tuple[Tensor, Tensor], window: Window
) -> Float[Tensor, "b y x n i j a c"]:
    """Each axis reads its own table at the offset key - step * query, whose lowest value is row 0."""
    queries = torch.arange(window.queries, device=q.device) * window.step
    keys = torch.arange(window.side, device=q.device)
    rows = keys - queries[:, None] + (window.block - 1)
    embeddings_h, embeddings_w = (table.to(q.dtype)[rows] for table in tables)
    split = table_widths(q.shape[-1], window.relative)
    q_h, q_w = q.split(split, dim=-1) if window.relative == "halves" else (q, q)
    logits_h = torch.einsum("byixjnd,iad->byxnija", q_h, embeddings_h)
    logits_w = torch.einsum("byixjnd,jcd->byxnijc", q_w, embeddings_w)
    return logits_h[..., :, None] + logits_w[..., None, :]
