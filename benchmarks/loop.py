"""What the training loop costs beyond the bare training step, and whether its memory stays flat.

    python benchmarks/loop.py            # some minutes, into benchmarks/results/loop.json
    python benchmarks/loop.py --quick    # few updates, to the terminal: does it all run?

Time: the same updates bare (forward and backward pass and optimiser, on batches in memory), through the loop on the
same batches, and through the loop with the loader that reads and augments, in turns in one process. Memory: what a
whole training run holds, every some updates, the processes that read for it apart.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import linear_regression
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.task import cross_entropy
from parhelion.cli import exit_code
from parhelion.data.loaders import go_to, make_loader
from parhelion.data.sources import open_source
from parhelion.data.transforms import train_transform
from parhelion.files.atomic import write_json
from parhelion.files.environment import environment
from parhelion.files.progress import Progress
from parhelion.files.run_folder import RunRecord
from parhelion.models import create_model
from parhelion.recipes.table import recipe
from parhelion.runs.request import Request
from parhelion.runs.setup import prepared
from parhelion.runs.trainer import train
from parhelion.seeds import seed_everything
from parhelion.speed.report import narrator, speed_report
from parhelion.speed.timing import MIB, Run, footnote, summary
from parhelion.speed.turns import in_turns
from parhelion.train import loop, parallel
from parhelion.train.checkpoint import Checkpoints
from parhelion.train.stopping import StopRequest

RESULTS = Path(__file__).parent / "results" / "loop.json"
PACKAGES = ("parhelion", "torch", "timm", "accelerate")
MODELS = ("resnet_tiny", "halonet_tiny")
IMAGE_PX = 28
# Of a way in the report, with what they are printed in: milliseconds, percent, milliseconds.
COLUMNS = {"update_seconds": 1e3, "overhead": 1e2, "data_wait_seconds": 1e3}
BARE, LOOP = "bare step", "loop, batches in memory"
READERS = {"loop, read in the process": 0, "loop, read by a worker": 1}
# Memory is watched where many updates take little time: what is looked for grows with updates, not with images.
WATCHED, WATCHED_BATCH, WATCHED_WORKERS = "halonet_tiny", 16, (0, 2)


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long everything is measured, in updates where nothing else is said."""

    turn: int
    rounds: int
    saves: int
    watched: int
    # Until the first checkpoint and the first evaluation are over.
    warm: int
    sample_every: int
    checkpoint_every: int


FULL = Length(turn=32, rounds=9, saves=7, watched=2000, warm=700, sample_every=100, checkpoint_every=500)
QUICK = Length(turn=4, rounds=2, saves=2, watched=20, warm=8, sample_every=4, checkpoint_every=10)


