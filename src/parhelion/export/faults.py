"""What is wrong with a file that disagrees: `named_fault` tries the usual mistakes, one after the other."""

from collections.abc import Callable, Iterator

import torch

from parhelion.data.transforms import Preprocessing
from parhelion.shapes import Tensor


def named_fault(
    answer: Callable[[Tensor], Tensor], images: Tensor, theirs: Tensor, preprocessing: Preprocessing, allowed: float
) -> str | None:
    """The mistake, in words, that explains the probabilities `theirs` of a file; None where no known one does.

    answer: The probabilities of PyTorch for prepared images.
    images: Those that the file was given, as PyTorch is given them, (B, C, H, W).
    allowed: Largest difference of a probability that still counts as equal.
    """
    if (theirs - theirs[:1]).abs().max() == 0 and len(theirs) > 1:
        return "its output is dead: it says the same of every image"
    for words, changed in _mistakes(images, preprocessing):
        if (answer(changed) - theirs).abs().max() <= allowed:
            return words
    return None


def _mistakes(images: Tensor, preprocessing: Preprocessing) -> Iterator[tuple[str, Tensor]]:
    """Each known mistake, and the images with which PyTorch would make it."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    values = images * std + mean
    yield "its map is transposed: rows and columns of the images are swapped", images.transpose(2, 3).contiguous()
    yield "its preprocessing does not subtract the mean", values / std
    yield "its preprocessing does not divide by the deviation", values - mean
    yield "its preprocessing neither subtracts the mean nor divides by the deviation", values
    yield "its preprocessing takes pixels of 0 to 255 for 0 to 1", (values * 255 - mean) / std
    yield "its preprocessing takes pixels of 0 to 1 for 0 to 255", (values / 255 - mean) / std
    yield "its images are mirrored", images.flip(3)
    yield "its images are upside down", images.flip(2)
    if preprocessing.in_chans == 3:
        yield "its channels are in the order blue, green, red", (values.flip(1) - mean) / std
