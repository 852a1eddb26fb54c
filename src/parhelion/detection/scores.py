"""What a detector finds in images, and how that is scored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.annotated.headers import refuse_misfits
from parhelion.data.annotated.loaders import make_detection_loader
from parhelion.data.annotated.transforms import detection_eval_transform
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.detection.coco_scores import MOST, CocoScores, coco_scores
from parhelion.detection.detections import Found
from parhelion.detection.saved import Detector
from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.runs.images import check_classes, nothing_to_evaluate


@dataclass
class Results:
    """What was found in some images, as COCO's results, and a sentence for each image left out."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __iadd__(self, other: "Results") -> "Results":
        self.entries += other.entries
        self.image_ids += other.image_ids
        self.skipped += other.skipped
        return self

    def scores(self, images: CocoImages, *, masks: bool, most: int = MOST[-1]) -> CocoScores:
        """COCO's numbers over the images that were looked at, see `coco_scores`; UserError where that is none."""
        if not self.image_ids:
            raise UserError(nothing_to_evaluate(self.skipped))
        return coco_scores(only(images.ground_truth(), self.image_ids), self.entries, masks=masks, most=most)


def found_in(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Found, ...]]:
    """What `model` finds in each image of each batch of an evaluation loader; the model is left as it was."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            with torch.inference_mode():
                answers = model([image.to(device) for image in batch["image"]]) if batch["image"] else []
            yield tuple(
                Found(
                    image_id=int(target["image_id"]),
                    size=(int(target["size"][0]), int(target["size"][1])),
                    **{name: tensor.cpu() for name, tensor in answer.items()},
                )
                for answer, target in zip(answers, batch["target"], strict=True)
            )
    finally:
        model.train(was_training)


def results(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    category_ids: Sequence[int],
    progress: Progress | None = None,
) -> Results:
    """What `model` finds, as COCO's results; `progress` hears of every batch."""
    collected = Results()

    def noted() -> Iterator[Mapping[str, Any]]:
        for batch in batches:
            collected.skipped += batch["bad"]
            yield batch

    for found in found_in(model, noted()):
        for one in found:
            collected.entries += one.results(category_ids)
            collected.image_ids.append(one.image_id)
        if progress is not None:
            progress.advance(len(found))
    return collected


def detect(
    detector: Detector,
    images: CocoImages,
    *,
    source: str,
    batch: int,
    workers: int = 0,
    on_bad_image: OnBadImage = "refuse",
    quiet: bool = False,
) -> Results:
    """What `detector` finds in `images`.

    Raises UserError where their classes are not those it was trained for, and before the first image is looked at
    where headers show that some cannot be used (unless they are skipped).
    """
    check_classes(detector.class_names, images.class_names, source)
    if refuses(on_bad_image):
        refuse_misfits(images)
    loader = make_detection_loader(
        images, detection_eval_transform(), batch=batch, train=False, workers=workers, on_bad_image=on_bad_image
    )
    with Progress(len(images), quiet=quiet) as progress:
        return results(detector.model, loader, images.category_ids, progress)


def only(ground_truth: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """`ground_truth` without what is annotated in other images than those of `image_ids`."""
    kept = set(image_ids)
    return {
        **ground_truth,
        "images": [image for image in ground_truth["images"] if image["id"] in kept],
        "annotations": [entry for entry in ground_truth["annotations"] if entry["image_id"] in kept],
    }
