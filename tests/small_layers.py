"""One layer of each kind, small, and what training it gives."""

from functools import partial

import torch
from error_budget import assert_as_exact_as
from simulated_rounding import fused, fused_on_gpu, simulated
from torch import Tensor, nn

from parhelion.layers import GlobalSelfAttention, HaloAttention


def small_layer(name: str, impl: str) -> nn.Module:
    """Halo attention ("halo") or a GSA module ("global", or with "queries normalised" besides), of 12 channels.

    The weights are the same at every call.
    """
    torch.manual_seed(20103019)
    if name == "halo":
        return HaloAttention(12, heads=2, block=4, halo=1, scale=None, impl=impl)
    normalize_queries = name == "global, queries normalised"
    return GlobalSelfAttention(12, heads=2, size=10, normalize_queries=normalize_queries, impl=impl)


def layer_results(layer: nn.Module, images: Tensor, towards: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """The output, and the gradients of images and parameters."""
    images = images.detach().requires_grad_()
    with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
        out = layer(images)
    return [out.detach(), *torch.autograd.grad(out, [images, *layer.parameters()], towards.to(out.dtype))]


def assert_trains_within_budget(name: str, impl: str, images: Tensor, towards: Tensor, dtype: torch.dtype) -> None:
    """Fail if a small layer under autocast to a dtype errs more than its arithmetic makes likely."""
    actual = layer_results(small_layer(name, impl).to(images.device), images, towards, dtype)
    exact = small_layer(name, "reference").double()
    compute = partial(layer_results, exact, images.cpu().double(), towards.cpu().double(), None)
    arithmetic = fused_on_gpu(dtype) if impl == "triton" else fused(dtype)
    for one, likely, truth in zip(actual, simulated(compute, arithmetic, dtype), compute(), strict=True):
        # Gradients come in float32 but carry the rounding of what they were computed in.
        assert_as_exact_as(one.cpu().to(dtype), likely, truth)
