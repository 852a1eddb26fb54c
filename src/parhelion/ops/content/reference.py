"""Content attention in plain PyTorch: the specification that every kernel is measured against."""

import torch

from parhelion.shapes import Float, Tensor


def content_attention_reference(
    q: Float[Tensor, "b h w n d"],
    k: Float[Tensor, "b h w n d"],
    v: Float[Tensor, "b h w n e"],
    *,
    normalize_queries: bool,
) -> Float[Tensor, "b h w n e"]:
    """Summarise the image once per key channel, then let every query mix the summaries."""
    q, k = q.flatten(1, 2), k.flatten(1, 2)
    if normalize_queries:
        q = q.softmax(dim=-1)
    summary = torch.einsum("bpnd,bpne->bnde", k.softmax(dim=1).to(v.dtype), v.flatten(1, 2))
    out = torch.einsum("bpnd,bnde->bpne", q.to(v.dtype), summary)
    return out.unflatten(1, v.shape[1:3]).to(v.dtype)
