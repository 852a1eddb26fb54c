"""Run a classification recipe: source, model, loop, record and pictures put together."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, gather_object, set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from parhelion.data.loaders import make_loader
from parhelion.data.sources import Source, open_source
from parhelion.data.transforms import eval_transform, train_transform
from parhelion.errors import UserError
from parhelion.evaluate import classify
from parhelion.evaluate.saved import Classifier, save_classifier
from parhelion.evaluate.validate import image_count
from parhelion.models.catalog import create_model
from parhelion.models.count import multiply_adds
from parhelion.recipes import album
from parhelion.recipes.recipe import Recipe, check
from parhelion.train import loop
from parhelion.train.environment import environment
from parhelion.train.optimization import Optimization, build_optimizer, cosine_schedule
from parhelion.train.progress import Progress
from parhelion.train.record import WEIGHTS, RunRecord, check_out


def train(
    recipe: Recipe,
    *,
    data: str,
    out: str | Path,
    data_dir: Path | None = None,
    download: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train `recipe` on the source `data` and leave recipe, metrics, weights and pictures in the folder `out`.

    Returns model, source, params, multiply_adds, train_images, val_images, epochs, seconds (of the loop with its
    evaluations), the last epoch's loss, top1 and top5 (shares), and out. The weights are those of the last
    complete epoch at any time. Two runs of one recipe on a CPU give identical metrics but for the times.
    Under torchrun every process calls this; only the first writes.

    Raises UserError for whatever the user can mend, before `out` is made where that can be known by then.
    """
    check(recipe)
    accelerator = _accelerator(recipe)
    out = Path(out)
    if accelerator.is_main_process:
        check_out(out)
    source = open_source(data, data_dir=data_dir, download=download, in_chans=recipe.in_chans)
    _check_shareable(source, accelerator)
    set_seed(recipe.seed)
    classifier = _untrained(recipe, source)
    # Equal weights in all processes, but each its own dropout.
    set_seed(recipe.seed, device_specific=True)
    train_loader = _train_loader(recipe, source)
    run = _Run(recipe, accelerator, source, classifier, quiet=quiet)
    run.open(out, {**recipe.as_dict(), "data": data, "data_dir": data_dir and str(data_dir)})
    started = time.perf_counter()
    try:
        run.fit(train_loader)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {out} keeps the weights of {run.epochs_done} epochs") from None
    seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        run.draw(out)
    accelerator.wait_for_everyone()
    return run.result(seconds) | {"out": str(out)}


def task(label_smoothing: float) -> loop.Losses:
    """Classification as a task: the cross entropy of a batch's images against its targets."""

    def losses(model: nn.Module, batch: loop.Batch) -> dict[str, Tensor]:
        logits = model(batch["image"].contiguous(memory_format=torch.channels_last))
        return {"cross_entropy": nn.functional.cross_entropy(logits, batch["target"], label_smoothing=label_smoothing)}

    return losses


