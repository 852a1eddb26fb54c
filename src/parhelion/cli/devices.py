"""Where a command computes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def move_to_fastest_device(model: "nn.Module") -> None:
    """Move `model` to the first GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        model.to("cuda")
