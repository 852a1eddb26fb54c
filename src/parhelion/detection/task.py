"""Detection: a recipe's images, its network, how it is scored, and the pictures of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
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
from parhelion.detection.album import CURVES, SHEET, draw_sheet
from parhelion.detection.initial import initialise_detector
from parhelion.detection.plots import detection_curves
from parhelion.detection.recipe import DetectionRecipe
from parhelion.detection.saved import Detector, built, save_detector
from parhelion.errors import UserError
from parhelion.models.adapt import Adaptation
from parhelion.runs import trainer
from parhelion.runs.images import check_same_images, choices_in_words, this_process, until_stopped
from parhelion.runs.lone_images import Size
from parhelion.train import loop, parallel
from parhelion.train.stopping import StopRequest

# Of so many images headers take seconds, of which a user should hear.
MANY = 10_000


def train(  # noqa: PLR0913  every argument is the user's choice
    recipe: DetectionRecipe,
    *,
    data: str,
    out: str | Path,
    data_dir: Path | None = None,
    download: bool = False,
    init_from: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train `recipe` on the images of `data`, `coco:DIR`, and leave weights, metrics and pictures in the folder `out`.

    init_from: Weights to start from: what `classification.task.train` takes, for the backbone; a run of detection; or
        `torchvision:NAME`, see `detection.initial`.

    The other arguments, what is promised and what is raised are as in `classification.task.train`. Returns model,
    source, params, train_images, val_images, epochs, seconds, COCO's numbers after the last epoch (box_ap, ...,
    mask_ap, ...), and out. As proposals are sampled at random in each process, losses depend on how many there are.
    """
    if data_dir is not None or download:
        raise UserError("data_dir and download are for named sources of classification; detection reads coco:DIR")
    request = trainer.Request(data=data, out=Path(out), init_from=init_from, resume=resume, track=track, quiet=quiet)
    return trainer.run(recipe, request, lambda: Detection(recipe, request))


def rcnn_losses(model: nn.Module, batch: loop.Batch) -> dict[str, Tensor]:
    """The losses of torchvision's R-CNNs: of proposals, boxes, classes and, for Mask R-CNN, masks."""
    losses: dict[str, Tensor] = model(batch["image"], batch["target"])
    return losses


