"""Detection: a recipe's images, its network, how it is scored and saved, and the pictures of that."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parhelion.data.annotated.coco import CocoImages, DetectionSource, open_coco
from parhelion.data.annotated.counts import object_counts
from parhelion.data.annotated.headers import described, misfits
from parhelion.data.annotated.loaders import make_detection_loader
from parhelion.data.annotated.transforms import detection_eval_transform, detection_train_transform
from parhelion.data.identity import digest
from parhelion.data.loaders import refuses
from parhelion.data.samples import Share
from parhelion.detection import scores
from parhelion.detection.initial import initialise_detector
from parhelion.detection.plots import CURVES, SHEET, draw_sheet, learning_curves
from parhelion.detection.recipe import DetectionRecipe
from parhelion.detection.saved import Detector, built
from parhelion.detection.scores import Outcome
from parhelion.errors import UserError
from parhelion.runs.lone_images import Size
from parhelion.runs.request import Request
from parhelion.runs.task import Images, Network, Scores, Task, choices_in_words
from parhelion.train import loop

# Reading the headers of so many images takes seconds, of which a user should hear.
MANY = 10_000


class Detection(Task):
    """One detection run."""

    last_picture = SHEET

    def __init__(self, recipe: DetectionRecipe, request: Request) -> None:
        """Open the images of `request`."""
        _check_no_other_source(request)
        self.recipe = recipe
        self.best_by = "mask_ap" if recipe.masks else "box_ap"
        self.source: DetectionSource = open_coco(
            request.data,
            in_chans=recipe.in_chans,
            splits=("train", "val"),
            masks=recipe.masks,
            on_bad_annotation=recipe.on_bad_annotation,
            exif=recipe.exif,
        )
        self.images = _images(recipe, self.source)

    def check_files(self, accelerator: Accelerator, note: Callable[[str], None]) -> None:
        for images in (self._split("train"), self._split("val")):
            for sentence in images.report.notes():
                note(sentence)
            self._check_headers(images, accelerator, note)

    def _check_headers(self, images: CocoImages, accelerator: Accelerator, note: Callable[[str], None]) -> None:
        """Tell or refuse, all at once and before training, the images that their headers show to be of no use."""
        if len(images) > MANY:
            note(f"reading the headers of {len(images)} images of {images.file}")
        found = misfits(images, range(accelerator.process_index, len(images), accelerator.num_processes))
        if accelerator.num_processes > 1:
            found = gather_object(found)
        if found and refuses(self.recipe.on_bad_image):
            raise UserError(described(images, found))
        if found:
            note(f"{described(images, found)}; they are skipped")

    def network(self, init_from: str | None) -> Network:
        recipe = self.recipe
        with choices_in_words(recipe):
            model: Any = built(self._detector_arguments(), drop_path=recipe.drop_path)
        # Convolutions are faster on channels-last maps, and attention reads them as they are.
        model.to(memory_format=torch.channels_last)
        adaptation = None
        if init_from is not None:
            adaptation = initialise_detector(model, init_from, class_names=self.source.class_names)

        def padded(size: Size) -> Size:
            # As torchvision pads a batch, so that every map is half as large as the one before.
            step = model.transform.size_divisible
            h, w = (-(-side // step) * step for side in size)
            return h, w

        return Network(model=model, losses=rcnn_losses, backbone=model.backbone, padded=padded, adaptation=adaptation)

    def loader(self, split: Literal["train", "val"], share: Share) -> DataLoader[Any]:
        recipe = self.recipe
        if split == "train":
            transform, batch = detection_train_transform(recipe.augmentation(), masks=recipe.masks), recipe.batch
        else:
            # As many at once as one process trains on at once.
            batch = max(1, recipe.batch // (recipe.accumulate * share.processes))
            transform = detection_eval_transform()
        return make_detection_loader(
            self._split(split),
            transform,
            batch=batch,
            train=split == "train",
            workers=recipe.workers,
            seed=recipe.seed if split == "train" else 0,
            on_bad_image=recipe.on_bad_image,
            share=share,
        )

    def outcome(self, model: nn.Module, batches: Iterable[loop.Batch]) -> Outcome:
        return scores.outcome(model, batches, self.source.category_ids)

    def scores(self, outcomes: Sequence[Outcome], epoch: int) -> Scores:
        found = outcomes[0] if len(outcomes) == 1 else scores.merged(outcomes)
        recipe = self.recipe
        metrics = found.scores(self._split("val"), masks=recipe.masks, most=recipe.max_found).metrics()
        kinds = ("box", "mask") if recipe.masks else ("box",)
        line = "  ".join(
            f"{kind} AP {100 * metrics[f'{kind}_ap']:.2f}%  AP50 {100 * metrics[f'{kind}_ap50']:.2f}%" for kind in kinds
        )
        return Scores(metrics=metrics, row=metrics, line=line, skipped=tuple(found.skipped))

    def save(self, path: Path, model: nn.Module, *, epoch: int, metrics: Mapping[str, float]) -> None:
        self._detector(model, epoch=epoch, metrics=metrics).save(path)

    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]], model: nn.Module, outcome: Outcome | None) -> None:
        title = f"{self.recipe.model} on {self.source.name}"
        learning_curves(rows, out / CURVES, title)
        draw_sheet(self._detector(model), self._split("val"), out / SHEET, title)

    def _split(self, split: Literal["train", "val"]) -> CocoImages:
        images = self.source.train if split == "train" else self.source.val
        return cast("CocoImages", images)

    def _detector(self, model: nn.Module, *, epoch: int = 0, metrics: Mapping[str, float] | None = None) -> Detector:
        return Detector(
            model=model,
            arguments=self._detector_arguments(),
            class_names=self.source.class_names,
            category_ids=self.source.category_ids,
            exif=self.recipe.exif,
            epoch=epoch,
            metrics=metrics or {},
        )

    def _detector_arguments(self) -> dict[str, Any]:
        return self.recipe.detector(len(self.source.class_names))


def _check_no_other_source(request: Request) -> None:
    """Raise UserError where an option of `request` is for sources of classification."""
    given = {
        "data_dir": request.data_dir is not None,
        "download": request.download,
        "val_share": request.val_share is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"{name} is for sources of classification; detection reads coco:DIR")


def rcnn_losses(model: nn.Module, batch: loop.Batch) -> dict[str, Tensor]:
    """The losses of torchvision's R-CNNs: of proposals, boxes, classes and, for Mask R-CNN, masks."""
    losses: dict[str, Tensor] = model(batch["image"], batch["target"])
    return losses


def _images(recipe: DetectionRecipe, source: DetectionSource) -> Images:
    """Raises UserError where there is no object to learn, or to score against."""
    assert source.train is not None
    assert source.val is not None
    to_learn, to_score = (object_counts(images) for images in (source.train, source.val))
    to_learn.require_objects("to learn")
    to_score.require_objects("to score what is found against")
    too_full = to_score.too_full(recipe.max_found)
    return Images(
        source=source.name,
        facts={
            "train_images": len(source.train),
            "class_names": list(source.class_names),
            "category_ids": list(source.category_ids),
            "annotations": len(source.train.annotation_ids),
            "readers": None,
            "digest": digest(source.train),
        },
        val_images=len(source.val),
        notes=(to_learn.text(), to_score.text(), *([too_full] if too_full else [])),
    )
