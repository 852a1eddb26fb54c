"""A saved classifier against the images of a source."""

from collections.abc import Sequence, Sized
from typing import Literal, cast

from torch.utils.data import Dataset

from parhelion.data.loaders import make_loader
from parhelion.data.samples import Stream, few
from parhelion.data.sources import Sample, Source, Split
from parhelion.data.transforms import eval_transform
from parhelion.errors import UserError
from parhelion.evaluate.classify import Outcome, outcome
from parhelion.evaluate.saved import Classifier
from parhelion.train.progress import Progress

# So many classes are named where classes differ.
NAMED = 50


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


def image_count(samples: Dataset[Sample] | None) -> int:
    """Images in one split of a source; 0 for a split that was not opened."""
    # torch's Dataset promises no length; those of a source have one.
    return 0 if samples is None else len(cast("Sized", samples))


def _only(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def check_classes(trained: Sequence[str], given: Sequence[str], source: str) -> None:
    """Raise UserError where the classes of `source` are not those that were trained, in the same order."""
    if len(trained) != len(given):
        lacking, extra = (_only(names, others) for names, others in ((trained, given), (given, trained)))
        clauses = [f"{few(lacking, NAMED)} missing (a folder of a class may be empty)"] if lacking else []
        clauses += [f"{few(extra, NAMED)} not known to the checkpoint"] if extra else []
        details = "; ".join(clauses) or "some have the same name"
        raise UserError(f"the checkpoint knows {len(trained)} classes, but {source} has {len(given)}: {details}")
    for number, (ours, theirs) in enumerate(zip(trained, given, strict=True)):
        if ours != theirs:
            raise UserError(
                f"class {number} of the checkpoint is {ours!r}, but in {source} it is {theirs!r}; "
                "the classes must have the same names in the same order"
            )
