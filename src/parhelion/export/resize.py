"""Pillow's resize and the central square of an image, as products of matrices that any runtime has."""

import math
from collections.abc import Callable

import torch
from torch import nn

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError
from parhelion.shapes import Float, Tensor


def _triangle(t: Tensor) -> Tensor:
    return (1 - t.abs()).clamp(min=0)


def _cubic(t: Tensor) -> Tensor:
    t = t.abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t < 1, near, far) * (t < 2).to(t.dtype)


def _sinc(t: Tensor) -> Tensor:
    angle = t * math.pi
    is_zero = (t == 0).to(t.dtype)
    return torch.sin(angle) / (angle + is_zero) + is_zero


def _hamming(t: Tensor) -> Tensor:
    return _sinc(t) * (0.54 + 0.46 * torch.cos(t * math.pi)) * (t.abs() < 1).to(t.dtype)


def _lanczos(t: Tensor) -> Tensor:
    return _sinc(t) * _sinc(t / 3) * (t.abs() < 3).to(t.dtype)


# What a pixel weighs by its distance, in pixels of the smaller image (Pillow's libImaging/Resample.c).
FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": _triangle,
    "hamming": _hamming,
    "bicubic": _cubic,
    "lanczos": _lanczos,
}


class Prepare(nn.Module):
    """Images as they are, (B, H, W, C) uint8 of any size, to what a network takes, (B, C, px, px) float32.

    The same steps as `parhelion.data.transforms.eval_transform`: the shorter side is resized, the middle square is cut
    out, values are normalised. As in Pillow, columns come before rows, and values are rounded to 8 bits after each.
    Pillow rounds its weights to 22 bits besides, so that few values differ, by 1 of 255: one in ten thousand for
    "bicubic", up to one in a hundred for "bilinear", where many sums end in a half. Images that are more than twice as
    tall as they are wide differ more, by up to 4 of 255 in a value of five, since Pillow 13 takes their rows first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Raises UserError for an interpolation that jumps between pixels, "nearest" or "box".

        Where two pixels are equally near, what Pillow takes depends on its roundings.
        """
        super().__init__()
        if preprocessing.interpolation not in FILTERS:
            raise UserError(
                f"images are resized by '{preprocessing.interpolation}', which a file cannot hold as Pillow computes "
                f"it; leave --with-preprocessing out (it takes {', '.join(FILTERS)})"
            )
        self.px, self.interpolation = preprocessing.image_px, preprocessing.interpolation
        self.shorter = math.floor(preprocessing.image_px / preprocessing.crop_ratio)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Float[Tensor, "b c px px"]:
        """The prepared images."""
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        rows, cols = (torch.arange(size, device=x.device) for size in x.shape[2:])
        # Sizes as tensors: exporters do not take remainders of sizes.
        h, w = rows[-1:] + 1, cols[-1:] + 1
        shorter = torch.minimum(h, w)
        x = _eight_bits(torch.matmul(x, self._weights(cols, w, shorter).transpose(0, 1)))
        x = _eight_bits(torch.matmul(self._weights(rows, h, shorter), x))
        return (x / 255 - self.mean) / self.std

    def _weights(self, pixels: Tensor, size: Tensor, shorter: Tensor) -> Float[Tensor, "px size"]:
        """What each pixel of an axis weighs in each of the px pixels that are kept.

        pixels: 0, 1, ...; size: their number, in a tensor.
        """
        resized = _whole_quotient(size * self.shorter, shorter)
        cut = resized - self.px
        # Python's round, which torchvision takes for the first pixel kept: a half goes to the even number.
        half = torch.div(cut, 2, rounding_mode="floor")
        first = half + (cut - 2 * half) * (half - 2 * torch.div(half, 2, rounding_mode="floor"))
        kept = torch.arange(self.px, device=pixels.device) + first
        # Whole numbers as long as possible, since float32 cannot tell the pixels of a large image apart.
        distance = (2 * pixels + 1)[None, :] * resized - (2 * kept + 1)[:, None] * size
        t = distance.to(torch.float32) / (2 * torch.maximum(size, resized)).to(torch.float32)
        weights = FILTERS[self.interpolation](t)
        return weights / weights.sum(dim=1, keepdim=True)


def _whole_quotient(number: Tensor, divisor: Tensor) -> Tensor:
    """number // divisor, also where a runtime multiplies with the reciprocal, as OpenVINO does, and falls short."""
    quotient = torch.div(number, divisor, rounding_mode="floor")
    rest = number - quotient * divisor
    return quotient + (rest >= divisor).to(quotient.dtype) - (rest < 0).to(quotient.dtype)


def _eight_bits(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp(0, 255)
