"""Run a classification recipe: source, model, loop, record and pictures put together."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast, gather_object
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.utils.data import DataLoader

from parhelion.data.loaders import go_to
from parhelion.data.samples import Share
from parhelion.data.sources import Source, open_source
from parhelion.errors import UserError
from parhelion.evaluate import classify
from parhelion.evaluate.initial import initialise
from parhelion.evaluate.saved import Classifier, save_classifier
from parhelion.evaluate.validate import image_count
from parhelion.models.adapt import Adaptation
from parhelion.models.count import multiply_adds
from parhelion.models.resnet import ResNet
from parhelion.recipes import album
from parhelion.recipes.ingredients import check_same_images, image_facts, place, train_loader, untrained, val_loader
from parhelion.recipes.keeping import Begun, Keeping, begin
from parhelion.recipes.preparing import Prepared, prepared
from parhelion.recipes.recipe import Recipe, check
from parhelion.seeds import seed_everything
from parhelion.train import loop, parallel
from parhelion.train.atomic import write_json
from parhelion.train.progress import Progress
from parhelion.train.record import BEST, INIT, WEIGHTS, check_out, holds_run
from parhelion.train.stopping import Stopped, StopRequest
from parhelion.train.trackers import Trackers, check_trackers, open_trackers


def train(  # noqa: PLR0913  every argument is the user's choice
    recipe: Recipe,
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
    """Train `recipe` on the source `data` and leave recipe, metrics, weights and pictures in the folder `out`.

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
    check(recipe)
    check_trackers(track)
    accelerator = parallel.accelerator_for(recipe.precision)
    out, quiet = Path(out), quiet or not accelerator.is_main_process
    if accelerator.is_main_process and not (resume and holds_run(out)):
        check_out(out)
    asked = {"data": data, "data_dir": data_dir and str(data_dir), "init_from": init_from}
    resolved = {**recipe.as_dict(), **asked}
    note = _silent if quiet else _warn
    begun = begin(out, resolved, accelerator, resume=resume, keep=recipe.keep, note=note)
    source = open_source(data, data_dir=data_dir, download=download, in_chans=recipe.in_chans)
    images = image_facts(recipe, source, accelerator)
    check_same_images(begun.images, images, source.name, note)
    # Equal weights in all processes.
    seed_everything("weights", recipe.seed)
    classifier = untrained(recipe, source)
    model = cast("ResNet", classifier.model)
    adaptation = None
    if init_from is not None and begun.checkpoint is None:
        adaptation = initialise(model, init_from, class_names=classifier.class_names)
    loader = train_loader(recipe, source, accelerator)
    plan = _plan(recipe, batches=len(loader))
    if begun.state.update >= plan.updates and (out / album.SHEET).exists():
        raise UserError(f"the run in {out} is finished; to train on, start another one with --init-from {out}")
    if recipe.sharding != "none" and accelerator.num_processes == 1:
        note(f"sharding is {recipe.sharding}, but one process alone holds all weights; torchrun starts several")
    ready = prepared(recipe, accelerator, model, task(recipe, len(source.class_names)), plan)
    run = _Run(recipe, begun, source, images, classifier, ready, quiet=quiet)
    state = run.open(seed=recipe.seed, updates_per_epoch=plan.updates_per_epoch)
    if adaptation is not None:
        run.note_start(adaptation)
    with run.trackers(track), StopRequest() as stop:
        return run.fit(loader, plan, state, stop)


def task(recipe: Recipe, classes: int) -> loop.Losses:
    """Classification as a task: the cross entropy of a batch's images, perhaps mixed, against their targets."""
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
        return {"cross_entropy": nn.functional.cross_entropy(logits, targets, label_smoothing=smoothed)}

    return losses


