"""Runs side by side: read from their folders, grouped over seeds, in one table."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from parhelion.compare.costs import costs
from parhelion.compare.yardsticks import YARDSTICKS, Column, Yardstick
from parhelion.data.identity import place
from parhelion.errors import UserError
from parhelion.files.run_folder import (
    BEGUN_IN,
    ENVIRONMENT,
    FREE,
    LOSSES,
    METRICS,
    WEIGHTS,
    holds_run,
    metrics_rows,
    saved_recipe,
)

# What two runs may differ in and still be the same but for chance.
SAME_IN_OTHER_WORDS = ("seed", *FREE)
# A name tells so many differences between two runs of one model; where there are more, it is the folder's.
DIFFERENCES_TOLD = 3
# What every epoch of every run has, besides what its task is measured by.
NEEDED = ("epoch", "seconds", "images_per_second")
# What differs in an epoch that is repeated.
TIMES = ("seconds", "images_per_second", "data_wait_seconds")
MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as its folder tells it."""

    folder: Path
    recipe: Mapping[str, Any]
    # What tells the weights that it began with from others, but for chance; None: it began afresh.
    start: Any
    # One for each epoch done, at least one.
    rows: tuple[Mapping[str, Any], ...]
    finished: bool
    params: int
    # Of one image as it is evaluated; of a detector, the backbone's.
    multiply_adds: int
    # CPU and GPUs; None where the folder does not tell.
    machine: str | None

    @property
    def task(self) -> str:
        """What it was trained for."""
        return _task(self.recipe)

    @property
    def name(self) -> str:
        """The model; of a detector, its kind and its backbone."""
        model = str(self.recipe["model"])
        if self.task == "classification":
            return model
        return f"{'mask_rcnn' if self.recipe.get('masks', True) else 'faster_rcnn'} {model}"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over the seeds of a group."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Mean, lowest and highest of `values`."""
        listed = list(values)
        return cls(mean=fmean(listed), low=min(listed), high=max(listed))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ by nothing but chance: the seed, that of the weights they began with, and where images lay.

    All have done the same epochs.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Stands for what all have in common."""
        return self.runs[0]

    @property
    def yardstick(self) -> Yardstick:
        """What it is compared by."""
        return YARDSTICKS[self.first.task]

    @property
    def epochs(self) -> list[int]:
        """Numbers of the epochs done."""
        return [row["epoch"] for row in self.first.rows]

    def measures(self, name: str) -> bool:
        """Whether its runs have the metric `name`: a Faster R-CNN has none of masks."""
        return name in self.yardstick.needed(self.first.recipe)

    def along(self, name: str) -> list[Spread]:
        """The metric `name` after each epoch."""
        return [Spread.of(row[name] for row in rows) for rows in zip(*(run.rows for run in self.runs), strict=True)]

    def seconds(self) -> list[float]:
        """Mean time that training took up to the end of each epoch."""
        return list(accumulate(spread.mean for spread in self.along("seconds")))

    def best(self, name: str) -> Spread:
        """The best value of each run, over its epochs, of the metric `name`."""
        return Spread.of(max(row[name] for row in run.rows) for run in self.runs)

    def images_per_second(self) -> float:
        """Mean rate of training."""
        return fmean(spread.mean for spread in self.along("images_per_second"))

    def as_dict(self) -> dict[str, Any]:
        """What the table says, exactly, ready for JSON."""
        told = self.yardstick.needed({})
        last = {name: asdict(self.along(name)[-1]) if self.measures(name) else None for name in told}
        drawn = self.yardstick.drawn
        best = {f"best_{name}": asdict(self.best(name)) if self.measures(name) else None for name in drawn}
        return {
            "label": self.label,
            "folders": [str(run.folder) for run in self.runs],
            "task": self.first.task,
            "model": self.first.recipe["model"],
            "seeds": [run.recipe["seed"] for run in self.runs],
            "epochs": self.epochs[-1],
            "finished": self.first.finished,
            **last,
            **best,
            "params": self.first.params,
            "multiply_adds": self.first.multiply_adds,
            "seconds": self.seconds()[-1],
            "images_per_second": self.images_per_second(),
        }


def read_runs(folders: Sequence[Path], note: Callable[[str], None] | None = None) -> list[Run]:
    """The runs in `folders`, all of one task, that say something: those with an epoch, and of equal ones the first.

    note: hears a sentence about each run that is left out.
    Raises UserError for runs of several tasks, for one that is named twice or is damaged, and where none has an epoch.
    """
    say = note or (lambda _: None)
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"the run {folder} is named twice")
        seen.add(folder.resolve())
    begun = [folder for folder in folders if not holds_run(folder) or metrics_rows(folder)]
    for folder in folders:
        if begun and folder not in begun:
            say(f"{folder} is left out: it has not done an epoch yet")
    runs = [read_run(folder) for folder in begun or folders]
    for run in runs:
        if run.task != runs[0].task:
            raise UserError(
                f"the run {runs[0].folder} is one of {runs[0].task} and {run.folder} one of {run.task}, which have no "
                "score in common; compare those of one task at a time"
            )
    return _without_copies(runs, say)


def _without_copies(runs: Sequence[Run], say: Callable[[str], None]) -> list[Run]:
    """`runs` without those that say what another one says: a copied folder, or a repetition, is no further seed."""
    kept: dict[str, Run] = {}
    for run in runs:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in run.rows]
        first = kept.setdefault(json.dumps([_recipe(run), run.recipe["seed"], rows], sort_keys=True), run)
        if first is not run:
            say(f"{run.folder} is left out: seed and scores are those of {first.folder}, so it is a copy or repetition")
    return list(kept.values())


def read_run(folder: Path) -> Run:
    """The run in `folder`, finished or not; raises UserError."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not holds_run(folder):
        raise UserError(f"the folder {folder} holds no run; name a folder that parhelion train wrote")
    recipe = saved_recipe(folder)
    task = _task(recipe)
    if task not in YARDSTICKS:
        raise UserError(
            f"the run {folder} is one of {task}; parhelion compare takes runs of {' and '.join(YARDSTICKS)}"
        )
    lacking = [name for name in ("model", "seed", "epochs", "data") if name not in recipe]
    if lacking:
        raise UserError(f"the recipe of the run {folder} lacks {', '.join(lacking)}")
    rows = _rows(folder, YARDSTICKS[task], recipe)
    params, count = costs(folder)
    whole = rows[-1]["epoch"] >= recipe["epochs"]
    return Run(
        folder=folder,
        recipe=recipe,
        start=_start(recipe),
        rows=rows,
        finished=whole or 0 < recipe.get("updates", 0) <= _last_update(folder),
        params=params,
        multiply_adds=count,
        machine=_machine(folder),
    )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """`runs` in groups that differ by chance only, in the order of their first members.

    A group is named by its model, and by what tells it from the other groups of that model.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([_recipe(run), len(run.rows)], sort_keys=True)
        together.setdefault(key, []).append(run)
    firsts = [members[0] for members in together.values()]
    return [Group(label=_label(members, firsts), runs=tuple(members)) for members in together.values()]


def table(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """The headings, then a row for each of `groups`; a number that none of them has is left out."""
    yardstick = groups[0].yardstick
    columns = [column for column in yardstick.columns if any(group.measures(column.metric) for group in groups)]
    costs = (yardstick.params, yardstick.work, "time")
    headings = ("run", "seeds", "epochs", *(column.heading for column in columns), *costs)
    return [headings, *(_cells(group, columns) for group in groups)]


def spread_text(spread: Spread, text: Callable[[float], str]) -> str:
    """The mean and, where values differ, the lowest and the highest: `91.2% (90.9% to 91.6%)`."""
    if spread.low == spread.high:
        return text(spread.mean)
    return f"{text(spread.mean)} ({text(spread.low)} to {text(spread.high)})"


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader of the table must know to compare fairly."""
    runs = [run for group in groups for run in group.runs]
    said = []
    if any(len(group.runs) > 1 for group in groups):
        said.append("several seeds: mean (lowest to highest)")
    if any(not run.finished for run in runs):
        said.append("a run that has not done all its epochs stands at the last it did")
    if len({_data(run.recipe) for run in runs}) > 1:
        said.append("scores on different images cannot be compared")
    if len({run.machine for run in runs}) > 1:
        said.append("times on different machines cannot be compared")
    if any(run.start is not None for run in runs):
        said.append("times leave out the training of the weights that runs began with")
    return said


