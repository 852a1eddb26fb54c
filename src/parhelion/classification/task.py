"""Classification: a recipe's images, its network, how it is scored, and the pictures of that."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parhelion.classification import album, scores
from parhelion.classification.ingredients import check_some_images, image_facts, train_loader, untrained, val_loader
from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.saved import Classifier, save_classifier
from parhelion.data.balance import class_numbers, class_weights
from parhelion.data.samples import Share, image_count
from parhelion.data.sources import Source, open_source
from parhelion.data.sources.folders import FolderImages
from parhelion.data.sources.held_out import HELD_OUT, check_same, record
from parhelion.errors import UserError
from parhelion.models.adapt import Adaptation
from parhelion.models.count import multiply_adds
from parhelion.models.resnet import ResNet
from parhelion.runs import trainer
from parhelion.runs.images import check_same_images, this_process, until_stopped
from parhelion.runs.initial import initialise
from parhelion.train import loop, parallel
from parhelion.train.stopping import StopRequest


def train(  # noqa: PLR0913  every argument is the user's choice
    recipe: ClassificationRecipe,
    *,
    data: str,
    out: str | Path,
    data_dir: Path | None = None,
    download: bool = False,
    val_share: float | None = None,
    init_from: str | None = None,
    resume: bool = False,
    track: Sequence[str] = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Train `recipe` on the source `data` and leave recipe, metrics, weights and pictures in the folder `out`.

    val_share: Share of each class to hold out and validate on, of a folder that holds the class folders itself; which
        images these are is kept in held_out.json.
    init_from: Weights to start from: a run, a .safetensors file, hf-hub:OWNER/NAME or timm:NAME; what was loaded,
        adapted and dropped is printed, and kept in init.json.
    resume: Go on with the run in `out`, from its last good checkpoint; where `out` holds none, begin one.
    track: `tensorboard`, `wandb`: where the metrics go besides the folder.

    Returns model, source, params, multiply_adds, train_images, val_images, epochs, seconds (of this process's part
    of the loop with its evaluations), the last epoch's loss, top1 and top5 (shares), and out. The weights are those of
    the last complete epoch at any time. Two runs of one recipe on a CPU give identical metrics but for the times,
    whether or not one was interrupted. Under torchrun every process calls this; only the first writes.

    Raises UserError for whatever the user can mend, before `out` is made where that can be known by then; Stopped
    after Ctrl-C or SIGTERM, when a checkpoint is saved.
    """
    request = trainer.Request(
        data=data,
        out=Path(out),
        data_dir=data_dir,
        download=download,
        val_share=val_share,
        init_from=init_from,
        resume=resume,
        track=track,
        quiet=quiet,
    )
    return trainer.run(recipe, request, lambda: Classification(recipe, request))


def cross_entropy(recipe: ClassificationRecipe, classes: int, weights: Tensor | None = None) -> loop.Losses:
    """The cross entropy of a batch's images, perhaps mixed, against their targets: its mean over the images.

    weights: What an image of each class counts, (classes,): the mean of weight * cross entropy. The weight of a mixed
        image is that of its classes by their shares. Label smoothing does not change it, so that each image is still
        told the same target; torch would weigh every class of a target instead, which tells an image of a frequent
        class that it is probably one of a rare one.
    """
    smoothing = recipe.label_smoothing
    mix = None
    if recipe.mixup or recipe.cutmix:
        mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=smoothing, num_classes=classes)

    def losses(model: nn.Module, batch: loop.Batch) -> dict[str, Tensor]:
        images, targets = batch["image"], batch["target"]
        if mix is not None:
            images, targets = _mixed(mix, images, targets)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        smoothed = smoothing if mix is None else 0.0
        if weights is None:
            return {"cross_entropy": nn.functional.cross_entropy(logits, targets, label_smoothing=smoothed)}
        each = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothed, reduction="none")
        return {"cross_entropy": (_image_weights(weights.to(each.device), targets, smoothing) * each).mean()}

    return losses


