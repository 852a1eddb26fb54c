"""One layer of each kind, small, and what training it gives."""

import torch
from torch import Tensor, nn

from parhelion.layers import GlobalSelfAttention, HaloAttention


def small_layer(name: str, impl: str) -> nn.Module:
    """Halo attention (`name` "halo") or a GSA module, of 12 channels; the same weights at every call."""
    torch.manual_seed(20103019)
    if name == "halo":
        return HaloAttention(12, heads=2, block=4, halo=1, scale=None, impl=impl)
    return GlobalSelfAttention(12, heads=2, size=10, impl=impl)


def layer_results(layer: nn.Module, images: Tensor, towards: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """The output, and the gradients of images and parameters."""
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        out = layer(images)
    return [out.detach(), *torch.autograd.grad(out, [images, *layer.parameters()], towards.to(out.dtype))]