class LossKeeper:
    """Writes losses as a run does, and notes what was waited; neither evaluates nor saves, which is measured apart."""

    def __init__(self, folder: Path, wanted: ClassificationRecipe) -> None:
        self.data_wait_seconds = 0.0
        self._record = RunRecord(folder, recipe=wanted.as_dict(), environment=environment(seed=wanted.seed))

    def add_losses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append them to the run's file."""
        self._record.add_losses(rows)

    def checkpoint(self, state: loop.State) -> None:
        """Bring the losses to the disk."""
        self._record.flush_losses()

    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Note what the epoch waited for data."""
        self.data_wait_seconds = epoch.data_wait_seconds


class Subject:
    """A network of the table with all that trains it, for `updates` updates at a time."""

    def __init__(self, name: str, updates: int, folder: Path) -> None:
        self.updates, self.folder = updates, folder
        self.recipe = replace(recipe(name), image_px=IMAGE_PX)
        self.accelerator = parallel.accelerator_for(self.recipe.precision)
        self._source = open_source("bundled", in_chans=self.recipe.in_chans, splits=("train",))
        self._keeper = LossKeeper(folder, self.recipe)
        self._plan = loop.Plan(updates_per_epoch=updates, updates=updates)
        self.ready = self._ready()
        self.in_memory = list(self.reader(0)(0, 0))
        # By way, of each turn.
        self.waits: dict[str, list[float]] = {}

    def _ready(self) -> Any:
        wanted, classes = self.recipe, len(self._source.class_names)
        seed_everything("weights", wanted.seed)
        model: Any = create_model(
            wanted.model, num_classes=classes, in_chans=wanted.in_chans, image_size=wanted.image_px
        )
        model.to(memory_format=torch.channels_last)
        return prepared(wanted, self.accelerator, model, cross_entropy(wanted, classes), self._plan)

    def reader(self, workers: int) -> Callable[[int, int], Iterable[loop.Batch]]:
        """Reads the last batches of an epoch, as many as a turn has."""
        loader = make_loader(
            self._source.train,
            train_transform(self.recipe.preprocessing(self.recipe.image_px), self.recipe.augmentation()),
            batch=self.recipe.batch,
            train=True,
            workers=workers,
        )

        def batches(epoch: int, _done: int) -> Iterator[loop.Batch]:
            go_to(loader, epoch, len(loader) - self.updates)
            return iter(loader)

        return batches

    def bare(self) -> tuple[()]:
        """The updates with nothing around them."""
        model, wrapped = self.ready.train_state.model.train(), self.ready.train_state.optimization.optimizer
        optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        for batch in self.in_memory:
            optimizer.zero_grad()
            logits = model(batch["image"].contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, batch["target"], label_smoothing=self.recipe.label_smoothing).backward()
            optimizer.step()
        return ()

    def looped(self, name: str, batches: Callable[[int, int], Iterable[loop.Batch]]) -> tuple[()]:
        """The updates through the loop, under the name that its waiting is noted by."""
        with Progress(self.updates * self.recipe.batch, quiet=True) as progress, StopRequest() as stop:
            loop.train(
                loop.Training(
                    accelerator=self.accelerator,
                    step=self.ready.step,
                    optimization=self.ready.train_state.optimization,
                    batches=batches,
                    plan=self._plan,
                    state=loop.State(),
                    keeper=self._keeper,
                    progress=progress,
                    stop=stop,
                )
            )
        self.waits.setdefault(name, []).append(self._keeper.data_wait_seconds)
        return ()

    def ways(self) -> dict[str, Run]:
        """The updates in every way, by name."""
        ways: dict[str, Run] = {BARE: self.bare, LOOP: partial(self.looped, LOOP, lambda _epoch, _done: self.in_memory)}
        for name, workers in READERS.items():
            ways[name] = partial(self.looped, name, self.reader(workers))
        return ways

    def save_seconds(self, saves: int) -> list[float]:
        """How long each of some checkpoints takes."""
        checkpoints = Checkpoints(self.folder / "checkpoints", self.accelerator, keep=2)
        train_state, seconds = self.ready.train_state, []
        for update in range(saves):
            started = time.perf_counter()
            checkpoints.save(update, train_state.tensors(), {"train_state": train_state.facts()})
            seconds.append(time.perf_counter() - started)
        return seconds


def overhead(name: str, length: Length, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of an update of `name` in every way, what each adds to the bare step, and seconds of a checkpoint."""
    subject = Subject(name, length.turn, folder)
    turns = in_turns(subject.ways(), rounds=length.rounds, say=lambda text: say(f"{name}: {text}"))
    rows = []
    for way, samples in turns.items():
        # Turn by turn, so that what slows a whole round down does not count.
        added = [sample / bare - 1 for sample, bare in zip(samples, turns[BARE], strict=True)]
        waited = [seconds / length.turn for seconds in subject.waits.get(way, [])[-length.rounds :]]
        rows.append(
            {
                "name": way,
                "update_seconds": asdict(summary([sample / length.turn for sample in samples])),
                "overhead": asdict(summary(added)),
                "data_wait_seconds": asdict(summary(waited)) if waited else None,
            }
        )
    facts = {"model": name, "image_px": IMAGE_PX, "batch": subject.recipe.batch, "updates_a_turn": length.turn}
    every = subject.recipe.checkpoint_updates
    return {
        **facts,
        "ways": rows,
        "checkpoint_seconds": asdict(summary(subject.save_seconds(length.saves))),
        "checkpoint_updates": every,
    }


def watched_run(workers: int, length: Length, folder: Path) -> dict[str, Any]:
    """A whole run with its evaluations and checkpoints, and the memory that it holds."""
    wanted = replace(
        recipe(WATCHED),
        image_px=IMAGE_PX,
        batch=WATCHED_BATCH,
        updates=length.watched,
        workers=workers,
        checkpoint_updates=length.checkpoint_every,
    )
    seen = watched(lambda: train(wanted, Request(data="bundled", out=folder, quiet=True)), length)
    return {"model": WATCHED, "batch": WATCHED_BATCH, "workers": workers} | seen