def _image_weights(weights: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """What each image counts, (B,), by its class, (B,), or by its smoothed shares of all classes, (B, classes)."""
    if targets.ndim == 1:
        return weights[targets]
    shares = (targets - smoothing / len(weights)) / (1 - smoothing)
    return shares @ weights


def _mixed(mix: Mixup, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The images mixed in pairs, and the targets as probabilities; an odd one out stays as it is."""
    even = len(images) // 2 * 2
    alone = mixup_target(targets[even:], mix.num_classes, smoothing=mix.label_smoothing)
    if not even:
        return images, alone
    mixed, soft = mix(images[:even], targets[:even])
    return torch.cat([mixed, images[even:]]), torch.cat([soft, alone])


class Classification(trainer.Task):
    """One classification run."""

    best_by = "top1"
    last_picture = album.SHEET

    def __init__(self, recipe: ClassificationRecipe, request: trainer.Request) -> None:
        self.recipe = recipe
        self.source: Source = open_source(
            request.data,
            data_dir=request.data_dir,
            download=request.download,
            in_chans=recipe.in_chans,
            val_share=request.val_share,
        )
        self._val_share = request.val_share
        begun = request.out / HELD_OUT
        if request.resume and request.val_share is not None and begun.is_file():
            check_same(cast("FolderImages", self.source.images("val")), begun)
        self.title = f"{recipe.model} on {self.source.name}"
        self._classifier: Classifier | None = None
        self._val_loader: DataLoader[Any] | None = None
        # Of the last evaluation, where this process looked at all images in the order of the data.
        self._whole: scores.Outcome | None = None

    @property
    def classifier(self) -> Classifier:
        """The network with all that is needed to use it."""
        if self._classifier is None:
            self._classifier = untrained(self.recipe, self.source)
        return self._classifier

    def check_images(
        self, begun: Mapping[str, Any], now: Mapping[str, Any], accelerator: Accelerator, note: Callable[[str], None]
    ) -> None:
        check_some_images(self.source)
        check_same_images(begun, now, self.source.name, note)

    def images(self, accelerator: Accelerator) -> Mapping[str, Any]:
        return image_facts(self.recipe, self.source, accelerator)

    def images_line(self) -> str | None:
        return self.source.line()

    def image_files(self) -> Mapping[str, Any]:
        if self._val_share is None:
            return {}
        return {HELD_OUT: record(cast("FolderImages", self.source.images("val")), self._val_share)}

    def build(self) -> ResNet:
        return cast("ResNet", self.classifier.model)

    def initialise(self, spec: str) -> Adaptation:
        ours, images = self.classifier, self.classifier.preprocessing
        return initialise(ours.model, spec, class_names=ours.class_names, normalised=(images.mean, images.std))

    def train_loader(self, accelerator: Accelerator) -> DataLoader[Any]:
        return train_loader(self.recipe, self.source, accelerator)

    def losses(self) -> loop.Losses:
        classes, weights = len(self.source.class_names), None
        if self.recipe.class_weights == "balanced":
            samples = self.source.images("train")
            weights = class_weights(class_numbers(samples, source=self.source.name, field="class_weights"), classes)
        return cross_entropy(self.recipe, classes, weights)

    def use(self, model: nn.Module) -> None:
        self._classifier = replace(self.classifier, model=model)

    def evaluate(self, epoch: int, accelerator: Accelerator, stop: StopRequest) -> trainer.Scores:
        model = self.classifier.model
        if self._val_loader is None:
            self._val_loader = val_loader(self.recipe, self.source, Share(**this_process(accelerator)))
        if accelerator.num_processes == 1:
            outcome = self._whole = scores.outcome(model, until_stopped(self._val_loader, stop))
        else:
            # Without synchronised statistics each process has its own averages; those of the first are saved.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
            with parallel.agreed(accelerator):
                mine = scores.outcome(model, until_stopped(self._val_loader, stop))
            outcome = scores.merged(gather_object([mine]))
        metrics = outcome.metrics()
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the validation loss became {metrics['loss']} after epoch {epoch}; training stopped, and the "
                "last good weights are kept"
            )
        self._classifier = replace(self.classifier, epoch=epoch, metrics=metrics)
        values = {"val_loss": metrics["loss"], "top1": metrics["top1"], "top5": metrics["top5"]}
        # A stream's number of images is what somebody wrote beside it.
        told, found = image_count(self.source.val), len(outcome.target)
        notes = (f"{self.source.name} has {found} validation images, not {told} as it says",) if found > told else ()
        return trainer.Scores(values=values, skipped=outcome.skipped, notes=notes)

    def save(self, path: Path) -> None:
        save_classifier(path, self.classifier)

    def line(self, row: Mapping[str, Any]) -> str:
        return f"val loss {row['val_loss']:.4f}  top-1 {100 * row['top1']:.2f}%  top-5 {100 * row['top5']:.2f}%"

    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        loader, whole = self._val_loader, self._whole
        if loader is None or whole is None:
            # Never evaluated in this process, or the processes' parts together are not in the order of the data.
            loader = val_loader(self.recipe, self.source, Share())
            whole = scores.outcome(self.classifier.model, loader)
        names = self.source.class_names
        album.draw_scores(out, self.title, rows, whole, names)
        album.draw_sheet(out, self.title, whole, loader, self.classifier.preprocessing, names)

    def result(self) -> dict[str, Any]:
        model, side = self.classifier.model, self.recipe.image_px
        return {
            "model": self.recipe.model,
            "source": self.source.name,
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": multiply_adds(model, (side, side)),
            "train_images": image_count(self.source.train),
            "val_images": image_count(self.source.val),
            "epochs": self.classifier.epoch,
            **{name: self.classifier.metrics[name] for name in ("loss", "top1", "top5")},
        }
