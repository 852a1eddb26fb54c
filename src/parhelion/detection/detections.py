"""What a detector found in an image, and the forms in which others want it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from parhelion.detection.masks import instance_rle, patch, run_lengths
from parhelion.errors import UserError

if TYPE_CHECKING:
    from supervision import CompactMask, Detections

T = TypeVar("T")

# A true mask is kept with this many pixels a side of its box: fine enough to be looked at.
TRUE_MASK_PX = 112


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a detector found in one image, best first; tensors on the CPU."""

    image_id: int
    # h, w of the original image.
    size: tuple[int, int]
    # (N, 4) float32: left, top, right, bottom in pixels of the original image.
    boxes: Tensor
    # (N,) int64, from 1: 0 is the background.
    labels: Tensor
    # (N,) float32.
    scores: Tensor
    # (N, M, M) float32, probabilities in the box; None where only boxes were asked for.
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Found:
        """The instances that score at least `score`."""
        return self._where(self.scores >= score)

    def best(self, count: int) -> Found:
        """The first `count` instances."""
        return self._where(torch.arange(len(self)) < count)

    def names(self, class_names: Sequence[str]) -> list[str]:
        """The class of each instance; label n is `class_names[n - 1]`. Raises UserError where a label has no name."""
        return self._of_labels(class_names, "class names")

    def results(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Entries of a COCO results file; label n is the category `category_ids[n - 1]`.

        `bbox` is left, top, width, height in pixels; `segmentation`, where there are masks, is a compressed RLE.
        Raises UserError where a label has no category, and for masks where faster-coco-eval is missing.
        """
        categories = self._of_labels(category_ids, "category ids")
        entries = []
        columns = (categories, self.boxes.tolist(), self.scores.tolist())
        for number, (category, box, score) in enumerate(zip(*columns, strict=True)):
            left, top, right, bottom = box
            entry = {
                "image_id": self.image_id,
                "category_id": category,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            if self.masks is not None:
                entry["segmentation"] = instance_rle(self.masks[number], self.boxes[number], self.size)
            entries.append(entry)
        return entries

    def as_supervision(self, class_names: Sequence[str]) -> Detections:
        """The same as `supervision.Detections`: class_id is the label less one, data["class_name"] its name.

        The masks are a `CompactMask`: run lengths around the boxes, never a stack of images.
        Raises UserError where a label has no name, or the package supervision is missing.
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError:
            raise UserError(
                "detections for supervision need the package supervision, which is not installed: "
                'pip install "parhelion[detection]"'
            ) from None
        import numpy as np

        names = self.names(class_names)
        return Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy() - 1,
            mask=None if self.masks is None else self._compact_mask(self.masks),
            data={"class_name": np.array(names, dtype=str)},
        )

    def _compact_mask(self, masks: Tensor) -> CompactMask:
        import numpy as np
        from supervision import CompactMask

        runs, corners = [], np.zeros((len(self), 4))
        for number, (mask, box) in enumerate(zip(masks, self.boxes, strict=True)):
            small = patch(mask, box, self.size)
            runs.append({"size": list(self.size), "counts": run_lengths(small, self.size)})
            rows, cols = small.pixels.shape
            # The last row and column included. Not the box itself: rounding lets a mask stand out of it.
            corners[number] = small.left, small.top, small.left + cols - 1, small.top + rows - 1
        return CompactMask.from_coco_rle(runs, corners, self.size)

    def _of_labels(self, known: Sequence[T], what: str) -> list[T]:
        wrong = self.labels[(self.labels < 1) | (self.labels > len(known))].tolist()
        if wrong:
            count = len(known)
            raise UserError(
                f"a detection has the label {wrong[0]}, but the {count} {what} stand for labels 1 to {count}"
            )
        return [known[label - 1] for label in self.labels.tolist()]

    def _where(self, kept: Tensor) -> Found:
        return replace(
            self,
            boxes=self.boxes[kept],
            labels=self.labels[kept],
            scores=self.scores[kept],
            masks=None if self.masks is None else self.masks[kept],
        )


def truth(
    image_id: int, size: tuple[int, int], boxes: Tensor, labels: Tensor, masks: Iterable[Tensor] | None = None
) -> Found:
    """The true instances of an image of `size` (h, w) as if a detector had found them with score 1.

    masks: (h, w) of each instance, of the image as it is or scaled; read one at a time.
    """
    return Found(
        image_id=image_id,
        size=size,
        boxes=boxes.float(),
        labels=labels,
        scores=torch.ones(len(boxes)),
        masks=None if masks is None else _in_boxes(masks, boxes.float(), size),
    )


def _in_boxes(masks: Iterable[Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
    from torchvision.ops import roi_align

    # One mask at a time: as floats they are four times the size that they were given in.
    side, (h, w) = (TRUE_MASK_PX, TRUE_MASK_PX), size
    parts = []
    for mask, box in zip(masks, boxes, strict=True):
        factors = torch.tensor([mask.shape[1] / w, mask.shape[0] / h] * 2)
        parts.append(roi_align(mask[None, None].float(), [(box * factors)[None]], side)[0, 0])
    return torch.stack(parts) if parts else torch.zeros(0, *side)
