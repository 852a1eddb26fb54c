"""Axial attention in plain PyTorch: the specification that every kernel is measured against."""

import torch

from parhelion.ops.axial.contract import Axis
from parhelion.shapes import Float, Tensor


def axial_attention_reference(
    q: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    table: Float[Tensor, "offsets d"],
    *,
    axis: Axis,
) -> Float[Tensor, "b h w n e"]:
    """Build the embeddings of every (query, key) pair of the axis, then two products without a softmax.

    Maps are laid out line by line first, so that no product has to ask torch.export for a size.
    """
    (batch, h, w, heads, _), width = q.shape, v.shape[4]
    length, lines = (h, batch * w * heads) if axis == "h" else (w, batch * h * heads)
    pixels = torch.arange(length, device=q.device)
    embeddings = table.to(q.dtype)[pixels[None, :] - pixels[:, None] + table.shape[0] // 2]
    # From (b, h, w, n, channels) to every pixel's lines, to every line's pixels, and back. Heads stand before the other
    # axis, because torch.export sees that heads divide the lines, but not that a size does.
    to_pixels, to_lines, to_map = (
        ((1, 0, 3, 2, 4), (0, 3, 2, 1, 4), (0, 3, 2, 1, 4))
        if axis == "h"
        else ((2, 0, 3, 1, 4), (0, 3, 1, 2, 4), (0, 2, 3, 1, 4))
    )
    logits = torch.bmm(_laid_out(q, to_pixels).view(length, lines, q.shape[4]), embeddings.transpose(1, 2))
    values = _laid_out(v, to_lines).view(lines, length, width)
    out = torch.bmm(logits.transpose(0, 1).to(v.dtype), values).to(v.dtype)
    return _laid_out(out.view(batch, heads, w if axis == "h" else h, length, width), to_map)


def _laid_out(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The tensor with its axes in another order, in memory too."""
    return x.permute(axes).clone(memory_format=torch.contiguous_format)
