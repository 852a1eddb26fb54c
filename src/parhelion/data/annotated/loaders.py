"""Batches of images of different sizes with what is annotated in them."""

from functools import partial
from typing import TypeAlias, TypedDict

from torch import Tensor
from torch.utils.data import DataLoader

from parhelion.data.annotated.coco import CocoImages, DetectionSample
from parhelion.data.annotated.transforms import DetectionTransform, Target
from parhelion.data.images import BadImage
from parhelion.data.loaders import OnBadImage, build_loader, refuses
from parhelion.data.samples import Share

Ready: TypeAlias = tuple[tuple[Tensor, Target] | BadImage, str]


class DetectionBatch(TypedDict):
    """What a loader yields; the first three have the same length, 0 when every image of the batch was bad."""

    image: list[Tensor]
    """(C, h, w) float32 in 0..1 each, of any sizes."""
    target: list[Target]
    """As the transform makes them."""
    name: list[str]
    bad: list[str]
    """One sentence per unreadable image that was left out."""


def make_detection_loader(
    samples: CocoImages,
    transform: DetectionTransform,
    *,
    batch: int,
    train: bool,
    workers: int = 0,
    seed: int = 0,
    on_bad_image: OnBadImage = "refuse",
    share: Share | None = None,
) -> DataLoader:
    """A DataLoader of `DetectionBatch`; everything else is as in `loaders.make_loader`."""
    return build_loader(
        samples,
        partial(_transformed, transform=transform),
        partial(_collate, refuse=refuses(on_bad_image)),
        batch=batch,
        train=train,
        workers=workers,
        seed=seed,
        share=share,
    )


def _transformed(sample: DetectionSample, transform: DetectionTransform) -> Ready:
    image, instances, name = sample
    return (image if isinstance(image, BadImage) else transform(image, instances)), name


def _collate(samples: list[Ready], *, refuse: bool) -> DetectionBatch:
    bad = [ready for ready, _ in samples if isinstance(ready, BadImage)]
    if bad and refuse:
        raise bad[0]
    good = [(*ready, name) for ready, name in samples if not isinstance(ready, BadImage)]
    return DetectionBatch(
        image=[image for image, _, _ in good],
        target=[target for _, target, _ in good],
        name=[name for _, _, name in good],
        bad=[str(sentence) for sentence in bad],
    )
