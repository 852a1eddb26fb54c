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
    """Build the embeddings of every (query, key) pair of the axis, then two contractions without a softmax."""
    pixels = torch.arange(q.shape[1 if axis == "h" else 2], device=q.device)
    centre = table.shape[0] // 2
    embeddings = table.to(q.dtype)[pixels[None, :] - pixels[:, None] + centre]
    if axis == "h":
        logits = torch.einsum("bywnd,yid->bwnyi", q, embeddings)
        return torch.einsum("bwnyi,biwne->bywne", logits.to(v.dtype), v).to(v.dtype)
    logits = torch.einsum("bhxnd,xjd->bhnxj", q, embeddings)
    return torch.einsum("bhnxj,bhjne->bhxne", logits.to(v.dtype), v).to(v.dtype)
