"""What one annotation of a COCO file says, and what can be wrong with it."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from parhelion.data.instances import mask_area, segmentation_bounds
from parhelion.data.mask_drawing import unpacked

OF_LEFT_OUT = "annotations of images that are left out"
NO_IMAGE = "annotations of an unknown image"
NO_CATEGORY = "annotations of an unknown category"
BAD_BOX = "annotations with a degenerate box"
BOX_OUTSIDE = "annotations with a box outside the image"
NO_SEGMENTATION = "annotations without a segmentation"
MALFORMED = "annotations with a malformed segmentation"
MASK_OUTSIDE = "annotations with a mask outside the image"
EMPTY_MASK = "annotations with an empty mask"

NUMBERS = {int, float}
COMPACT = json.JSONEncoder(separators=(",", ":"))

# The library draws an outline pixel by pixel, also where it is outside the image: beyond this it would fill the memory.
FARTHEST_PX = 1e6

# Sides and areas beyond this are not meant, and integers beyond it may not fit into a float.
FAR = 1e18

Box: TypeAlias = tuple[float, float, float, float]


class Unusable(Exception):  # noqa: N818
    """The kind of problem that an annotation has, in words."""


class Annotation(NamedTuple):
    """One annotation that was checked."""

    image: int
    """The row of its image, not the id."""
    identifier: int
    label: int
    crowd: bool
    box: Box
    """Left, top, width, height: clipped if `clipped`, otherwise as in the file."""
    clipped: bool
    """Whether the box reached out of the image by more than a pixel."""
    area: float
    """NaN if the file does not say."""
    segmentation: bytes
    """As JSON; null if masks are not read."""


@dataclass(frozen=True)
class Checks:
    """What an annotation in COCO's format may refer to, and whether it needs a mask."""

    images: Mapping[int, tuple[int, tuple[int, int]]]
    """Row and size (h, w) of each usable image, by id."""
    known: Collection[int]
    """Ids of all images."""
    labels: Mapping[int, int]
    """The label of each category, by id."""
    masks: bool

    def usable(self, entry: Mapping[str, Any]) -> Annotation:
        """The annotation in `entry`, whose ids are integers; raises Unusable."""
        if entry["image_id"] not in self.images:
            raise Unusable(OF_LEFT_OUT if entry["image_id"] in self.known else NO_IMAGE)
        if entry["category_id"] not in self.labels:
            raise Unusable(NO_CATEGORY)
        image, size = self.images[entry["image_id"]]
        segmentation = entry.get("segmentation") or None
        box, clipped = self._box(entry.get("bbox"), segmentation, size)
        return Annotation(
            image=image,
            identifier=entry["id"],
            label=self.labels[entry["category_id"]],
            crowd=entry.get("iscrowd") == 1,
            box=box,
            clipped=clipped,
            area=_area(entry.get("area")),
            segmentation=COMPACT.encode(segmentation if self.masks else None).encode(),
        )

    def _box(self, box: Any, segmentation: Any, size: tuple[int, int]) -> tuple[Box, bool]:
        """The box, from the segmentation if there is none, and whether it was clipped; both are checked."""
        inside = None if box is None else _inside(box, size)
        if segmentation is None and (self.masks or not inside):
            raise Unusable(NO_SEGMENTATION if self.masks else BAD_BOX)
        if (self.masks or not inside) and (problem := segmentation_problem(segmentation, size)):
            raise Unusable(problem)
        if inside:
            return inside
        left, top, right, bottom = segmentation_bounds(segmentation, size)
        return _inside([left, top, right - left, bottom - top], size)


def is_side(value: Any) -> bool:
    """Whether an image can be so many pixels high or wide; 640.0 will do."""
    return type(value) in NUMBERS and 0 < value < 2**31 and value == int(value)


def segmentation_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """MALFORMED, MASK_OUTSIDE or EMPTY_MASK, or None for a segmentation that can be drawn on an image of h x w pixels.

    Run lengths are added up. Polygons are not drawn, for that would take minutes on a large data set, except those
    whose area is less than a pixel: a sliver with a larger one that covers the centre of no pixel passes.
    """
    if isinstance(segmentation, dict):
        return _run_length_problem(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation or not all(map(_is_polygon, segmentation)):
        return MALFORMED
    left, top, right, bottom = segmentation_bounds(segmentation, size)
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        return MASK_OUTSIDE
    # Also the outline of an eight has next to no area by this formula, so that it alone proves nothing.
    small = sum(map(_polygon_area, segmentation)) < 1
    return EMPTY_MASK if small and not mask_area(segmentation, size) else None


def _area(value: Any) -> float:
    return float(value) if type(value) in NUMBERS and 0 <= value < FAR else math.nan


def _inside(box: Any, size: tuple[int, int]) -> tuple[Box, bool]:
    """The box, clipped if it reaches out of the image by more than a pixel, and whether it does; raises Unusable."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(side) in NUMBERS and abs(side) < FAR for side in box):
        raise Unusable(BAD_BOX)
    left, top, width, height = map(float, box)
    right, bottom = left + width, top + height
    if width <= 0 or height <= 0:
        raise Unusable(BAD_BOX)
    h, w = size
    if left >= w or top >= h or right <= 0 or bottom <= 0:
        raise Unusable(BOX_OUTSIDE)
    within = max(left, 0.0), max(top, 0.0), min(right, float(w)), min(bottom, float(h))
    # Training reads boxes as float32, in which a very thin one has no area left.
    if not (np.float32(within[0]) < np.float32(within[2]) and np.float32(within[1]) < np.float32(within[3])):
        raise Unusable(BAD_BOX)
    if left >= -1 and top >= -1 and right <= w + 1 and bottom <= h + 1:
        return (left, top, width, height), False
    return (within[0], within[1], within[2] - within[0], within[3] - within[1]), True


def _is_polygon(points: Any) -> bool:
    """Whether these are three points or more: column, row, column, row and so on."""
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and NUMBERS.issuperset(map(type, points))
        and min(points) >= -FARTHEST_PX
        and max(points) <= FARTHEST_PX
        # NaN, which compares with nothing.
        and math.isfinite(sum(points))
    )


def _polygon_area(points: list[float]) -> float:
    """The area by the shoelace formula, in square pixels: parts that wind the other way count negative."""
    columns, rows = points[0::2], points[1::2]
    forth = sum(map(mul, columns, rows[1:] + rows[:1]))
    back = sum(map(mul, columns[1:] + columns[:1], rows))
    return abs(forth - back) / 2


def _run_length_problem(encoded: dict[str, Any], size: tuple[int, int]) -> str | None:
    runs = encoded.get("counts")
    if isinstance(runs, str):
        runs = unpacked(runs)
    if not isinstance(runs, list) or not runs or {type(run) for run in runs} != {int}:
        return MALFORMED
    if encoded.get("size") != list(size) or min(runs) < 0 or sum(runs) != math.prod(size):
        return MALFORMED
    # The runs alternate, outside first.
    return None if any(runs[1::2]) else EMPTY_MASK
