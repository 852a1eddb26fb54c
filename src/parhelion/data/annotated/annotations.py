"""What one annotation of a COCO file says, and what can be wrong with it."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from parhelion.data.annotated.instances import mask_area, segmentation_bounds
from parhelion.data.annotated.mask_drawing import unpacked

OF_LEFT_OUT = "annotations of images that are left out"
NO_IMAGE = "annotations of an unknown image"
NO_CATEGORY = "annotations of an unknown category"
NO_BOX = "annotations without a box of four finite numbers"
BAD_BOX = "annotations with a degenerate box"
BOX_OUTSIDE = "annotations with a box outside the image"
NO_SEGMENTATION = "annotations without a segmentation"
MALFORMED = "annotations with a malformed segmentation"
MASK_OUTSIDE = "annotations with a mask outside the image"
EMPTY_MASK = "annotations with an empty mask"

FEW_POINTS = "a polygon of fewer than three points"
"""Covers no pixel, so that nothing is lost without it."""

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
    """Left, top, width, height as in the file; if it does not say, the bounds of the mask."""
    reaches_out: bool
    """Whether the box leaves the image by more than a pixel."""
    area: float
    """As in the file; NaN if it does not say."""
    segmentation: bytes
    """As JSON, without bad polygons; null if masks are not read."""
    bad_polygons: tuple[str, ...]
    """What is wrong with each polygon that was left out."""
    unmatchable: str | None
    """Why no detection can match it (BAD_BOX, BOX_OUTSIDE, MASK_OUTSIDE or EMPTY_MASK); None if one can."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What an annotation in COCO's format may refer to, and what it needs."""

    images: Mapping[int, tuple[int, tuple[int, int]]]
    """Row and size (h, w) of each usable image, by id."""
    known: Collection[int]
    """Ids of all images."""
    labels: Mapping[int, int]
    """The label of each category, by id."""
    masks: bool
    keep_unmatchable: bool = False
    """Whether those stay that no detection can match: COCO's programs count them."""

    def usable(self, entry: Mapping[str, Any]) -> Annotation:
        """The annotation in `entry`, whose ids are integers; raises Unusable."""
        if entry["image_id"] not in self.images:
            raise Unusable(OF_LEFT_OUT if entry["image_id"] in self.known else NO_IMAGE)
        if entry["category_id"] not in self.labels:
            raise Unusable(NO_CATEGORY)
        image, size = self.images[entry["image_id"]]
        box, segmentation, bad_polygons = self._parts(entry, size)
        problem = None if segmentation is None else segmentation_problem(segmentation, size)
        problem = problem or box_problem(box, size)
        if problem and not self.keep_unmatchable:
            raise Unusable(problem)
        return Annotation(
            image=image,
            identifier=entry["id"],
            label=self.labels[entry["category_id"]],
            crowd=entry.get("iscrowd") == 1,
            box=box,
            reaches_out=problem is None and _reaches_out(box, size),
            area=_area(entry.get("area")),
            segmentation=COMPACT.encode(segmentation if self.masks else None).encode(),
            bad_polygons=bad_polygons,
            unmatchable=problem,
        )

    def _parts(self, entry: Mapping[str, Any], size: tuple[int, int]) -> tuple[Box, Any, tuple[str, ...]]:
        """Box, segmentation (None where it is not needed), what is wrong with polygons left out; raises Unusable."""
        box, given = _box(entry.get("bbox")), entry.get("segmentation") or None
        if box is not None and not self.masks:
            return box, None, ()
        if given is None:
            raise Unusable(NO_SEGMENTATION if self.masks else NO_BOX)
        segmentation, bad_polygons = drawable(given, size)
        if box is None:
            left, top, right, bottom = segmentation_bounds(segmentation, size)
            # Of the mask, which ends at the border.
            left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, size[1]), min(bottom, size[0])
            box = left, top, right - left, bottom - top
        return box, segmentation, bad_polygons


def is_side(value: Any) -> bool:
    """Whether an image can be so many pixels high or wide; 640.0 will do."""
    return type(value) in NUMBERS and 0 < value < 2**31 and value == int(value)


def drawable(segmentation: Any, size: tuple[int, int]) -> tuple[Any, tuple[str, ...]]:
    """`segmentation` without the polygons that cannot be drawn on h x w pixels, and what is wrong with each of those.

    Raises Unusable, MALFORMED with the reason, where nothing is left.
    """
    if isinstance(segmentation, dict):
        if problem := _run_length_problem(segmentation, size):
            raise Unusable(f"{MALFORMED} ({problem})")
        return segmentation, ()
    if not isinstance(segmentation, list):
        raise Unusable(f"{MALFORMED} (neither polygons nor run lengths)")
    if NUMBERS.issuperset(map(type, segmentation)):
        raise Unusable(f"{MALFORMED} (numbers where lists of numbers should be)")
    problems = [_polygon_problem(polygon) for polygon in segmentation]
    good = [polygon for polygon, problem in zip(segmentation, problems, strict=True) if problem is None]
    bad = tuple(problem for problem in problems if problem is not None)
    if not good:
        raise Unusable(f"{MALFORMED} ({bad[0]})")
    return good, bad


