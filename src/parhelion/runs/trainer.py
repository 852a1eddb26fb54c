"""`train`: run a recipe, whatever its task. The trainer is what the loop reports to."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate.utils import broadcast, gather_object
from torch.utils.data import DataLoader

from parhelion.data.loaders import end_workers, go_to
from parhelion.files.atomic import write_json
from parhelion.files.environment import environment
from parhelion.files.lock import RunLock
from parhelion.files.progress import Progress
from parhelion.files.run_folder import BEST, INIT, WEIGHTS, RunRecord, saved_recipe, write_places
from parhelion.runs.places import same_data_dir
from parhelion.runs.recipe import Recipe
from parhelion.runs.request import Request
from parhelion.runs.setup import Setup, set_up
from parhelion.runs.task import Scores
from parhelion.train import loop, parallel
from parhelion.train.stopping import Stopped, StopRequest
from parhelion.train.trackers import Trackers, check_trackers, open_trackers


def train(recipe: Recipe, request: Request) -> dict[str, Any]:
    """Train `recipe` as `request` says; recipe, metrics, weights and pictures are then in the folder `request.out`.

    The weights in the folder are those of the last complete epoch at any time. Two runs of one recipe on a CPU give
    identical weights and metrics but for the times, whether or not one was interrupted. Under torchrun every process
    calls this; only the first writes. As a detector's proposals are sampled at random in each process, its losses
    depend on their number.

    Returns model, source, params, for a classifier multiply_adds, train_images, val_images, epochs, the scores after
    the last epoch (of a classifier loss, top1 and top5 as shares, over how many images, and how many were skipped; of
    a detector COCO's: box_ap, ..., mask_ap, ...), seconds (of this process's part of the loop with its evaluations),
    and out.

    Raises UserError for whatever the user can mend, before the folder is made where that can be known by then; Stopped
    after Ctrl-C or SIGTERM, when a checkpoint is saved.
    """
    recipe.check()
    check_trackers(request.track)
    accelerator = parallel.accelerator_for(recipe.precision)
    with parallel.told_to_all(accelerator), RunLock(request.out) as lock:
        setup = set_up(recipe, request, accelerator, lock)
        state, record = _open_folder(setup, lock)
        progress = Progress((setup.plan.updates - state.update) * recipe.batch, quiet=setup.quiet)
        with _trackers(setup, record, request.track) as trackers, StopRequest() as stop:
            trainer = Trainer(setup, record, trackers, progress, stop)
            trainer.start(state)
            started = time.perf_counter()
            with progress, _advice_to_resume(setup):
                loop.train(trainer.training(state))
            return trainer.finish(seconds=time.perf_counter() - started)


def _open_folder(setup: Setup, lock: RunLock) -> tuple[loop.State, RunRecord | None]:
    """Make or reopen the folder and restore the checkpoint; the state to go on from, and the first process's record."""
    begun, state, record = setup.begun, setup.begun.state(), None
    with parallel.agreed(setup.accelerator):
        if setup.accelerator.is_main_process and not begun.resumed:
            lock.take()
        if begun.checkpoint is not None:
            setup.ready.train_state.restore(begun.checkpoint)
        if setup.accelerator.is_main_process:
            record = _record(setup, state)
            _write_origins(setup)
    return state, record


def _record(setup: Setup, state: loop.State) -> RunRecord:
    begun = setup.begun
    facts = environment(seed=setup.recipe.seed, processes=setup.accelerator.num_processes)
    if not begun.resumed:
        return RunRecord(begun.folder, recipe=begun.resolved, environment=facts)
    if begun.moved or not same_data_dir(saved_recipe(begun.folder), begun.resolved):
        write_places(begun.folder, begun.resolved)
    complete = max(0, state.update - 1) // setup.plan.updates_per_epoch
    return RunRecord.reopened(begun.folder, update=state.update, epochs=complete, environment=facts)


