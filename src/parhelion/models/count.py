"""What a network costs, counted and not estimated."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parhelion.models.reference import reference


def parameters(model: nn.Module) -> int:
    """How many numbers the model's parameters hold, those of frozen parts included."""
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of one image of `image_size` (h, w) pixels through convolutions and matrix products.

    Counted on the operations themselves, without computing them, on a copy that has no memory. Additions, norms,
    softmax and pooling are left out, as the papers do. A multiply-add is two FLOPs.
    """
    # Whatever the model runs on: no kernel runs without memory.
    weightless = reference(model).to("meta").eval()
    in_chans = next(parameter for parameter in weightless.parameters() if parameter.ndim == 4).shape[1]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        weightless(torch.empty(1, in_chans, *image_size, device="meta"))
    return counter.get_total_flops() // 2
