"""Class names and probabilities for image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from parhelion.classification.saved import Classifier
from parhelion.data.image_files import image_files
from parhelion.data.images import BadImage, open_image
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.data.transforms import eval_transform
from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, most probable first."""

    image: str
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

    Of a folder all images below it count, see `image_files`. An unreadable image raises BadImage when its turn comes,
    or with "skip" comes out as the BadImage in its place. Raises UserError.
    """
    refuse = refuses(on_bad_image)
    if top < 1:
        raise UserError(f"top is {top}; it must be at least 1")
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be at least 1")
    files = image_files(paths).files
    transform = eval_transform(classifier.preprocessing)
    for start in range(0, len(files), batch):
        group = files[start : start + batch]
        opened = [_opened(path, classifier.preprocessing.in_chans) for path in group]
        images = [transform(image) for image in opened if not isinstance(image, BadImage)]
        rows = iter(_probable(classifier, images, top))
        for path, image in zip(group, opened, strict=True):
            if isinstance(image, BadImage) and refuse:
                raise image
            yield image if isinstance(image, BadImage) else _prediction(classifier, path, *next(rows))


def _opened(path: Path, in_chans: int) -> Image | BadImage:
    try:
        return open_image(path, in_chans)
    except BadImage as bad:
        return bad.with_traceback(None)


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
