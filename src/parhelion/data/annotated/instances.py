"""What is annotated in one image: boxes, classes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parhelion.data.annotated.mask_drawing import View, drawn, mask_library, run_lengths


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

    def objects(self) -> "Instances":
        """The same without crowds: what there is to learn."""
        chosen = np.flatnonzero(~self.crowd)
        return replace(
            self,
            boxes=self.boxes[chosen],
            labels=self.labels[chosen],
            crowd=self.crowd[chosen],
            segmentations=tuple(self.segmentations[number] for number in chosen),
        )

    def masks(self, view: View | None = None) -> Tensor:
        """(N, h, w) uint8, 1 inside, of the whole image or what `view` shows of it; crowds included.

        Raises UserError where there is no segmentation.
        """
        return drawn(self.segmentations, view or View.whole(self.size))

    def target(self, *, masks: bool) -> dict[str, Tensor]:
        """What torchvision's detectors train on, without crowds: boxes (float32), labels and, if asked, masks."""
        objects = self.objects()
        target = {"boxes": torch.from_numpy(objects.boxes), "labels": torch.from_numpy(objects.labels)}
        return {**target, "masks": objects.masks()} if masks else target


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


def segmentation_bounds(segmentation: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a segmentation that is well formed; polygons may reach out of the image."""
    if isinstance(segmentation, dict):
        left, top, width, height = map(float, mask_library().toBbox(run_lengths(segmentation, size)))
        return left, top, left + width, top + height
    return (
        min(min(polygon[0::2]) for polygon in segmentation),
        min(min(polygon[1::2]) for polygon in segmentation),
        max(max(polygon[0::2]) for polygon in segmentation),
        max(max(polygon[1::2]) for polygon in segmentation),
    )


def mask_area(segmentation: Any, size: tuple[int, int]) -> int:
    """Pixels inside a well-formed segmentation."""
    return int(mask_library().area(run_lengths(segmentation, size)))
