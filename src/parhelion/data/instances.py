"""What is annotated in one image: boxes, classes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Instances:
    """What is annotated in one image, in its own pixels."""

    image_id: int
    size: tuple[int, int]
    """Of the image: h, w."""
    boxes: np.ndarray
    """(N, 4) float32: left, top, right, bottom, clipped to the image."""
    labels: np.ndarray
    """(N,) int64, from 1, as 0 is the background."""
    crowd: np.ndarray
    """(N,) bool: a region with many objects, to be ignored."""
    segmentations: tuple[Any, ...]
    """Of each instance: a list of polygons, a run-length encoding as a dictionary, or None where masks are not read."""

    def masks(self) -> Tensor:
        """(N, h, w) uint8, 1 inside; crowds included. Raises UserError where there is no segmentation."""
        return _drawn(self.segmentations, self.size)

    def target(self, *, masks: bool) -> dict[str, Tensor]:
        """What torchvision's detectors train on, without crowds: boxes (float32), labels and, if asked, masks."""
        objects = np.flatnonzero(~self.crowd)
        target = {
            "boxes": torch.from_numpy(self.boxes[objects]),
            "labels": torch.from_numpy(self.labels[objects]),
        }
        if masks:
            target["masks"] = _drawn([self.segmentations[number] for number in objects], self.size)
        return target


class Texts:
    """Many byte strings in two arrays: however many they are, reading one touches no Python object that stays.

    A forked worker process shares its parent's memory until it is written to, and looking at a Python object writes
    to it, for its references are counted. Lists of objects would thus be copied into every worker, page by page.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        self.ends = np.cumsum([0, *map(len, texts)])
        self.characters = np.frombuffer(b"".join(texts), np.uint8)

    def __getitem__(self, number: int) -> bytes:
        return self.characters[self.ends[number] : self.ends[number + 1]].tobytes()


def mask_library() -> Any:
    """The module that draws polygons and reads run lengths; raises UserError when it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise UserError(
            "masks are drawn by faster-coco-eval, which is not installed; "
            'it comes with pip install "parhelion[detection]"'
        ) from error
    return mask


def segmentation_bounds(segmentation: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a segmentation that is well formed; polygons may reach out of the image."""
    if isinstance(segmentation, dict):
        left, top, width, height = map(float, mask_library().toBbox(_run_lengths(segmentation, size)))
        return left, top, left + width, top + height
    return (
        min(min(polygon[0::2]) for polygon in segmentation),
        min(min(polygon[1::2]) for polygon in segmentation),
        max(max(polygon[0::2]) for polygon in segmentation),
        max(max(polygon[1::2]) for polygon in segmentation),
    )


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Pixels inside a well-formed segmentation."""
    return int(mask_library().area(_run_lengths(segmentation, size)))


def _drawn(segmentations: Sequence[Any], size: tuple[int, int]) -> Tensor:
    """(N, h, w) uint8."""
    if not segmentations:
        return torch.zeros(0, *size, dtype=torch.uint8)
    if any(segmentation is None for segmentation in segmentations):
        raise UserError("masks are asked of annotations without a segmentation; the data should be opened with masks")
    encoded = [_run_lengths(segmentation, size) for segmentation in segmentations]
    # The library's last axis counts the masks.
    return torch.from_numpy(np.ascontiguousarray(mask_library().decode(encoded).transpose(2, 0, 1)))


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation as the library's compressed run lengths."""
    library = mask_library()
    if isinstance(segmentation, list):
        return library.merge(library.frPyObjects(segmentation, *size))
    encoded = {"size": list(size), "counts": segmentation["counts"]}
    return library.frPyObjects(encoded, *size) if isinstance(encoded["counts"], list) else encoded
