"""Scores of each class of a classifier, and its confusion matrix."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parhelion.classification.scores import Outcome

# Beyond so many classes a terminal shows the worst of them, and no matrix.
CLASSES_SHOWN = 40
CLASSES_IN_MATRIX = 12
# Of more classes a matrix would fill gigabytes, and nobody could read it.
CLASSES_WITH_MATRIX = 2000
HEADINGS = ("class", "precision", "recall", "F1", "images", "most often taken for")


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """How well one class is told from the others; None where nothing is there to divide by."""

    name: str
    # Of the images taken for this class, those that are of it; of its images, those taken for it: shares.
    precision: float | None
    recall: float | None
    # Their harmonic mean: 0 where the class has images or answers, but no right one.
    f1: float | None
    images: int
    # The other class that its images are most often taken for, and how many of them.
    mistaken: tuple[str, int] | None

    def as_dict(self) -> dict[str, Any]:
        """The scores, ready for JSON."""
        shares = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {"class": self.name, **shares, "images": self.images}

    def cells(self) -> tuple[str, ...]:
        """The scores as text, in the order of HEADINGS."""
        shares = (_percent(share) for share in (self.precision, self.recall, self.f1))
        mistaken = f"{self.mistaken[0]} ({self.mistaken[1]})" if self.mistaken else "-"
        return (self.name, *shares, str(self.images), mistaken)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores of all classes, in the order of the classes."""

    scores: tuple[ClassScore, ...]
    # Images of each true class (row) that were taken for each class (column); None of more than CLASSES_WITH_MATRIX.
    confusion: list[list[int]] | None

    def means(self) -> dict[str, float]:
        """Means over the classes, each counting the same: precision, recall and F1 of the classes that have them.

        That of the recall is also called balanced accuracy.
        """
        columns = {
            "mean_precision": [score.precision for score in self.scores],
            "mean_recall": [score.recall for score in self.scores],
            "mean_f1": [score.f1 for score in self.scores],
        }
        known = {name: [share for share in shares if share is not None] for name, shares in columns.items()}
        return {name: sum(shares) / len(shares) for name, shares in known.items()}

    def as_dict(self) -> dict[str, Any]:
        """The means, the scores by class, and the confusion matrix, ready for JSON."""
        # A list, since names may come twice, as ImageNet's do.
        classes = [score.as_dict() for score in self.scores]
        return {**self.means(), "classes": classes, "confusion": self.confusion}

    def text(self) -> str:
        """A table of the classes and, for a few of them, the confusion matrix; of many classes, the worst."""
        means = self.means()
        shown, lines = self.scores, []
        if len(shown) > CLASSES_SHOWN:
            shown = tuple(sorted(shown, key=_badness))[:CLASSES_SHOWN]
            lines.append(f"the {CLASSES_SHOWN} of {len(self.scores)} classes with the lowest F1; --json has all")
        mean = (_percent(means[f"mean_{name}"]) for name in ("precision", "recall", "f1"))
        mean_row = ("mean of the classes", *mean, str(sum(score.images for score in self.scores)), "")
        lines += _aligned([HEADINGS, *(score.cells() for score in shown), mean_row], words=(0, 5))
        if self.confusion is not None and len(self.scores) <= CLASSES_IN_MATRIX:
            lines += ["", *self._matrix(self.confusion)]
        return "\n".join(lines)

    def _matrix(self, confusion: list[list[int]]) -> list[str]:
        names = [score.name for score in self.scores]
        numbers = [str(number) for number in range(1, len(names) + 1)]
        rows = [
            (f"{number} {name}", *map(str, row)) for number, name, row in zip(numbers, names, confusion, strict=True)
        ]
        return _aligned([("true class \\ taken for", *numbers), *rows], words=(0,))


def class_scores(outcome: Outcome, class_names: Sequence[str]) -> ClassScores:
    """The scores of each class that follow from what a classifier said of each image."""
    true, predicted, classes = outcome.target, outcome.top[:, 0], len(class_names)
    right, images, taken = (
        torch.bincount(numbers, minlength=classes).tolist() for numbers in (true[true == predicted], true, predicted)
    )
    wrong = true != predicted
    mistaken = _most_mistaken(Counter(zip(true[wrong].tolist(), predicted[wrong].tolist(), strict=True)))
    scores = [
        ClassScore(
            name=name,
            precision=_share(right[number], taken[number]),
            recall=_share(right[number], images[number]),
            f1=_share(2 * right[number], images[number] + taken[number]),
            images=images[number],
            mistaken=(class_names[mistaken[number][0]], mistaken[number][1]) if number in mistaken else None,
        )
        for number, name in enumerate(class_names)
    ]
    confusion = outcome.confusion(classes).tolist() if classes <= CLASSES_WITH_MATRIX else None
    return ClassScores(scores=tuple(scores), confusion=confusion)


def _most_mistaken(mistakes: Counter[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """By true class the other one that most of its images are taken for, and how many; the first of several."""
    most: dict[int, tuple[int, int]] = {}
    for (true, taken), count in sorted(mistakes.items()):
        if count > most.get(true, (0, 0))[1]:
            most[true] = taken, count
    return most


def _percent(share: float | None) -> str:
    """`share` in percent with two digits; a dash for None."""
    return "-" if share is None else f"{100 * share:.2f}%"


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _badness(score: ClassScore) -> float:
    return 1.0 if score.f1 is None else score.f1


def _aligned(rows: Sequence[Sequence[str]], *, words: Sequence[int]) -> list[str]:
    """Rows as lines of columns; those of `words` on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
