"""Class names and probabilities for image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from parhelion.data.images import BadImage, open_image
from parhelion.data.transforms import eval_transform
from parhelion.errors import UserError
from parhelion.evaluate.saved import Classifier


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, most probable first."""

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def check_images(paths: Sequence[Path]) -> None:
    """Raise UserError for the first of `paths` that is no file, before any costly work."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name image files, for example {path}/*.jpg")
        if not path.exists():
            raise UserError(f"there is no image {path}")


def predictions(
    classifier: Classifier,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch: int = 64,
    on_bad_image: Literal["refuse", "skip"] = "refuse",
) -> Iterator[Prediction | BadImage]:
    """The `top` classes of each image of `paths`, in order, computed `batch` images at a time.

    An unreadable image raises BadImage, or with "skip" comes out as the BadImage in its place.
    """
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be at least 1")
    check_images(paths)
    transform = eval_transform(classifier.preprocessing)
    for start in range(0, len(paths), batch):
        group = paths[start : start + batch]
        opened = [_opened(path, classifier.preprocessing.in_chans, on_bad_image) for path in group]
        images = [transform(image) for image in opened if not isinstance(image, BadImage)]
        rows = iter(_probable(classifier, images, top))
        for path, image in zip(group, opened, strict=True):
            yield image if isinstance(image, BadImage) else _prediction(classifier, path, *next(rows))


def _opened(path: Path, in_chans: int, on_bad_image: str) -> Image | BadImage:
    try:
        return open_image(path, in_chans)
    except BadImage as error:
        if on_bad_image == "refuse":
            raise
        return error


def _probable(classifier: Classifier, images: list[Tensor], top: int) -> list[tuple[Tensor, Tensor]]:
    if not images:
        return []
    device = next(classifier.model.parameters()).device
    with torch.inference_mode():
        logits = classifier.model(torch.stack(images).to(device)).float()
    probability, index = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
    return list(zip(probability.cpu(), index.cpu(), strict=True))


def _prediction(classifier: Classifier, path: Path, probability: Tensor, index: Tensor) -> Prediction:
    return Prediction(
        image=str(path),
        classes=tuple(classifier.class_names[i] for i in index.tolist()),
        probabilities=tuple(probability.tolist()),
    )
