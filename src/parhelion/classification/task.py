"""Classification: a recipe's images, its network, how it is scored and saved, and the pictures of that."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parhelion.classification import plots, scores
from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.saved import Classifier
from parhelion.classification.scores import Outcome
from parhelion.data.balance import Balanced, class_numbers, class_weights
from parhelion.data.identity import digest
from parhelion.data.loaders import make_loader
from parhelion.data.samples import Share, Stream, image_count
from parhelion.data.sources import Source, open_source
from parhelion.data.sources.folders import FolderImages
from parhelion.data.sources.held_out import HELD_OUT, check_same, record
from parhelion.data.transforms import eval_transform, train_transform
from parhelion.errors import UserError
from parhelion.models import create_model
from parhelion.models.catalog import check_choices
from parhelion.models.count import multiply_adds
from parhelion.runs.initial import initialise
from parhelion.runs.request import Request
from parhelion.runs.task import Images, Network, Scores, Task, choices_in_words
from parhelion.train import loop


class Classification(Task):
    """One classification run."""

    best_by = "top1"
    last_picture = plots.SHEET

    def __init__(self, recipe: ClassificationRecipe, request: Request, *, processes: int = 1) -> None:
        """Open the images of `request`; `processes` take part in the run."""
        self.recipe = recipe
        self.source: Source = open_source(
            request.data,
            data_dir=request.data_dir,
            download=request.download,
            in_chans=recipe.in_chans,
            val_share=request.val_share,
        )
        before = request.out / HELD_OUT
        if request.resume and request.val_share is not None and before.is_file():
            check_same(cast("FolderImages", self.source.images("val")), before)
        check_some_images(self.source)
        self.images = _images(recipe, self.source, request.val_share, processes)

    def network(self, init_from: str | None) -> Network:
        recipe, arguments = self.recipe, self._model_arguments()
        # Attention reads channels-last maps as they are, and convolutions are faster on them.
        model = _built(recipe, arguments).to(memory_format=torch.channels_last)
        adaptation = None
        if init_from is not None:
            images = recipe.preprocessing()
            names, normalised = self.source.class_names, (images.mean, images.std)
            adaptation = initialise(model, init_from, class_names=names, normalised=normalised)
        weights = None
        if recipe.class_weights == "balanced":
            numbers = class_numbers(self.source.images("train"), source=self.source.name, field="class_weights")
            weights = class_weights(numbers, arguments["num_classes"])
        losses = cross_entropy(recipe, arguments["num_classes"], weights)
        return Network(model=model, losses=losses, backbone=model, adaptation=adaptation)

    def loader(self, split: Literal["train", "val"], share: Share) -> DataLoader[Any]:
        recipe, images = self.recipe, self.source.images(split)
        if split == "train":
            transform = train_transform(recipe.preprocessing(recipe.image_px), recipe.augmentation())
            if recipe.sampling == "balanced":
                images = Balanced(images, class_numbers(images, source=self.source.name, field="sampling"))
        else:
            transform = eval_transform(recipe.preprocessing())
        return make_loader(
            images,
            transform,
            batch=recipe.batch,
            train=split == "train",
            workers=recipe.workers,
            seed=recipe.seed if split == "train" else 0,
            on_bad_image=recipe.on_bad_image,
            share=share,
        )

    def outcome(self, model: nn.Module, batches: Iterable[loop.Batch]) -> Outcome:
        return scores.outcome(model, batches)

    def scores(self, outcomes: Sequence[Outcome], epoch: int) -> Scores:
        outcome = outcomes[0] if len(outcomes) == 1 else scores.merged(outcomes)
        metrics = outcome.metrics()
        loss, top1, top5 = (metrics[name] for name in ("loss", "top1", "top5"))
        if not math.isfinite(loss):
            raise UserError(
                f"the validation loss became {loss} after epoch {epoch}; training stopped, and the last good weights "
                "are kept"
            )
        # A stream's number of images is what somebody wrote beside it.
        told, found, name = self.images.val_images, len(outcome.target), self.source.name
        return Scores(
            metrics=metrics,
            row={"val_loss": loss, "top1": top1, "top5": top5},
            line=f"val loss {loss:.4f}  top-1 {100 * top1:.2f}%  top-5 {100 * top5:.2f}%",
            skipped=outcome.skipped,
            notes=(f"{name} has {found} validation images, not {told} as it says",) if found > told else (),
        )

    def save(self, path: Path, model: nn.Module, *, epoch: int, metrics: Mapping[str, float]) -> None:
        classifier = Classifier(
            model=model,
            name=self.recipe.model,
            arguments=self._model_arguments(),
            class_names=tuple(self.source.class_names),
            preprocessing=self.recipe.preprocessing(),
            epoch=epoch,
            metrics=dict(metrics),
        )
        classifier.save(path)

    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]], model: nn.Module, outcome: Outcome | None) -> None:
        loader, names, title = self.loader("val", Share()), self.source.class_names, self._title()
        if outcome is None:
            # The processes' parts together are not in the order of the images.
            outcome = scores.outcome(model, loader)
        plots.draw_scores(out, title, rows, outcome, names)
        plots.draw_sheet(out, title, outcome, loader, self.recipe.preprocessing(), names)

    def costs(self, model: nn.Module) -> dict[str, int]:
        side = self.recipe.image_px
        return {**super().costs(model), "multiply_adds": multiply_adds(model, (side, side))}

    def _title(self) -> str:
        return f"{self.recipe.model} on {self.source.name}"

    def _model_arguments(self) -> dict[str, Any]:
        """What `create_model` is given besides the name, as it is saved."""
        recipe = self.recipe
        choices = recipe.model_choices()
        # What other fields say, such as the number of classes, is no choice.
        check_choices(recipe.model, choices)
        return {
            "num_classes": len(self.source.class_names),
            "in_chans": recipe.in_chans,
            "image_size": recipe.image_px,
            **choices,
        }


def check_some_images(source: Source) -> None:
    """Raise UserError where there is no image to train or to evaluate on."""
    for images, kind in ((source.train, "training"), (source.val, "validation")):
        if not image_count(images):
            raise UserError(f"{source.name} has no {kind} image")


def _images(recipe: ClassificationRecipe, source: Source, val_share: float | None, processes: int) -> Images:
    train = source.images("train")
    files = {}
    if val_share is not None:
        files[HELD_OUT] = record(cast("FolderImages", source.images("val")), val_share)
    return Images(
        source=source.name,
        facts={
            "train_images": image_count(train),
            "class_names": list(source.class_names),
            # Every process that reads, or each of its workers, takes shards of its own.
            "readers": processes * max(1, recipe.workers) if isinstance(train, Stream) else None,
            "digest": digest(train),
        },
        val_images=image_count(source.val),
        found=source.line(),
        files=files,
    )


def _built(recipe: ClassificationRecipe, arguments: Mapping[str, Any]) -> nn.Module:
    """The network with random weights. Raises UserError where it cannot be built, or not take the recipe's images."""
    with choices_in_words(recipe):
        model = create_model(recipe.model, drop_path=recipe.drop_path, drop_rate=recipe.dropout, **arguments)
        # As a constant to the type checker: attributes of modules may be tensors.
        min_px = cast("int", model.min_px)
        if recipe.choices:
            # Some impossible choices show at the first image only, such as a bottleneck of no channels.
            _look_once(model, (1, recipe.in_chans, *[max(recipe.image_px, min_px)] * 2))
    for name, side in (("image_px", recipe.image_px), ("eval_px", recipe.eval_px or recipe.image_px)):
        if side < min_px:
            raise UserError(f"{name} is {side}; {recipe.model} takes images of at least {min_px} pixels")
    return model


@torch.inference_mode()
def _look_once(model: nn.Module, size: tuple[int, ...]) -> None:
    model.eval()(torch.zeros(size))
    model.train()


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
