"""What a class loses when a part of the image is hidden: the check that an attention map cannot replace."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

BATCH = 16
# No more patches along an axis, so that a large image takes at most 256 passes.
MOST_PATCHES = 16


class Occlusion(NamedTuple):
    """What the probability of a class loses for each hidden patch; negative where it gains."""

    class_name: str
    probability: float
    """Of the class, with nothing hidden."""
    patch_px: int
    losses: Tensor
    """(rows, columns) of patches, from the top left; those at the far borders are cut off."""


def patch_px(image: tuple[int, int], key_px: tuple[float, float]) -> int:
    """Side of the patches: a pixel of the last map, or more where that would be too many."""
    return max(round(max(key_px)), -(-max(image) // MOST_PATCHES))


def losses(probability: Callable[[Tensor], Tensor], image: Tensor, patch: int) -> Tensor:
    """What the probability of a class loses when each patch is set to zero, the mean of a normalised image.

    Args:
        probability: From images (B, C, H, W) to the probability of the class, (B,).
        image: (1, C, H, W).
        patch: Side in pixels.
    """
    rows, cols = (-(-size // patch) for size in image.shape[2:])
    hidden = []
    for start in range(0, rows * cols, BATCH):
        places = range(start, min(start + BATCH, rows * cols))
        images = image.repeat(len(places), 1, 1, 1)
        for one, place in zip(images, places, strict=True):
            top, left = place // cols * patch, place % cols * patch
            one[:, top : top + patch, left : left + patch] = 0
        hidden.append(probability(images))
    return (probability(image) - torch.cat(hidden)).view(rows, cols)
