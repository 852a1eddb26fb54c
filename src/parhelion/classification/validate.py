"""A saved classifier against the images of a source."""

from typing import Literal

from parhelion.classification.saved import Classifier
from parhelion.classification.scores import Outcome, outcome
from parhelion.data.loaders import make_loader
from parhelion.data.samples import Stream, image_count
from parhelion.data.sources import Source, Split
from parhelion.data.transforms import eval_transform
from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.runs.images import check_classes


def validate(
    classifier: Classifier,
    source: Source,
    *,
    split: Split = "val",
    batch: int = 128,
    workers: int = 0,
    on_bad_image: Literal["refuse", "skip"] = "refuse",
    quiet: bool = False,
) -> Outcome:
    """What `classifier` says of the images of a split of `source`, of each once.

    Raises UserError where the source's classes are not those the classifier was trained for.
    """
    for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    images = source.images(split)
    if isinstance(images, Stream):
        images = images.in_order()
    check_classes(classifier.class_names, source.class_names, source.name)
    loader = make_loader(
        images,
        eval_transform(classifier.preprocessing),
        batch=batch,
        train=False,
        workers=workers,
        on_bad_image=on_bad_image,
    )
    with Progress(image_count(images), quiet=quiet) as progress:
        return outcome(classifier.model, loader, progress)
