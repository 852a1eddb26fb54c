"""Run a recipe, whatever its task: model, loop, record and pictures put together."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from parhelion.data.loaders import end_workers, go_to
from parhelion.errors import UserError, printable
from parhelion.models.adapt import Adaptation
from parhelion.runs.keeping import Begun, Keeping, begin, check_moved
from parhelion.runs.lone_images import LoneImages, Size
from parhelion.runs.setup import Prepared, Trainee, prepared
from parhelion.runs.recipe import Recipe
from parhelion.seeds import seed_everything
from parhelion.train import loop, parallel
from parhelion.files.atomic import write_json
from parhelion.files.lock import RunLock
from parhelion.files.progress import Progress
from parhelion.files.run_folder import BEGUN_IN, BEST, INIT, WEIGHTS, RunRecord, check_out, holds_run
from parhelion.train.stopping import Stopped, StopRequest
from parhelion.train.trackers import Trackers, check_trackers, open_trackers


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for besides the recipe."""

    data: str
    out: Path
    data_dir: Path | None = None
    download: bool = False
    val_share: float | None = None
    init_from: str | None = None
    resume: bool = False
    track: Sequence[str] = ()
    quiet: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What the run depends on, ready for JSON."""
        return {
            "data": self.data,
            "data_dir": self.data_dir and str(self.data_dir),
            "init_from": self.init_from,
            BEGUN_IN: str(Path.cwd()),
            # Where it is not given, recipes are as they were before it existed.
            **({} if self.val_share is None else {"val_share": self.val_share}),
        }


class Task(ABC):
    """What a run does in its own way: its images and its network, how that is scored, saved and shown.

    Made with the images open. Methods are called in the order in which they stand here, by every process unless said
    otherwise.
    """

    # Name of the score by which an epoch is the best so far.
    best_by: str
    # The last of a run's pictures: where it is, the run is finished.
    last_picture: str
    title: str

    @abstractmethod
    def images(self, accelerator: Accelerator) -> Mapping[str, Any]:
        """What tells the run's images from others without reading them, ready for JSON."""

    @abstractmethod
    def check_images(
        self, begun: Mapping[str, Any], now: Mapping[str, Any], accelerator: Accelerator, note: Callable[[str], None]
    ) -> None:
        """Raise UserError where a run that began with `begun`, see `images`, would go on with other images.

        begun: empty where the run begins now.
        now: what `images` says.
        """

    def images_line(self) -> str | None:
        """What was found, in a line to begin with; None where there is nothing to say."""
        return None

    def image_files(self) -> Mapping[str, Any]:
        """By name, what files of JSON in the run's folder say about its images."""
        return {}

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, a `setup.Trainee`, with the weights it starts from."""

    @abstractmethod
    def initialise(self, spec: str) -> Adaptation:
        """Fill the network from what --init-from means."""

    def backbone(self, model: nn.Module) -> nn.Module:
        """The part of `model`, as `build` made it, that takes images (B, C, H, W)."""
        return model

    def padded(self, size: Size) -> Size:
        """The height and width at which the backbone sees an image of `size`, in pixels, while it trains."""
        return size

    @abstractmethod
    def train_loader(self, accelerator: Accelerator) -> DataLoader[Any]:
        """This process's training batches."""

    def told(self) -> Sequence[str]:
        """What a user should know of the images before training starts, a sentence each."""
        return ()

    @abstractmethod
    def losses(self) -> loop.Losses:
        """From a batch to its losses."""

    @abstractmethod
    def use(self, model: nn.Module) -> None:
        """Evaluate and save `model` from now on: the network, or its running average."""

    @abstractmethod
    def evaluate(self, epoch: int, accelerator: Accelerator, stop: StopRequest) -> "Scores":
        """Score the model after `epoch` epochs on all validation images, of which each process looks at its share.

        Raises Stopped where `stop` is asked, UserError where a score is not finite or no process has an image; in all
        processes if in one.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the model, with its last scores, to `path`; the first process only."""

    @abstractmethod
    def line(self, row: Mapping[str, Any]) -> str:
        """The scores of a row in words."""

    @abstractmethod
    def draw(self, out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Leave the pictures in `out`; the first process only."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """The numbers a table of runs needs."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What an evaluation came to, as far as it goes into the metrics."""

    values: Mapping[str, float]
    # A sentence for each image left out.
    skipped: tuple[str, ...] = ()
    # What else is to be told, once.
    notes: tuple[str, ...] = ()


def run(recipe: Recipe, request: Request, task: Callable[[], Task]) -> dict[str, Any]:
    """Train `recipe` as `request` says; `task` opens the images. See `classification.task.train` for what comes of it."""
    recipe.check()
    check_trackers(request.track)
    accelerator = parallel.accelerator_for(recipe.precision)
    with parallel.told_to_all(accelerator), RunLock(request.out) as lock:
        return _run(recipe, request, task, accelerator, lock)


def _run(
    recipe: Recipe, request: Request, task: Callable[[], Task], accelerator: Accelerator, lock: RunLock
) -> dict[str, Any]:
    out, quiet = request.out, request.quiet or not accelerator.is_main_process
    note = _silent if quiet else _warn
    with parallel.agreed(accelerator):
        if accelerator.is_main_process:
            # A run that goes on is locked before anything of it is read, a new one when its folder is made.
            lock.take() if request.resume and holds_run(out) else check_out(out)
    resolved = {**recipe.as_dict(), **request.as_dict()}
    with parallel.agreed(accelerator):
        begun = begin(out, resolved, accelerator, resume=request.resume, recipe=recipe, note=note)
        doing = task()
        # Once, since every file is looked at.
        images = doing.images(accelerator)
        doing.check_images(begun.images, images, accelerator, note)
        check_moved(begun, images, note)
        # Equal weights in all processes.
        seed_everything("weights", recipe.seed)
        model = doing.build()
        adaptation = None
        if request.init_from is not None and begun.checkpoint is None:
            adaptation = doing.initialise(request.init_from)
        loader = doing.train_loader(accelerator)
    plan = _plan(recipe, batches=len(loader))
    for sentence in recipe.never_reached(plan.updates):
        note(sentence)
    if begun.state.update >= plan.updates and (out / doing.last_picture).exists():
        raise UserError(f"the run in {out} is finished; to train on, start another one with --init-from {out}")
    for sentence in doing.told():
        note(sentence)
    if recipe.sharding != "none" and accelerator.num_processes == 1:
        note(f"sharding is {recipe.sharding}, but one process alone holds all weights; torchrun starts several")
    lone = _lone_images(recipe, doing, model, accelerator)
    ready = prepared(recipe, accelerator, model, doing.losses(), plan)
    lone.check(images["train_images"], note)
    running = Running(recipe, begun, doing, ready, images=images, why_not=lone.why_not, quiet=quiet)
    with parallel.agreed(accelerator):
        if accelerator.is_main_process and not begun.resumed:
            lock.take()
        state = running.open(seed=recipe.seed, updates_per_epoch=plan.updates_per_epoch)
        running.note_images()
        if adaptation is not None:
            running.note_start(adaptation)
    with running.trackers(request.track), StopRequest() as stop:
        return running.fit(loader, plan, state, stop)


class Running(Keeping):
    """One run under way: trains, and after each epoch evaluates, saves and records."""

    def __init__(
        self,
        recipe: Recipe,
        begun: Begun,
        task: Task,
        ready: Prepared,
        *,
        images: Mapping[str, Any],
        why_not: loop.WhyNot,
        quiet: bool,
    ) -> None:
        """images: what `Task.images` says. why_not: why the network cannot learn from a batch."""
        super().__init__(begun, ready.moving, images)
        self.recipe, self.task, self.ready, self._why_not = recipe, task, ready, why_not
        task.use(ready.evaluated)
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

    def note_images(self) -> None:
        """Say which images were found, and keep what finds them again."""
        if self.record is not None:
            for name, content in self.task.image_files().items():
                # A run that goes on has it, unless it was killed before.
                if not (self.record.folder / name).exists():
                    write_json(self.record.folder / name, content)
        if line := self.task.images_line():
            self._progress.line(line)

    def trackers(self, names: Sequence[str]) -> Trackers:
        """The trackers `names`, told what the run has recorded so far. Only the first process has any."""
        if self.record is not None:
            folder, past = self.record.folder, [(row["epoch"], row) for row in self.record.rows]
            config = dict(self.begun.resolved)
            self._trackers = open_trackers(names, folder, run_name=folder.name, config=config, past=past)
        return self._trackers

    def fit(self, loader: DataLoader[Any], plan: loop.Plan, state: loop.State, stop: StopRequest) -> dict[str, Any]:
        """Train from `state` to the end, draw the pictures, and return the task's result with seconds and out."""
        recipe, out, self._stop = self.recipe, self.begun.folder, stop
        with parallel.agreed(self.accelerator):
            if self.record is not None and not self.begun.resumed:
                self.task.save(out / WEIGHTS)
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
                        why_not=self._why_not,
                    )
                )
        except KeyboardInterrupt:
            end_workers(loader)
            raise KeyboardInterrupt(f"stopped at once; parhelion train --resume {out} goes on") from None
        except Stopped as stopped:
            end_workers(loader)
            raise Stopped(stopped.code, f"{stopped}; parhelion train --resume {out} goes on") from None
        seconds = time.perf_counter() - started
        with parallel.agreed(self.accelerator):
            if self.record is not None:
                self.task.draw(out, self.record.rows)
                self._progress.line(f"weights, metrics and pictures are in {out}")
        return {**self.task.result(), "seconds": seconds, "out": str(out)}

    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Evaluate, then save, record and print the epoch."""
        self.ready.gather()
        scores = self.task.evaluate(epoch.epoch, self.accelerator, self._stop)
        row = self._row(epoch, scores)
        with parallel.agreed(self.accelerator):
            if self.record is not None:
                self._keep_epoch(self.record, row)
            self._trackers.add(row, epoch.epoch)
        told = [f"skipped: {sentence}" for sentence in (*epoch.skipped, *scores.skipped)]
        for sentence in (*told, *scores.notes):
            if sentence not in self._noted:
                self._progress.line(sentence)
                self._noted.add(sentence)
        self._progress.line(self._line(row))

    def _keep_epoch(self, record: RunRecord, row: Mapping[str, Any]) -> None:
        best_by = self.task.best_by
        before = [earlier[best_by] for earlier in record.rows]
        self.task.save(record.folder / WEIGHTS)
        if row[best_by] > max(before, default=-1.0):
            self.task.save(record.folder / BEST)
        record.add(row)

    def _row(self, epoch: loop.Epoch, scores: Scores) -> dict[str, Any]:
        return {
            "epoch": epoch.epoch,
            "train_loss": epoch.train_loss,
            **scores.values,
            "lr": epoch.lr,
            "seconds": round(epoch.seconds, 3),
            "data_wait_seconds": round(epoch.data_wait_seconds, 3),
            "images_per_second": round(epoch.images_per_second, 1),
            "skipped_images": len(epoch.skipped) + len(scores.skipped),
        }

    def _line(self, row: dict[str, Any]) -> str:
        skipped = f"  skipped {row['skipped_images']}" if row["skipped_images"] else ""
        return (
            f"epoch {row['epoch']}/{self.recipe.epochs}  train loss {row['train_loss']:.4f}  {self.task.line(row)}  "
            f"lr {row['lr']:.2g}  {row['seconds']:.1f} s  data wait {row['data_wait_seconds']:.1f} s  "
            f"{row['images_per_second']:.0f} images/s{skipped}"
        )


def _warn(sentence: str) -> None:
    print(printable(f"parhelion: {sentence}"), file=sys.stderr, flush=True)


def _silent(_sentence: str) -> None:
    """Say nothing."""


def _lone_images(recipe: Recipe, task: Task, model: nn.Module, accelerator: Accelerator) -> LoneImages:
    return LoneImages(
        recipe,
        task.backbone(model),
        # Too many are refused when the model is prepared.
        frozen=list(cast("Trainee", model).parts[: recipe.freeze]),
        processes=accelerator.num_processes,
        padded=task.padded,
    )


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