def segmentation_problem(segmentation: Any, size: tuple[int, int]) -> str | None:
    """MASK_OUTSIDE or EMPTY_MASK, or None for a drawable segmentation that covers something of h x w pixels.

    Run lengths are added up. Polygons are not drawn, for that would take minutes on a large data set, except those
    whose area is less than a pixel: a sliver with a larger one that covers the centre of no pixel passes.
    """
    if isinstance(segmentation, dict):
        # The runs alternate, outside first.
        return None if any(_runs(segmentation)[1::2]) else EMPTY_MASK
    left, top, right, bottom = segmentation_bounds(segmentation, size)
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        return MASK_OUTSIDE
    # Also the outline of an eight has next to no area by this formula, so that it alone proves nothing.
    small = sum(map(_polygon_area, segmentation)) < 1
    return EMPTY_MASK if small and not mask_area(segmentation, size) else None


def box_problem(box: Box, size: tuple[int, int]) -> str | None:
    """BAD_BOX or BOX_OUTSIDE, or None for a box that covers something of an image of h x w pixels."""
    left, top, width, height = box
    right, bottom = left + width, top + height
    if width <= 0 or height <= 0:
        return BAD_BOX
    h, w = size
    if left >= w or top >= h or right <= 0 or bottom <= 0:
        return BOX_OUTSIDE
    # Training reads boxes as float32, in which a very thin one has no area left.
    left, top, right, bottom = map(np.float32, (max(left, 0), max(top, 0), min(right, w), min(bottom, h)))
    return None if left < right and top < bottom else BAD_BOX


def _box(sides: Any) -> Box | None:
    """The four numbers, or None for None; raises Unusable for anything else."""
    if sides is None:
        return None
    if not isinstance(sides, list) or len(sides) != 4:
        raise Unusable(NO_BOX)
    if not all(type(side) in NUMBERS and abs(side) < FAR for side in sides):
        raise Unusable(NO_BOX)
    left, top, width, height = map(float, sides)
    return left, top, width, height


def _reaches_out(box: Box, size: tuple[int, int]) -> bool:
    """By more than a pixel: less is rounding."""
    left, top, width, height = box
    return min(left, top) < -1 or left + width > size[1] + 1 or top + height > size[0] + 1


def _area(value: Any) -> float:
    return float(value) if type(value) in NUMBERS and abs(value) < FAR else math.nan


def _polygon_problem(points: Any) -> str | None:
    """What is wrong with a polygon: column, row, column, row and so on; None for three points or more."""
    if not isinstance(points, list) or not NUMBERS.issuperset(map(type, points)):
        return "a polygon that is not a list of numbers"
    # NaN compares with nothing, so that it may pass the first two.
    if points and not (min(points) >= -FARTHEST_PX and max(points) <= FARTHEST_PX and math.isfinite(sum(points))):
        return f"a polygon with a number that is not finite or beyond {FARTHEST_PX:,.0f} pixels"
    if len(points) % 2:
        return "a polygon with an odd count of numbers"
    return None if len(points) >= 6 else FEW_POINTS


def _polygon_area(points: list[float]) -> float:
    """The area by the shoelace formula, in square pixels: parts that wind the other way count negative."""
    columns, rows = points[0::2], points[1::2]
    forth = sum(map(mul, columns, rows[1:] + rows[:1]))
    back = sum(map(mul, columns[1:] + columns[:1], rows))
    return abs(forth - back) / 2


def _run_length_problem(encoded: dict[str, Any], size: tuple[int, int]) -> str | None:
    """What is wrong with run lengths that cannot be those of an image of h x w pixels, in words."""
    if encoded.get("size") == [*reversed(size)] and size[0] != size[1]:
        return "run lengths whose size is width, height where height, width should be"
    if encoded.get("size") != list(size):
        return "run lengths of another size than the image"
    runs = _runs(encoded)
    if not isinstance(runs, list) or not runs or {type(run) for run in runs} != {int} or min(runs) < 0:
        return "run lengths that are neither whole numbers from 0 nor COCO's text"
    return None if sum(runs) == math.prod(size) else "run lengths that do not add up to the size of the image"


def _runs(encoded: dict[str, Any]) -> Any:
    runs = encoded.get("counts")
    return unpacked(runs) if isinstance(runs, str) else runs