def _mixed(mix: Mixup, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The images mixed in pairs, and the targets as probabilities; an odd one out stays as it is."""
    even = len(images) // 2 * 2
    alone = mixup_target(targets[even:], mix.num_classes, smoothing=mix.label_smoothing)
    if not even:
        return images, alone
    mixed, soft = mix(images[:even], targets[:even])
    return torch.cat([mixed, images[even:]]), torch.cat([soft, alone])


class _Run(Keeping):
    """One run under way: trains, and after each epoch evaluates, saves and records."""

    def __init__(
        self,
        recipe: Recipe,
        begun: Begun,
        source: Source,
        images: Mapping[str, Any],
        classifier: Classifier,
        ready: Prepared,
        *,
        quiet: bool,
    ) -> None:
        super().__init__(begun, ready.moving, images)
        self.recipe, self.source, self.ready = recipe, source, ready
        self.classifier = replace(classifier, model=ready.evaluated)
        self._val_loader = val_loader(recipe, source, Share(**place(self.accelerator)))
        self._outcome: classify.Outcome | None = None
        self._noted: set[str] = set()
        self._trackers = Trackers()
        self._stop = StopRequest()
        self._progress = Progress(1, quiet=quiet)

    def note_start(self, adaptation: Adaptation) -> None:
        """Say what the run starts from, and keep it."""
        if self.record is not None:
            write_json(self.record.folder / INIT, adaptation.as_dict())
        for line in adaptation.lines():
            self._progress.line(line)

    def trackers(self, names: Sequence[str]) -> Trackers:
        """The trackers `names`, told what the run has recorded so far. Only the first process has any."""
        if self.record is not None:
            folder, past = self.record.folder, [(row["epoch"], row) for row in self.record.rows]
            config = dict(self.begun.resolved)
            self._trackers = open_trackers(names, folder, run_name=folder.name, config=config, past=past)
        return self._trackers

    def fit(self, loader: DataLoader[Any], plan: loop.Plan, state: loop.State, stop: StopRequest) -> dict[str, Any]:
        """Train from `state` to the end, draw the pictures, and return what `train` does."""
        recipe, out, self._stop = self.recipe, self.begun.folder, stop
        if self.record is not None and not self.begun.resumed:
            save_classifier(out / WEIGHTS, self.classifier)
        self._progress = Progress((plan.updates - state.update) * recipe.batch, quiet=self._progress.quiet)
        if state.update:
            self._progress.line(f"going on with {out} after update {state.update} of {plan.updates}")
        started = time.perf_counter()

        def batches(epoch: int, done: int) -> Iterable[loop.Batch]:
            go_to(loader, epoch, done)
            return loader

        try:
            with self._progress as progress:
                loop.train(
                    loop.Training(
                        accelerator=self.accelerator,
                        step=self.ready.step,
                        optimization=self.moving.optimization,
                        batches=batches,
                        plan=plan,
                        state=state,
                        keeper=self,
                        progress=progress,
                        stop=stop,
                    )
                )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped at once; parhelion train --resume {out} goes on") from None
        except Stopped as stopped:
            raise Stopped(stopped.code, f"stopped; parhelion train --resume {out} goes on") from None
        seconds = time.perf_counter() - started
        if self.record is not None:
            self._draw(out)
        self.accelerator.wait_for_everyone()
        return self._result(seconds) | {"out": str(out)}

    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Evaluate, then save, record and print the epoch."""
        self._outcome = self._evaluated()
        scores = self._outcome.metrics()
        if not math.isfinite(scores["loss"]):
            raise UserError(
                f"the validation loss became {scores['loss']} after epoch {epoch.epoch}; training stopped, and the "
                "last good weights are kept"
            )
        row = _row(epoch, scores)
        self.classifier = replace(self.classifier, epoch=epoch.epoch, metrics=scores)
        if self.record is not None:
            folder, before = self.record.folder, [earlier["top1"] for earlier in self.record.rows]
            save_classifier(folder / WEIGHTS, self.classifier)
            if scores["top1"] > max(before, default=-1.0):
                save_classifier(folder / BEST, self.classifier)
            self.record.add(row)
        self._trackers.add(row, epoch.epoch)
        for sentence in (*epoch.skipped, *self._outcome.skipped):
            if sentence not in self._noted:
                self._progress.line(f"skipped: {sentence}")
                self._noted.add(sentence)
        self._progress.line(_line(row, self.recipe.epochs))

    def _evaluated(self) -> classify.Outcome:
        """What the model says of all validation images, each process having looked at its share."""
        self.ready.gather()
        model = self.classifier.model
        if self.accelerator.num_processes == 1:
            return classify.outcome(model, self._val_batches())
        # Without synchronised statistics each process has its own averages; those of the first are saved.
        for buffer in model.buffers():
            buffer.copy_(broadcast(buffer))
        return classify.merged(gather_object([classify.outcome(model, self._val_batches())]))

    def _val_batches(self) -> Iterator[loop.Batch]:
        """The validation batches; Stopped where somebody asks: a resumed run evaluates the epoch's checkpoint anew."""
        for batch in self._val_loader:
            self._stop.obey()
            yield batch

    def _draw(self, out: Path) -> None:
        """Leave the pictures in `out`."""
        assert self.record is not None
        loader, whole = self._val_loader, self._outcome
        if whole is None or self.accelerator.num_processes > 1:
            # The processes' parts together are not in the order of the data.
            loader = val_loader(self.recipe, self.source, Share())
            whole = classify.outcome(self.classifier.model, loader)
        title, names = f"{self.recipe.model} on {self.source.name}", self.source.class_names
        album.draw_scores(out, title, self.record.rows, whole, names)
        album.draw_sheet(out, title, whole, loader, self.classifier.preprocessing, names)
        self._progress.line(f"weights, metrics and pictures are in {out}")

    def _result(self, seconds: float) -> dict[str, Any]:
        """The numbers a table of runs needs."""
        model, side = self.classifier.model, self.recipe.image_px
        return {
            "model": self.recipe.model,
            "source": self.source.name,
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": multiply_adds(model, (side, side)),
            "train_images": image_count(self.source.train),
            "val_images": image_count(self.source.val),
            "epochs": self.classifier.epoch,
            "seconds": seconds,
            **{name: self.classifier.metrics[name] for name in ("loss", "top1", "top5")},
        }


def _warn(sentence: str) -> None:
    print(f"parhelion: {sentence}", file=sys.stderr, flush=True)


def _silent(_sentence: str) -> None:
    """Say nothing."""


def _plan(recipe: Recipe, *, batches: int) -> loop.Plan:
    per_epoch = batches // recipe.accumulate
    updates = recipe.epochs * per_epoch
    if recipe.updates > updates:
        raise UserError(
            f"updates is {recipe.updates}, but {recipe.epochs} epochs of {per_epoch} updates have only {updates}; "
            "give more epochs"
        )
    return loop.Plan(
        updates_per_epoch=per_epoch,
        updates=recipe.updates or updates,
        accumulate=recipe.accumulate,
        checkpoint_updates=recipe.checkpoint_updates,
        seed=recipe.seed,
    )


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