def watched(run: Callable[[], Any], length: Length) -> dict[str, Any]:
    """The memory that `run` and the processes that read for it hold every some updates, in MiB, and its growth.

    Raises:
        RuntimeError: `run` made another number of updates than `length` says.
    """
    process, samples, done = psutil.Process(), list[tuple[int, float, float]](), 0

    def look(optimizer: torch.optim.Optimizer, _arguments: Any, _options: Any) -> None:
        nonlocal done
        done += 1
        if done % length.sample_every == 0:
            readers = sum(child.memory_info().rss for child in process.children())
            samples.append((done, process.memory_info().rss / MIB, readers / MIB))

    handle = register_optimizer_step_post_hook(look)
    try:
        run()
    finally:
        handle.remove()
    if done != length.watched:
        raise RuntimeError(f"{done} updates were seen, but the run has {length.watched}")
    return {"samples_mib": samples, **growth(samples, length)}


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process where nothing else has lived; that ends with this one's Ctrl-C."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        try:
            return fresh.submit(function, *arguments).result()
        except KeyboardInterrupt:
            for child in active_children():
                child.terminate()
            raise


def growth(samples: Sequence[tuple[int, float, float]], length: Length) -> dict[str, float]:
    """MiB per 1,000 updates after the warm-up, and first and last MiB then, of the process and of its readers."""
    warm = [sample for sample in samples if sample[0] > length.warm]
    updates = [sample[0] for sample in warm]
    found = {}
    for place, who in ((1, "process"), (2, "readers")):
        mib = [sample[place] for sample in warm]
        found[f"{who}_mib_per_1000_updates"] = 1000 * linear_regression(updates, mib).slope
        found[f"{who}_first_mib"], found[f"{who}_last_mib"] = mib[0], mib[-1]
    return found


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as aligned text."""
    text = []
    for case in report["overhead"]:
        text += ["", f"{case['model']}, {case['image_px']} px, batch {case['batch']}: ms an update, added, waited"]
        for row in case["ways"]:
            took, added, waited = (_spread(row[key], scale) for key, scale in COLUMNS.items())
            text.append(f"  {row['name']:<28}{took:>26}{added:>24} %{waited:>24}")
        saved = case["checkpoint_seconds"]["median"]
        share = saved / case["checkpoint_updates"] / case["ways"][0]["update_seconds"]["median"]
        text.append(f"  a checkpoint takes {1e3 * saved:.0f} ms; every {case['checkpoint_updates']}: {share:.2%} more")
    return [*text, *memory_lines(report["memory"]), "", footnote(report)]


def memory_lines(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `watched` saw of some runs as aligned text."""
    text = []
    for run in runs:
        text += ["", f"{run['model']}, batch {run['batch']}, {run['workers']} workers: MiB"]
        for who in ("process", "readers"):
            first, last, slope = (run[f"{who}_{key}"] for key in ("first_mib", "last_mib", "mib_per_1000_updates"))
            text.append(f"  {who:<10}{first:>10.1f} to {last:.1f}; {slope:+.2f} per 1,000 updates")
    return text


def _spread(seconds: Mapping[str, float] | None, scale: float) -> str:
    if seconds is None:
        return "-"
    low, middle, high = (scale * seconds[key] for key in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few updates, and nothing is written")
    quick = parser.parse_args().quick
    length, say = QUICK if quick else FULL, narrator()
    with tempfile.TemporaryDirectory() as work:
        cases = [overhead(name, length, Path(work) / name, say) for name in MODELS]
        memory = []
        for workers in WATCHED_WORKERS:
            say(f"{WATCHED}: {length.watched} updates, {workers} workers")
            memory.append(in_fresh_process(watched_run, workers, length, Path(work) / f"workers{workers}"))
    report = speed_report([], "The training loop", packages=PACKAGES)
    del report["cases"]
    report |= {"overhead": cases, "memory": memory}
    say("")
    print("\n".join(lines(report)))
    if not quick:
        write_json(RESULTS, report)


if __name__ == "__main__":
    sys.exit(exit_code(main))