def _write_origins(setup: Setup) -> None:
    """Write down which images were held out, and how the weights of --init-from were fitted in."""
    folder = setup.begun.folder
    for name, content in setup.task.images.files.items():
        # A run that goes on has it, unless it was killed before.
        if not (folder / name).exists():
            write_json(folder / name, content)
    if setup.network.adaptation is not None:
        write_json(folder / INIT, setup.network.adaptation.as_dict())


def _trackers(setup: Setup, record: RunRecord | None, names: Sequence[str]) -> Trackers:
    """The trackers `names`, told what the run has recorded so far; none but in the first process."""
    if record is None:
        return Trackers()
    folder, past = record.folder, [(row["epoch"], row) for row in record.rows]
    return open_trackers(names, folder, run_name=folder.name, config=dict(setup.begun.resolved), past=past)


@contextmanager
def _advice_to_resume(setup: Setup) -> Iterator[None]:
    """Train in this: what stops it says how to resume the run, and no worker process stays behind."""
    advice = f"parhelion train --resume {setup.begun.folder} goes on"
    try:
        yield
    except KeyboardInterrupt:
        end_workers(setup.train_loader)
        raise KeyboardInterrupt(f"stopped at once; {advice}") from None
    except Stopped as stopped:
        end_workers(setup.train_loader)
        raise Stopped(stopped.code, f"{stopped}; {advice}") from None


class Trainer:
    """A run under way. After each epoch it evaluates, saves, records and prints; the first process alone writes."""

    def __init__(
        self, setup: Setup, record: RunRecord | None, trackers: Trackers, progress: Progress, stop: StopRequest
    ) -> None:
        self.setup, self.record, self.trackers, self.progress, self.stop = setup, record, trackers, progress, stop
        # Of the last evaluation in this process; the loop never ends without one.
        self._epochs, self._metrics = 0, dict[str, float]()
        self._outcome: Any = None
        # Sentences that need not be printed again.
        self._printed: set[str] = set()

    def start(self, state: loop.State) -> None:
        """Print what the run begins with or goes on from, and save the first weights of a new one."""
        setup, out = self.setup, self.setup.begun.folder
        if setup.task.images.found:
            self.progress.line(setup.task.images.found)
        for line in setup.network.adaptation.lines() if setup.network.adaptation else ():
            self.progress.line(line)
        with parallel.agreed(setup.accelerator):
            if self.record is not None and not setup.begun.resumed:
                self._save(WEIGHTS)
        if state.update:
            self.progress.line(f"going on with {out} after update {state.update} of {setup.plan.updates}")

    def training(self, state: loop.State) -> loop.Training:
        """What the loop works with, from `state` on."""
        setup = self.setup

        def batches(epoch: int, done: int) -> Iterable[loop.Batch]:
            go_to(setup.train_loader, epoch, done)
            return setup.train_loader

        return loop.Training(
            accelerator=setup.accelerator,
            step=setup.ready.step,
            optimization=setup.ready.train_state.optimization,
            batches=batches,
            plan=setup.plan,
            state=state,
            keeper=self,
            progress=self.progress,
            stop=self.stop,
            why_not=setup.why_not,
        )

    def add_losses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the losses to the record."""
        if self.record is not None:
            self.record.add_losses(rows)

    def checkpoint(self, state: loop.State) -> None:
        """Save a checkpoint; everything that came before it is on the disk then."""
        if self.record is not None:
            self.record.flush_losses()
        setup, train_state = self.setup, self.setup.ready.train_state
        facts = {
            "state": state.as_dict(),
            "train_state": train_state.facts(),
            "images": setup.task.images.facts,
        }
        setup.begun.checkpoints.save(state.update, train_state.tensors(), facts)

    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Evaluate, then save, record and print the epoch."""
        self.setup.ready.gather()
        scores = self._evaluated(epoch.epoch)
        row = _row(epoch, scores)
        with parallel.agreed(self.setup.accelerator):
            if self.record is not None:
                self._keep_epoch(self.record, row)
            self.trackers.add(row, epoch.epoch)
        skipped = [f"skipped: {sentence}" for sentence in (*epoch.skipped, *scores.skipped)]
        for sentence in (*skipped, *scores.notes):
            if sentence not in self._printed:
                self.progress.line(sentence)
                self._printed.add(sentence)
        self.progress.line(_line(row, scores, epochs=self.setup.recipe.epochs))

    def finish(self, *, seconds: float) -> dict[str, Any]:
        """Draw the pictures; the numbers that a table of runs needs."""
        setup, task, out = self.setup, self.setup.task, self.setup.begun.folder
        with parallel.agreed(setup.accelerator):
            if self.record is not None:
                task.draw(out, self.record.rows, setup.ready.evaluated, self._outcome)
                self.progress.line(f"weights, metrics and pictures are in {out}")
        return {
            "model": setup.recipe.model,
            "source": task.images.source,
            **task.costs(setup.ready.evaluated),
            "train_images": task.images.facts["train_images"],
            "val_images": task.images.val_images,
            "epochs": self._epochs,
            **self._metrics,
            "seconds": seconds,
            "out": str(out),
        }

    def _evaluated(self, epoch: int) -> Scores:
        """The scores after `epoch` epochs, in all processes; each looks at its share of the validation images."""
        accelerator, task, model = self.setup.accelerator, self.setup.task, self.setup.ready.evaluated
        if accelerator.num_processes > 1:
            # Without synchronised statistics each process has its own averages; those of the first are saved.
            for buffer in model.buffers():
                buffer.copy_(broadcast(buffer))
        with parallel.agreed(accelerator):
            outcome = task.outcome(model, _until_stopped(self.setup.val_loader, self.stop))
        alone = accelerator.num_processes == 1
        scores = task.scores([outcome] if alone else gather_object([outcome]), epoch)
        self._epochs, self._metrics = epoch, dict(scores.metrics)
        self._outcome = outcome if alone else None
        return scores

    def _keep_epoch(self, record: RunRecord, row: Mapping[str, Any]) -> None:
        best_by = self.setup.task.best_by
        before = [earlier[best_by] for earlier in record.rows]
        self._save(WEIGHTS)
        if row[best_by] > max(before, default=-1.0):
            self._save(BEST)
        record.add(row)

    def _save(self, name: str) -> None:
        setup = self.setup
        setup.task.save(setup.begun.folder / name, setup.ready.evaluated, epoch=self._epochs, metrics=self._metrics)


