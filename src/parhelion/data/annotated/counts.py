"""What is annotated in a data set for detection, counted: images, objects, classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.samples import few
from parhelion.errors import UserError

# Classes that are all listed; of more than that some of the most and some of the least frequent.
LISTED, FEWEST = 10, 3


@dataclass(frozen=True, kw_only=True)
class ObjectCounts:
    """What one annotation file holds; crowds are no objects."""

    file: Path
    images: int
    empty: int
    """Images without objects."""
    crowds: int
    left_out: str | None
    """What of it cannot be used, and what could be done about it, in words."""
    fullest: int
    """Objects in the image that has most of them."""
    of_class: dict[str, int]
    """Objects of each class, in the order of their labels; where two share a name, every name has its id behind it."""

    @property
    def objects(self) -> int:
        """Objects of all classes."""
        return sum(self.of_class.values())

    def text(self) -> str:
        """One line."""
        crowds = f", {self.crowds} crowd{'s' if self.crowds > 1 else ''}" if self.crowds else ""
        return (
            f"{self.file}: {self.images} images, {self.empty} of them without objects; {self.objects} objects of "
            f"{len(self.of_class)} classes{crowds}: {self._classes()}"
        )

    def _classes(self) -> str:
        if len(self.of_class) <= LISTED:
            return ", ".join(f"{name} {count}" for name, count in self.of_class.items())
        none = [name for name, count in self.of_class.items() if not count]
        ranked = sorted(self.of_class.items(), key=lambda item: -item[1])[: len(self.of_class) - len(none)]
        shown = [f"{name} {count}" for name, count in ranked]
        if len(shown) > LISTED:
            shown = [*shown[: LISTED - FEWEST], "...", *shown[-FEWEST:]]
        return ", ".join(shown) + (f"; none of {few(none)}" if none else "")

    def require_objects(self, purpose: str) -> None:
        """Raise UserError where there is no object; `purpose` says what they are needed for, in words."""
        if not self.objects:
            crowds = f"its {self.crowds} annotations are crowds" if self.crowds else ""
            raise UserError(
                f"{self.file} has no annotated object {purpose}: {self.left_out or crowds or 'it has no annotations'}"
            )

    def too_full(self, most: int) -> str | None:
        """A sentence where an image has more objects than the `most` that are found in it."""
        if self.fullest <= most:
            return None
        return (
            f"an image of {self.file} has {self.fullest} objects, but at most {most} are found in one; "
            f"--max-found {self.fullest} finds and scores more"
        )


def object_counts(images: CocoImages) -> ObjectCounts:
    """The counts of `images`."""
    objects = ~images.crowd
    of_image = np.repeat(np.arange(len(images)), np.diff(images.starts))
    per_image = np.bincount(of_image[objects], minlength=len(images))
    per_class = np.bincount(images.labels[objects] - 1, minlength=len(images.class_names)).tolist()
    names = distinct_names(images.class_names, images.category_ids)
    return ObjectCounts(
        file=images.file,
        images=len(images),
        empty=int((per_image == 0).sum()),
        crowds=int(images.crowd.sum()),
        left_out=left_out + images.report.hint if (left_out := images.report.described()) else None,
        fullest=int(per_image.max(initial=0)),
        of_class=dict(zip(names, per_class, strict=True)),
    )


def distinct_names(names: Sequence[str], identifiers: Sequence[int]) -> list[str]:
    """The names of classes, each with its id behind it where two share one."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name} (id {identifier})" for name, identifier in zip(names, identifiers, strict=True)]