class _Run:
    """One run under way: trains, and after each epoch evaluates, saves and records."""

    def __init__(
        self, recipe: Recipe, accelerator: Accelerator, source: Source, classifier: Classifier, *, quiet: bool
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.source = source
        self.classifier = classifier
        self.epochs_done = 0
        self._val_loader = _val_loader(recipe, source, accelerator)
        self._outcome: classify.Outcome | None = None
        self._record: RunRecord | None = None
        self._noted: set[str] = set()
        images = recipe.epochs * image_count(source.train)
        self._progress = Progress(images, quiet=quiet or not accelerator.is_main_process)

    def open(self, out: Path, resolved: dict[str, Any]) -> None:
        """Make the run folder with recipe, environment and the untrained weights."""
        if self.accelerator.is_main_process:
            facts = environment(seed=self.recipe.seed, processes=self.accelerator.num_processes)
            self._record = RunRecord(out, recipe=resolved, environment=facts)
            save_classifier(out / WEIGHTS, self.classifier)

    def fit(self, loader: DataLoader[Any]) -> None:
        """Train for all epochs."""
        recipe, model = self.recipe, self.classifier.model
        with self._progress as progress:
            loop.train(
                self.accelerator,
                model,
                task(recipe.label_smoothing),
                loader,
                _optimization(recipe, model, updates_per_epoch=len(loader)),
                epochs=recipe.epochs,
                end_epoch=self.end_epoch,
                progress=progress,
            )

    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Evaluate, then save, record and print the epoch."""
        model = self.classifier.model
        if self.accelerator.num_processes > 1:
            # Each process has its own averages in batch norm; those of the first are saved.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
            self._outcome = classify.merged(gather_object([classify.outcome(model, self._val_loader)]))
        else:
            self._outcome = classify.outcome(model, self._val_loader)
        scores = self._outcome.metrics()
        if not math.isfinite(scores["loss"]):
            raise UserError(
                f"the validation loss became {scores['loss']} after epoch {epoch.epoch}; training stopped, and the "
                "last good weights are kept"
            )
        row = _row(epoch, scores)
        self.classifier = replace(self.classifier, epoch=epoch.epoch, metrics=scores)
        if self._record is not None:
            save_classifier(self._record.folder / WEIGHTS, self.classifier)
            self._record.add(row)
        self.epochs_done = epoch.epoch
        for sentence in (*epoch.skipped, *self._outcome.skipped):
            if sentence not in self._noted:
                self._progress.line(f"skipped: {sentence}")
                self._noted.add(sentence)
        self._progress.line(_line(row, self.recipe.epochs))

    def draw(self, out: Path) -> None:
        """Leave the pictures in `out`."""
        assert self._record is not None
        loader, whole = self._val_loader, self._outcome
        if whole is None or self.accelerator.num_processes > 1:
            # The processes' parts together are not in the order of the data.
            loader = _val_loader(self.recipe, self.source)
            whole = classify.outcome(self.classifier.model, loader)
        title, names = f"{self.recipe.model} on {self.source.name}", self.source.class_names
        album.draw_scores(out, title, self._record.rows, whole, names)
        album.draw_sheet(out, title, whole, loader, self.classifier.preprocessing, names)
        self._progress.line(f"weights, metrics and pictures are in {out}")

    def result(self, seconds: float) -> dict[str, Any]:
        """The numbers a table of runs needs."""
        model, side = self.classifier.model, self.recipe.image_px
        return {
            "model": self.recipe.model,
            "source": self.source.name,
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": multiply_adds(model, (side, side)),
            "train_images": image_count(self.source.train),
            "val_images": image_count(self.source.val),
            "epochs": self.epochs_done,
            "seconds": seconds,
            **{name: self.classifier.metrics[name] for name in ("loss", "top1", "top5")},
        }


def _accelerator(recipe: Recipe) -> Accelerator:
    # Accelerate keeps the precision of a process's first run; a later run may choose another.
    AcceleratorState._reset_state()
    loaders = DataLoaderConfiguration(split_batches=True, even_batches=False)
    # Without being told, Accelerate would let several processes on a CPU run side by side, each for itself.
    on_cpu = not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(mixed_precision=recipe.precision, dataloader_config=loaders, cpu=on_cpu)
    except ValueError as error:
        raise UserError(f"precision is {recipe.precision}, which cannot be had: {str(error).rstrip('.')}") from error
    # Accelerate passes over fp16 on a CPU in silence.
    if recipe.precision != "no" and not accelerator.native_amp:
        raise UserError(f"precision is {recipe.precision}, which cannot be had on {accelerator.device.type}; use bf16")
    if recipe.batch % accelerator.num_processes:
        raise UserError(f"batch is {recipe.batch}, which {accelerator.num_processes} processes cannot share evenly")
    return accelerator


def _check_shareable(source: Source, accelerator: Accelerator) -> None:
    streams = isinstance(source.train, IterableDataset) or isinstance(source.val, IterableDataset)
    if streams and accelerator.num_processes > 1:
        raise UserError(f"{source.name} is a stream, which {accelerator.num_processes} processes cannot share")


def _untrained(recipe: Recipe, source: Source) -> Classifier:
    arguments: dict[str, Any] = {
        "num_classes": len(source.class_names),
        "in_chans": recipe.in_chans,
        "image_size": recipe.image_px,
    }
    model = create_model(recipe.model, drop_path=recipe.drop_path, drop_rate=recipe.dropout, **arguments)
    # As a constant to the type checker: attributes of modules may be tensors.
    min_px = cast("int", model.min_px)
    if recipe.image_px < min_px:
        raise UserError(f"image_px is {recipe.image_px}; {recipe.model} takes images of at least {min_px} pixels")
    return Classifier(
        # Attention reads channels-last maps as they are, and convolutions are faster on them.
        model=model.to(memory_format=torch.channels_last),
        name=recipe.model,
        arguments=arguments,
        class_names=tuple(source.class_names),
        preprocessing=recipe.preprocessing(),
        epoch=0,
        metrics={},
    )


def _train_loader(recipe: Recipe, source: Source) -> DataLoader[Any]:
    assert source.train is not None, "open the source with its train split"
    return make_loader(
        source.train,
        train_transform(recipe.preprocessing(), recipe.augmentation()),
        batch=recipe.batch,
        train=True,
        workers=recipe.workers,
        seed=recipe.seed,
        on_bad_image=recipe.on_bad_image,
    )


def _val_loader(recipe: Recipe, source: Source, accelerator: Accelerator | None = None) -> DataLoader[Any]:
    """A loader of this process's share of the validation images; of all of them without `accelerator`."""
    samples = source.val
    assert samples is not None, "open the source with its val split"
    if accelerator is not None and accelerator.num_processes > 1:
        rows = range(accelerator.process_index, image_count(samples), accelerator.num_processes)
        samples = Subset(samples, rows)
    return make_loader(
        samples,
        eval_transform(recipe.preprocessing()),
        batch=recipe.batch,
        train=False,
        workers=recipe.workers,
        on_bad_image=recipe.on_bad_image,
    )


def _optimization(recipe: Recipe, model: nn.Module, updates_per_epoch: int) -> Optimization:
    lr = recipe.lr_per_256 * recipe.batch / 256
    optimizer = build_optimizer(
        model, recipe.optimizer, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    schedule = cosine_schedule(
        optimizer,
        lr=lr,
        updates=recipe.epochs * updates_per_epoch,
        warmup_updates=round(recipe.warmup_epochs * updates_per_epoch),
        lr_end_ratio=recipe.lr_end_ratio,
    )
    return Optimization(optimizer=optimizer, schedule=schedule, clip_norm=recipe.clip_norm)


def _row(epoch: loop.Epoch, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        "train_loss": epoch.train_loss,
        "val_loss": scores["loss"],
        "top1": scores["top1"],
        "top5": scores["top5"],
        "lr": epoch.lr,
        "seconds": round(epoch.seconds, 3),
        "data_wait_seconds": round(epoch.data_wait_seconds, 3),
        "images_per_second": round(epoch.images_per_second, 1),
        "skipped_images": len(epoch.skipped) + int(scores["skipped"]),
    }


def _line(row: dict[str, Any], epochs: int) -> str:
    skipped = f"  skipped {row['skipped_images']}" if row["skipped_images"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  val loss {row['val_loss']:.4f}  "
        f"top-1 {100 * row['top1']:.2f}%  top-5 {100 * row['top5']:.2f}%  lr {row['lr']:.2g}  "
        f"{row['seconds']:.1f} s  data wait {row['data_wait_seconds']:.1f} s  "
        f"{row['images_per_second']:.0f} images/s{skipped}"
    )
