"""Class names and probabilities for image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parhelion.classification.saved import Classifier
from parhelion.data.image_files import image_files
from parhelion.data.images import BadImage, try_open_image
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image file, most probable first."""

    path: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predictions(
    classifier: Classifier,
    paths: Sequence[Path],
    *,
    top: int = 5,
    batch: int = 64,
    on_bad_image: OnBadImage = "refuse",
) -> Iterator[Prediction | BadImage]:
    """The `top` classes of each image of `paths`, in order, computed `batch` images at a time.

    A folder stands for all images below it, see `image_files`. An unreadable image raises BadImage when its turn comes;
    with "skip" the BadImage comes out in its place. Raises UserError.
    """
    refuse = refuses(on_bad_image)
    for name, value in (("top", top), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    files = image_files(paths).files
    transform = classifier.transform
    if classifier.takes_files:
        # Images of several sizes do not go together.
        batch = 1
    for start in range(0, len(files), batch):
        group = files[start : start + batch]
        opened = [try_open_image(path, classifier.preprocessing.in_chans) for path in group]
        ranked = iter(
            _ranked(classifier, [transform(image) for image in opened if not isinstance(image, BadImage)], top)
        )
        for path, image in zip(group, opened, strict=True):
            if not isinstance(image, BadImage):
                classes, probabilities = next(ranked)
                yield Prediction(path=path, classes=classes, probabilities=probabilities)
            elif refuse:
                raise image
            else:
                yield image


def _ranked(classifier: Classifier, images: list[Tensor], top: int) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The names and probabilities of the `top` classes of each image."""
    if not images:
        return []
    device = next(classifier.model.parameters()).device
    with torch.inference_mode():
        logits = classifier.model(torch.stack(images).to(device)).float()
    probability, index = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
    return [
        (tuple(classifier.class_names[number] for number in numbers), tuple(shares))
        for numbers, shares in zip(index.tolist(), probability.tolist(), strict=True)
    ]
