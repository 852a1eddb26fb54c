"""Masks from polygons and run lengths, drawn at the size at which they are needed.

A training image is scaled, and perhaps cut, before it reaches the network. Polygons are scaled with it and drawn at
that size, and run lengths are read at the centres of its pixels: no mask stands in memory as large as the photograph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of a scaled image that masks are drawn for."""

    size: tuple[int, int]
    """Of the image as it is annotated: h, w."""
    scaled: tuple[int, int]
    """Of the whole image after scaling: h, w."""
    top: int = 0
    left: int = 0
    """Where the part begins, in pixels of the scaled image."""
    part: tuple[int, int]
    """Of the part: h, w."""

    @classmethod
    def whole(cls, size: tuple[int, int], scaled: tuple[int, int] | None = None) -> View:
        """The whole image of `size` (h, w), as it is or scaled to `scaled`."""
        return cls(size=size, scaled=scaled or size, part=scaled or size)

    def points(self, polygon: Sequence[float]) -> np.ndarray:
        """(K, 2) float64: column and row of each point of `polygon`, in pixels of the part."""
        h, w = self.size
        factors = self.scaled[1] / w, self.scaled[0] / h
        return np.asarray(polygon, np.float64).reshape(-1, 2) * factors - (self.left, self.top)

    def rows(self) -> np.ndarray:
        """For each row of the part the row of the annotated image in which its centre lies; they rise."""
        return _centres(self.top, self.part[0], self.size[0], self.scaled[0])

    def cols(self) -> np.ndarray:
        """For each column of the part the column of the annotated image in which its centre lies; they rise."""
        return _centres(self.left, self.part[1], self.size[1], self.scaled[1])


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


def drawn(segmentations: Sequence[Any], view: View) -> Tensor:
    """(N, h, w) uint8, 1 inside, of the part that `view` shows; see `each_drawn`."""
    masks = torch.zeros(len(segmentations), *view.part, dtype=torch.uint8)
    for mask, one in zip(masks, each_drawn(segmentations, view), strict=True):
        mask.copy_(one)
    return masks


def each_drawn(segmentations: Sequence[Any], view: View) -> Iterator[Tensor]:
    """(h, w) uint8 of each segmentation in turn, at the cost of the part that `view` shows.

    A segmentation is well formed: a list of polygons or a run-length encoding, see `instances.segmentation_problem`. A
    pixel is inside where its centre is. Unscaled, masks are those of pycocotools. Raises UserError where one is None.
    """
    for segmentation in segmentations:
        if segmentation is None:
            raise UserError(
                "masks are asked of annotations without a segmentation; the data should be opened with masks"
            )
        draw = _filled if isinstance(segmentation, list) else _sampled
        yield torch.from_numpy(np.ascontiguousarray(draw(segmentation, view)))


def run_lengths(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """A segmentation of an image of `size` (h, w) as the library's compressed run lengths."""
    library = mask_library()
    if isinstance(segmentation, list):
        return library.merge(library.frPyObjects(segmentation, *size))
    encoded = {"size": list(size), "counts": segmentation["counts"]}
    return library.frPyObjects(encoded, *size) if isinstance(encoded["counts"], list) else encoded


def unpacked(text: str) -> list[int] | None:
    """The run lengths in COCO's compressed text, or None if it is not that.

    Each character is 6 bits above "0": 5 bits of the number, the lowest first, and whether more follow; the highest
    bit of a number is its sign. From the fourth on a number is the difference from the last but one. The library
    would read such a text without looking whether it fits the image.
    """
    codes = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    if lengths.max() > 7:
        # More than 35 bits.
        return None
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << place, starts)
    negative = codes[ends - 1] & 16 != 0
    numbers[negative] -= 1 << (5 * lengths[negative])
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers.tolist()


def _centres(start: int, count: int, before: int, after: int) -> np.ndarray:
    # In whole numbers, as a centre may lie on the border of two pixels: it belongs to the later one.
    return (2 * np.arange(start, start + count) + 1) * before // (2 * after)


def _filled(polygons: Sequence[Sequence[float]], view: View) -> np.ndarray:
    """(h, w) uint8: what is inside one of the polygons."""
    nearby = [_nearby(view.points(polygon), view.part) for polygon in polygons]
    parts = [points.ravel().tolist() for points in nearby if len(points) > 2]
    if not parts:
        return np.zeros(view.part, np.uint8)
    return mask_library().decode(run_lengths(parts, view.part))


def _nearby(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A polygon (K, 2) without what is farther from the part than the part is large: there it costs and shows nothing.

    Cut at one straight line after the other (Sutherland and Hodgman); the polygon runs on along the line.
    """
    for axis, side in enumerate(reversed(size)):
        for sign, limit in ((-1, side), (1, 2 * side)):
            beyond = sign * points[:, axis] - limit
            if len(points) == 0 or beyond.max() <= 0:
                continue
            after, beyond_after = np.roll(points, -1, axis=0), np.roll(beyond, -1)
            inside, crosses = beyond <= 0, (beyond <= 0) != (beyond_after <= 0)
            share = np.divide(beyond, beyond - beyond_after, out=np.zeros_like(beyond), where=crosses)
            cuts = points + share[:, None] * (after - points)
            points = np.stack([points, cuts], axis=1)[np.stack([inside, crosses], axis=1)]
    return points


def _sampled(encoded: dict[str, Any], view: View) -> np.ndarray:
    """(h, w) uint8: the pixels of a run-length encoding in which the centres of the view's pixels lie."""
    counts = encoded["counts"]
    runs: Any = unpacked(counts) if isinstance(counts, str) else counts
    # Where inside and outside change, counted down the columns.
    col, row = np.divmod(np.cumsum(runs), view.size[0])
    rows, (cols, col_of) = view.rows(), np.unique(view.cols(), return_inverse=True)
    # The same among the rows and columns that are looked at.
    place = np.searchsorted(cols, col)
    seen = np.append(cols, -1)[place] == col
    changes = place * len(rows) + np.where(seen, np.searchsorted(rows, row), 0)
    lengths = np.diff(changes, prepend=0, append=len(cols) * len(rows))
    inside = np.arange(len(lengths)) % 2
    return np.repeat(inside.astype(np.uint8), lengths).reshape(len(cols), len(rows))[col_of].T