def _until_stopped(loader: DataLoader[Any], stop: StopRequest) -> Iterator[loop.Batch]:
    """The batches; Stopped where somebody asks: a resumed run evaluates the epoch's checkpoint anew."""
    batches = iter(loader)
    try:
        while True:
            with stop.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            stop.obey()
            yield batch
    except Stopped:
        end_workers(loader)
        raise


def _row(epoch: loop.Epoch, scores: Scores) -> dict[str, Any]:
    return {
        "epoch": epoch.epoch,
        "train_loss": epoch.train_loss,
        **scores.row,
        "lr": epoch.lr,
        "seconds": round(epoch.seconds, 3),
        "data_wait_seconds": round(epoch.data_wait_seconds, 3),
        "images_per_second": round(epoch.images_per_second, 1),
        "skipped_images": len(epoch.skipped) + len(scores.skipped),
    }


def _line(row: Mapping[str, Any], scores: Scores, *, epochs: int) -> str:
    skipped = f"  skipped {row['skipped_images']}" if row["skipped_images"] else ""
    return (
        f"epoch {row['epoch']}/{epochs}  train loss {row['train_loss']:.4f}  {scores.line}  "
        f"lr {row['lr']:.2g}  {row['seconds']:.1f} s  data wait {row['data_wait_seconds']:.1f} s  "
        f"{row['images_per_second']:.0f} images/s{skipped}"
    )
