"""One layer of each kind, small, and what training it gives."""

import torch
from error_budget import assert_as_exact_as
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


def assert_trains_as_exactly_as_the_reference(
    name: str, impl: str, images: Tensor, towards: Tensor, dtype: torch.dtype
) -> None:
    """Fail if a small layer under autocast to a dtype errs more than the reference does there."""
    actual, baseline = (
        layer_results(small_layer(name, one).to(images.device), images, towards, dtype) for one in (impl, "reference")
    )
    exact = small_layer(name, "reference").double().to(images.device)
    truth = layer_results(exact, images.double(), towards.double(), None)
    for one, other, right in zip(actual, baseline, truth, strict=True):
        assert one.dtype == other.dtype
        # Gradients come in float32 but carry the rounding of what they were computed in.
        assert_as_exact_as(one.to(dtype), other.to(dtype), right)