def _cells(group: Group, columns: Sequence[Column]) -> tuple[str, ...]:
    first = group.first
    epochs = str(group.epochs[-1]) if first.finished else f"{group.epochs[-1]} of {first.recipe['epochs']}"
    return (
        group.label,
        ", ".join(str(run.recipe["seed"]) for run in group.runs),
        epochs,
        *(_told_number(group, column) for column in columns),
        f"{first.params / 1e6:.3f} M",
        f"{first.multiply_adds / 1e6:.1f} M" if first.multiply_adds < 1e9 else f"{first.multiply_adds / 1e9:.3f} G",
        f"{group.seconds()[-1]:.0f} s",
    )


def _told_number(group: Group, column: Column) -> str:
    if not group.measures(column.metric):
        return MISSING
    spread = group.best(column.metric) if column.best else group.along(column.metric)[-1]
    return spread_text(spread, column.text)


def _task(recipe: Mapping[str, Any]) -> str:
    # Runs of classification do not say so.
    return str(recipe.get("task", "classification"))


def _rows(folder: Path, yardstick: Yardstick, recipe: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    needed = (*NEEDED, *yardstick.needed(recipe))
    rows = metrics_rows(folder)
    if not rows:
        raise UserError(f"the run {folder} has not done an epoch yet: its {METRICS} is empty or missing")
    for number, row in enumerate(rows, start=1):
        bad = [name for name in needed if not isinstance(row.get(name), int | float)]
        if bad:
            raise UserError(f"line {number} of {folder / METRICS} is no row of {yardstick.row}: {bad[0]} is no number")
    return tuple(rows)


def _last_update(folder: Path) -> int:
    """The last update whose loss was noted; 0 where that cannot be told."""
    try:
        return json.loads((folder / LOSSES).read_text(encoding="utf-8").splitlines()[-1])["update"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _machine(folder: Path) -> str | None:
    try:
        hardware = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["hardware"]
        return ", ".join([hardware["cpu"], *hardware["gpus"]])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _start(recipe: Mapping[str, Any]) -> Any:
    """What tells the weights that a run of `recipe` began with from others, but for chance; None: it began afresh.

    That is the recipe of the run that they are of and how far it came; where no such run is there, what --init-from
    was given. Seeds of one recipe may each begin with a backbone of their own seed.
    """
    given = recipe.get("init_from")
    path = _begun_in(recipe) / Path(given or "").expanduser()
    if not given or not path.exists():
        return given or None
    folder, file = (path, WEIGHTS) if path.is_dir() else (path.parent, path.name)
    try:
        return {**_without_chance(saved_recipe(folder)), "file": file, "epochs done": len(metrics_rows(folder))}
    except UserError:
        return given


def _without_chance(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in recipe.items() if name not in SAME_IN_OTHER_WORDS}
    return {**kept, "data": _data(recipe)}


def _data(recipe: Mapping[str, Any]) -> str:
    """The source of the images, the same for all its spellings."""
    return place(str(recipe["data"]), _begun_in(recipe))


def _begun_in(recipe: Mapping[str, Any]) -> Path:
    return Path(recipe.get(BEGUN_IN) or Path.cwd())


def _recipe(run: Run) -> dict[str, Any]:
    """What makes a run what it is."""
    return {**_without_chance(run.recipe), "choices": sorted(run.recipe.get("choices", ())), "init_from": run.start}


def _label(members: Sequence[Run], firsts: Sequence[Run]) -> str:
    run = members[0]
    kin = [other for other in firsts if other.name == run.name]
    differing = [name for name in _recipe(run) if any(_differ(name, run, other) for other in kin)]
    label = run.name
    if len(differing) > DIFFERENCES_TOLD:
        label = f"{label} in {run.folder}"
        differing = []
    if len({_data(other.recipe) for other in firsts}) > 1 and "data" not in differing:
        differing.append("data")
    told = [_told(name, members, kin) for name in differing]
    if not run.finished:
        told.append(f"unfinished, {run.rows[-1]['epoch']} of {run.recipe['epochs']} epochs")
    return ", ".join([label, *filter(None, told)])


def _differ(name: str, run: Run, other: Run) -> bool:
    own, theirs = _recipe(run), _recipe(other)
    if name == "init_from" and own["choices"] != theirs["choices"]:
        # Weights of other choices are of another network, which goes without saying.
        own, theirs = ({name: _without_choices(run.start)} for run in (run, other))
    return own[name] != theirs.get(name)


def _without_choices(start: Any) -> Any:
    return {name: value for name, value in start.items() if name != "choices"} if isinstance(start, dict) else start


def _told(name: str, members: Sequence[Run], kin: Sequence[Run]) -> str:
    if name == "choices":
        # They say their names themselves.
        own, *others = (run.recipe.get(name, ()) for run in (members[0], *kin))
        return ", ".join(choice for choice in own if not all(choice in theirs for theirs in others))
    value = members[0].recipe.get(name)
    if name == "init_from":
        more = len({run.recipe.get(name) for run in members}) - 1
        return f"from {value}{f' and {more} more' if more else ''}" if value else "from scratch"
    return f"{name}={value}"
