"""Masks of instances: small probabilities in their boxes, pixels of the image, COCO's run lengths.

Mask R-CNN's masks stay as they leave the head, (N, M, M). Each becomes pixels only when it is needed and only
around its box, so that a hundred instances of a large photograph never stand as (N, h, w) in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parhelion.errors import UserError
from parhelion.shapes import Float

# Where a probability becomes a pixel of the instance.
THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True)
class Patch:
    """The part of an image where an instance may be; outside of it the instance has no pixel."""

    # (rows, cols) bool; the pixel [0, 0] is the image's [top, left].
    pixels: Tensor
    top: int
    left: int

    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the patch covers."""
        rows, cols = self.pixels.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + cols)


def patch(mask: Float[Tensor, "m m"], box: Float[Tensor, "4"], size: tuple[int, int]) -> Patch:
    """The pixels of one instance around its box (left, top, right, bottom) in an image of `size` (h, w).

    Pixel for pixel what torchvision's `paste_masks_in_image` with padding 1 gives at 0.5 and more: its steps,
    on a canvas of the box instead of the image. A box that lies outside the image has an empty patch.
    """
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

    padded, scale = expand_masks(mask[None, None], padding=1)
    left, top, right, bottom = expand_boxes(box[None], scale).to(torch.int64)[0].tolist()
    first_row, last_row = max(top, 0), min(bottom + 1, size[0])
    first_col, last_col = max(left, 0), min(right + 1, size[1])
    rows, cols = last_row - first_row, last_col - first_col
    if rows <= 0 or cols <= 0:
        return Patch(pixels=torch.zeros(0, 0, dtype=torch.bool), top=0, left=0)
    # Moved by whole pixels after the rounding, so that nothing is resampled differently.
    moved = torch.tensor([left - first_col, top - first_row, right - first_col, bottom - first_row])
    canvas = paste_mask_in_image(padded[0, 0], moved, rows, cols)
    return Patch(pixels=canvas >= THRESHOLD, top=first_row, left=first_col)


def pasted(mask: Float[Tensor, "m m"], box: Float[Tensor, "4"], size: tuple[int, int]) -> Tensor:
    """One instance as pixels of an image of `size` (h, w), bool; see `patch`."""
    small = patch(mask, box, size)
    image = torch.zeros(size, dtype=torch.bool)
    image[small.window()] = small.pixels
    return image


def mask_rle(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask (h, w) of an image: {"size": [h, w], "counts": text}.

    Raises UserError where the package faster-coco-eval is missing.
    """
    h, w = mask.shape
    return _compressed(run_lengths(Patch(pixels=mask.bool(), top=0, left=0), (h, w)), (h, w))


def instance_rle(mask: Float[Tensor, "m m"], box: Float[Tensor, "4"], size: tuple[int, int]) -> dict[str, Any]:
    """`mask_rle(pasted(mask, box, size))`, at the cost of the pixels around the box alone."""
    return _compressed(run_lengths(patch(mask, box, size), size), size)


def run_lengths(small: Patch, size: tuple[int, int]) -> list[int]:
    """Lengths of the runs of 0 and 1 by turns, from 0, down the columns of an image of `size`, left to right."""
    h, w = size
    columns = torch.nn.functional.pad(small.pixels.T.to(torch.int8), (1, 1))
    steps = columns.diff(dim=1)
    first = (small.left * h + small.top, h)
    starts, ends = (_places(steps == step, *first) for step in (1, -1))
    # A run that leaves a column at the bottom and goes on at the top of the next is one run.
    goes_on = starts[1:] == ends[:-1]
    always = torch.ones(min(1, len(starts)), dtype=torch.bool)
    starts, ends = starts[torch.cat([always, ~goes_on])], ends[torch.cat([~goes_on, always])]
    edges = torch.stack([starts, ends], dim=1).flatten()
    total = torch.tensor([h * w])
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), edges, total]).diff().tolist()
    # COCO writes no empty run at the end.
    return counts if counts[-1] or len(counts) == 1 else counts[:-1]


def _places(found: Tensor, origin: int, h: int) -> Tensor:
    """Where in the image, counted down its columns, the true elements of (cols, rows + 1) stand."""
    cols, rows = found.nonzero(as_tuple=True)
    return origin + cols * h + rows


def _compressed(counts: list[int], size: tuple[int, int]) -> dict[str, Any]:
    try:
        from faster_coco_eval.core import mask as coco_masks
    except ModuleNotFoundError:
        raise UserError(
            "masks in COCO's format need the package faster-coco-eval, which is not installed: "
            'pip install "parhelion[detection]"'
        ) from None
    rle = coco_masks.frPyObjects({"size": list(size), "counts": counts}, *size)
    text = rle["counts"]
    return {"size": list(size), "counts": text.decode("ascii") if isinstance(text, bytes) else text}
