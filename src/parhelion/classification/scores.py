"""Scores of a classifier, and the compact outcome for each image that pictures are drawn from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.runs.images import nothing_to_evaluate
from parhelion.shapes import Float

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a classifier said of each image, without the logits of a thousand classes.

    k is 5, or the number of classes where there are fewer; then top-5 is always right.
    """

    # The k most probable classes, most probable first, (images, k), and their probabilities.
    top: Tensor
    probability: Tensor
    # The true class and the cross entropy, (images,).
    target: Tensor
    loss: Tensor
    # One sentence for each image left out; the others are in the order of the data.
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
        """Images of each true class (row) that were taken for each class (column), (classes, classes)."""
        cells = self.target * classes + self.top[:, 0]
        return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def outcome(model: nn.Module, loader: Iterable[dict[str, Any]], progress: Progress | None = None) -> Outcome:
    """Run `model` over `loader` in evaluation mode, on the device where its parameters are.

    The model goes back to the mode it was in. Deterministic on a CPU. A loader without a readable image, such as that
    of a process that has no share, gives an outcome of none.
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


def run(model: nn.Module, loader: Iterable[dict[str, Any]], progress: Progress | None = None) -> dict[str, float]:
    """The scores of `model` on `loader`: see `Outcome.metrics`."""
    return outcome(model, loader, progress).metrics()


def merged(parts: Sequence[Outcome]) -> Outcome:
    """The outcomes of several processes as one; some may have had no image."""
    # What says nothing of any image may have another k.
    telling = [part for part in parts if len(part.target)] or parts[:1]
    return Outcome(
        top=torch.cat([part.top for part in telling]),
        probability=torch.cat([part.probability for part in telling]),
        target=torch.cat([part.target for part in telling]),
        loss=torch.cat([part.loss for part in telling]),
        skipped=tuple(sentence for part in parts for sentence in part.skipped),
    )


def _judged(logits: Float[Tensor, "images classes"], target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    probability, top = logits.softmax(dim=1).topk(min(TOP, logits.shape[1]), dim=1)
    return top, probability, target, nn.functional.cross_entropy(logits, target, reduction="none")
