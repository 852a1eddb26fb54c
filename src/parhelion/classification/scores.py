"""What a classifier says of images, and how that is scored: over all images, and class by class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parhelion.classification.saved import Classifier
from parhelion.data.loaders import OnBadImage, make_loader
from parhelion.data.samples import Stream, image_count
from parhelion.data.sources import Source, Split
from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.runs.images import check_classes, nothing_to_evaluate
from parhelion.shapes import Float

TOP = 5
# Of more classes the terminal shows those with the lowest F1, and no confusion matrix.
CLASSES_SHOWN = 40
CLASSES_IN_MATRIX = 12
# The matrix of more classes would take gigabytes, and nobody could read it.
CLASSES_WITH_MATRIX = 2000
HEADINGS = ("class", "precision", "recall", "F1", "images", "most often taken for")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answers of a classifier for each image, without the logits of all classes.

    k is 5, or the number of classes if there are fewer: then top-5 is always right.
    """

    # The k most probable classes, most probable first, (images, k), and their probabilities.
    top: Tensor
    probability: Tensor
    # The true class and the cross entropy, (images,).
    target: Tensor
    loss: Tensor
    # One sentence for each image left out; the rows above are in the order of the data without them.
    skipped: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """loss (mean cross entropy), top1, top5 (shares of images, 0 to 1), images, skipped.

        Raises UserError where there is no image.
        """
        if not len(self.target):
            raise UserError(nothing_to_evaluate(self.skipped))
        right = self.top == self.target[:, None]
        return {
            "loss": self.loss.double().mean().item(),
            "top1": right[:, 0].double().mean().item(),
            "top5": right.any(dim=1).double().mean().item(),
            "images": len(self.target),
            "skipped": len(self.skipped),
        }

    def confusion(self, classes: int) -> Tensor:
        """Images of each true class (row) by predicted class (column), (classes, classes)."""
        cells = self.target * classes + self.top[:, 0]
        return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def outcome(model: nn.Module, loader: Iterable[dict[str, Any]], progress: Progress | None = None) -> Outcome:
    """Run `model` over `loader` in evaluation mode, on the device where its parameters are.

    The model goes back to the mode it was in. Deterministic on a CPU. A loader without a readable image, such as that
    of a process without a share, gives an empty outcome.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts, skipped = [], []
    try:
        with torch.inference_mode():
            for batch in loader:
                skipped += batch.get("bad", [])
                if len(batch["image"]):
                    logits = model(batch["image"].to(device, non_blocking=True)).float()
                    parts.append(_judged(logits, batch["target"].to(device)))
                if progress is not None:
                    progress.advance(len(batch["image"]) + len(batch.get("bad", [])), "evaluating")
    finally:
        model.train(was_training)
    if not parts:
        parts.append(_judged(torch.empty(0, 1), torch.empty(0, dtype=torch.int64)))
    top, probability, target, loss = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return Outcome(top=top, probability=probability, target=target, loss=loss, skipped=tuple(skipped))


def merged(parts: Sequence[Outcome]) -> Outcome:
    """The outcomes of several processes as one; some may have had no image."""
    # An empty outcome may have another k.
    telling = [part for part in parts if len(part.target)] or parts[:1]
    return Outcome(
        top=torch.cat([part.top for part in telling]),
        probability=torch.cat([part.probability for part in telling]),
        target=torch.cat([part.target for part in telling]),
        loss=torch.cat([part.loss for part in telling]),
        skipped=tuple(sentence for part in parts for sentence in part.skipped),
    )


def evaluate(
    classifier: Classifier,
    source: Source,
    *,
    split: Split = "val",
    batch: int = 128,
    workers: int = 0,
    on_bad_image: OnBadImage = "refuse",
    quiet: bool = False,
) -> Outcome:
    """What `classifier` says of each image of a split of `source`.

    Raises UserError where the classes of `source` are not those that the classifier was trained on, and for an
    unreadable image unless these are skipped.
    """
    images = source.images(split)
    if isinstance(images, Stream):
        images = images.in_order()
    check_classes(classifier.class_names, source.class_names, source.name)
    loader = make_loader(
        images,
        classifier.transform,
        # Images of several sizes do not go together.
        batch=1 if classifier.takes_files else batch,
        train=False,
        workers=workers,
        on_bad_image=on_bad_image,
    )
    with Progress(image_count(images), quiet=quiet) as progress:
        return outcome(classifier.model, loader, progress)


def _judged(logits: Float[Tensor, "images classes"], target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    probability, top = logits.softmax(dim=1).topk(min(TOP, logits.shape[1]), dim=1)
    return top, probability, target, nn.functional.cross_entropy(logits, target, reduction="none")


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Precision, recall and F1 of one class; None where there is nothing to divide by."""

    name: str
    # Shares: of the images predicted as this class, those that belong to it; of its images, those predicted as it.
    precision: float | None
    recall: float | None
    # Their harmonic mean; 0 where the class has images or predictions, but no correct one.
    f1: float | None
    images: int
    # The other class that most of its images are mistaken for, and how many of them.
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
    # Images of each true class (row) by predicted class (column); None for more than CLASSES_WITH_MATRIX classes.
    confusion: list[list[int]] | None

    def means(self) -> dict[str, float]:
        """Unweighted means of precision, recall (balanced accuracy) and F1 over the classes that have them."""
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
    """The scores of each class, from the answers of a classifier for each image."""
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
    """For each true class, the class that most of its images are mistaken for, and how many; the first of equals."""
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
    """Rows as lines of columns: the columns `words` aligned on the left, the others, numbers, on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in words else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