class Detection(trainer.Task):
    """One detection run."""

    last_picture = SHEET

    def __init__(self, recipe: DetectionRecipe, request: trainer.Request) -> None:
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
        assert self.source.train is not None
        assert self.source.val is not None
        self.train_images: CocoImages = self.source.train
        self.val_images: CocoImages = self.source.val
        self.counts = [object_counts(images) for images in (self.train_images, self.val_images)]
        for counts, purpose in zip(self.counts, ("to learn", "to score what is found against"), strict=True):
            counts.require_objects(purpose)
        self.title = f"{recipe.model} on {self.source.name}"
        self._detector: Detector | None = None
        self._val_loader: DataLoader[Any] | None = None

    @property
    def detector(self) -> Detector:
        """The network with all that is needed to use it."""
        if self._detector is None:
            recipe, arguments = self.recipe, self.recipe.detector(len(self.source.class_names))
            with choices_in_words(recipe):
                model = built(arguments, drop_path=recipe.drop_path)
            self._detector = Detector(
                # Convolutions are faster on channels-last maps, and attention reads them as they are.
                model=model.to(memory_format=torch.channels_last),
                arguments=arguments,
                class_names=self.source.class_names,
                category_ids=self.source.category_ids,
                exif=recipe.exif,
                metrics={},
            )
        return self._detector

    def check_images(
        self, begun: Mapping[str, Any], now: Mapping[str, Any], accelerator: Accelerator, note: Callable[[str], None]
    ) -> None:
        check_same_images(begun, now, self.source.name, note)
        for name in ("category_ids", "annotations"):
            if begun.get(name, now[name]) != now[name]:
                raise UserError(
                    f"the run was begun with other annotations than those of {self.source.name}: {name} was "
                    f"{begun[name]} and is {now[name]}; resume with those it was begun with, or start another run"
                )
        for images in (self.train_images, self.val_images):
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

    def images(self, accelerator: Accelerator) -> Mapping[str, Any]:
        return {
            "train_images": len(self.train_images),
            "class_names": list(self.source.class_names),
            "category_ids": list(self.source.category_ids),
            "annotations": len(self.train_images.annotation_ids),
            "readers": None,
            "digest": digest(self.train_images),
        }

    def build(self) -> nn.Module:
        return self.detector.model

    def initialise(self, spec: str) -> Adaptation:
        return initialise_detector(self.detector.model, spec, class_names=self.source.class_names)

    def backbone(self, model: nn.Module) -> nn.Module:
        return cast("nn.Module", model.backbone)

    def padded(self, size: Size) -> Size:
        # As torchvision pads a batch, so that every map is half as large as the one before.
        step = cast("Any", self.detector.model).transform.size_divisible
        h, w = (-(-side // step) * step for side in size)
        return h, w

    def train_loader(self, accelerator: Accelerator) -> DataLoader[Any]:
        recipe = self.recipe
        return make_detection_loader(
            self.train_images,
            detection_train_transform(recipe.augmentation(), masks=recipe.masks),
            batch=recipe.batch,
            train=True,
            workers=recipe.workers,
            seed=recipe.seed,
            on_bad_image=recipe.on_bad_image,
            share=Share(parts=recipe.accumulate, **this_process(accelerator)),
        )

    def told(self) -> Sequence[str]:
        of_val = self.counts[-1].too_full(self.recipe.max_found)
        return [*(counts.text() for counts in self.counts), *([of_val] if of_val else [])]

    def losses(self) -> loop.Losses:
        return rcnn_losses

    def use(self, model: nn.Module) -> None:
        self._detector = replace(self.detector, model=model)

    def evaluate(self, epoch: int, accelerator: Accelerator, stop: StopRequest) -> trainer.Scores:
        model = self.detector.model
        if self._val_loader is None:
            self._val_loader = self._new_val_loader(accelerator)
        if accelerator.num_processes > 1:
            # Without synchronised statistics each process has its own averages; those of the first are saved.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
        with parallel.agreed(accelerator):
            found = scores.results(model, until_stopped(self._val_loader, stop), self.source.category_ids)
        if accelerator.num_processes > 1:
            parts = gather_object([found])
            found = sum_of(parts)
        metrics = found.scores(self.val_images, masks=self.recipe.masks, most=self.recipe.max_found).metrics()
        self._detector = replace(self.detector, epoch=epoch, metrics=metrics)
        return trainer.Scores(values=metrics, skipped=tuple(found.skipped))

    def save(self, path: Path) -> None:
        save_detector(path, self.detector)

    def line(self, row: Mapping[str, Any]) -> str:
        kinds = ("box", "mask") if self.recipe.masks else ("box",)
        return "  ".join(
            f"{kind} AP {100 * row[f'{kind}_ap']:.2f}%  AP50 {100 * row[f'{kind}_ap50']:.2f}%" for kind in kinds
        )

    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        detection_curves(rows, out / CURVES, self.title)
        draw_sheet(self.detector, self.val_images, out / SHEET, self.title)

    def result(self) -> dict[str, Any]:
        return {
            "model": self.recipe.model,
            "source": self.source.name,
            "params": sum(parameter.numel() for parameter in self.detector.model.parameters()),
            "train_images": len(self.train_images),
            "val_images": len(self.val_images),
            "epochs": self.detector.epoch,
            **self.detector.metrics,
        }

    def _new_val_loader(self, accelerator: Accelerator) -> DataLoader[Any]:
        recipe = self.recipe
        return make_detection_loader(
            self.val_images,
            detection_eval_transform(),
            # As many at once as one process trains on at once.
            batch=max(1, recipe.batch // (recipe.accumulate * accelerator.num_processes)),
            train=False,
            workers=recipe.workers,
            on_bad_image=recipe.on_bad_image,
            share=Share(**this_process(accelerator)),
        )


def sum_of(parts: Sequence[scores.Results]) -> scores.Results:
    """What several processes found together, in the order of the images' ids."""
    together = scores.Results()
    for part in parts:
        together += part
    together.entries.sort(key=lambda entry: entry["image_id"])
    return together
