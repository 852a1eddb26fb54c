"""Runs side by side: read from their folders, grouped over seeds, in one table."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import device as torch_device

from parhelion.errors import UserError
from parhelion.models.catalog import create_model
from parhelion.models.count import multiply_adds, parameters
from parhelion.train import checkpoint
from parhelion.train.record import ENVIRONMENT, FREE, LOSSES, METRICS, WEIGHTS, holds_run, metrics_rows, saved_recipe

# What two runs may differ in and still be the same but for chance.
SAME_IN_OTHER_WORDS = ("seed", *FREE)
# A name tells so many differences between two runs of one model; where there are more, it is the folder's.
DIFFERENCES_TOLD = 3
NEEDED = ("epoch", "val_loss", "top1", "top5", "seconds", "images_per_second")
HEADINGS = ("run", "seeds", "epochs", "top-1", "best top-1", "loss", "parameters", "multiply-adds", "time")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One classification run as its folder tells it."""

    folder: Path
    recipe: Mapping[str, Any]
    # One for each epoch done, at least one.
    rows: tuple[Mapping[str, Any], ...]
    finished: bool
    params: int
    # Of one image as it is evaluated.
    multiply_adds: int
    # CPU and GPUs; None where the folder does not tell.
    machine: str | None


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
    """Runs that differ by nothing but chance: the seed, and where images lay. All have done the same epochs."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Stands for what all have in common."""
        return self.runs[0]

    @property
    def epochs(self) -> list[int]:
        """Numbers of the epochs done."""
        return [row["epoch"] for row in self.first.rows]

    def along(self, name: str) -> list[Spread]:
        """The metric `name` after each epoch."""
        return [Spread.of(row[name] for row in rows) for rows in zip(*(run.rows for run in self.runs), strict=True)]

    def seconds(self) -> list[float]:
        """Mean time that training took up to the end of each epoch."""
        return list(accumulate(spread.mean for spread in self.along("seconds")))

    def best(self) -> Spread:
        """The best top-1 accuracy of each run."""
        return Spread.of(max(row["top1"] for row in run.rows) for run in self.runs)

    def images_per_second(self) -> float:
        """Mean rate of training."""
        return fmean(spread.mean for spread in self.along("images_per_second"))

    def as_dict(self) -> dict[str, Any]:
        """What the table says, exactly, ready for JSON."""
        last = {name: asdict(self.along(name)[-1]) for name in ("top1", "top5", "val_loss")}
        return {
            "label": self.label,
            "folders": [str(run.folder) for run in self.runs],
            "model": self.first.recipe["model"],
            "seeds": [run.recipe["seed"] for run in self.runs],
            "epochs": self.epochs[-1],
            "finished": self.first.finished,
            **last,
            "best_top1": asdict(self.best()),
            "params": self.first.params,
            "multiply_adds": self.first.multiply_adds,
            "seconds": self.seconds()[-1],
            "images_per_second": self.images_per_second(),
        }


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`; UserError for one that is none, is named twice, or is damaged."""
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise UserError(f"the run {folder} is named twice")
        seen.add(folder.resolve())
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> Run:
    """The run in `folder`, finished or not; raises UserError."""
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not holds_run(folder):
        raise UserError(f"the folder {folder} holds no run; name a folder that parhelion train wrote")
    recipe = saved_recipe(folder)
    # Runs of classification do not say so.
    task = recipe.get("task", "classification")
    if task != "classification":
        raise UserError(f"the run {folder} is one of {task}; parhelion compare takes runs of classification")
    lacking = [name for name in ("model", "seed", "epochs", "data") if name not in recipe]
    if lacking:
        raise UserError(f"the recipe of the run {folder} lacks {', '.join(lacking)}")
    rows = _rows(folder)
    params, count = _costs(folder)
    whole = rows[-1]["epoch"] >= recipe["epochs"]
    return Run(
        folder=folder,
        recipe=recipe,
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
    return [Group(label=_label(members[0], firsts), runs=tuple(members)) for members in together.values()]


def cells(group: Group) -> tuple[str, ...]:
    """A group's row of the table, in the order of HEADINGS."""
    first = group.first
    epochs = str(group.epochs[-1]) if first.finished else f"{group.epochs[-1]} of {first.recipe['epochs']}"
    return (
        group.label,
        ", ".join(str(run.recipe["seed"]) for run in group.runs),
        epochs,
        spread_text(group.along("top1")[-1], _percent),
        spread_text(group.best(), _percent),
        spread_text(group.along("val_loss")[-1], lambda loss: f"{loss:.4f}"),
        f"{first.params / 1e6:.3f} M",
        f"{first.multiply_adds / 1e6:.1f} M" if first.multiply_adds < 1e9 else f"{first.multiply_adds / 1e9:.3f} G",
        f"{group.seconds()[-1]:.0f} s",
    )


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
    if len({run.recipe["data"] for run in runs}) > 1:
        said.append("accuracies on different images cannot be compared")
    if len({run.machine for run in runs}) > 1:
        said.append("times on different machines cannot be compared")
    return said


def _rows(folder: Path) -> tuple[Mapping[str, Any], ...]:
    rows = metrics_rows(folder)
    if not rows:
        raise UserError(f"the run {folder} has not done an epoch yet: its {METRICS} is empty or missing")
    for number, row in enumerate(rows, start=1):
        bad = [name for name in NEEDED if not isinstance(row, dict) or not isinstance(row.get(name), int | float)]
        if bad:
            raise UserError(f"line {number} of {folder / METRICS} is no row of a classification: {bad[0]} is no number")
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


def _costs(folder: Path) -> tuple[int, int]:
    """Parameters and multiply-adds of the model whose weights lie in `folder`."""
    facts = checkpoint.facts(folder / WEIGHTS)
    try:
        arguments = json.dumps(facts["model_arguments"], sort_keys=True)
        return _counted(facts["model"], arguments, facts["preprocessing"]["image_px"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the header of {folder / WEIGHTS} describes no model that can be built ({error})") from error


@lru_cache
def _counted(model: str, arguments: str, image_px: int) -> tuple[int, int]:
    given = json.loads(arguments)
    # Rows of the catalogue hold tuples, which JSON does not know.
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    with torch_device("meta"):
        network = create_model(model, **given)
    return parameters(network), multiply_adds(network, (image_px, image_px))


def _recipe(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.recipe.items() if name not in SAME_IN_OTHER_WORDS}


def _label(run: Run, firsts: Sequence[Run]) -> str:
    kin = [_recipe(other) for other in firsts if other.recipe["model"] == run.recipe["model"]]
    own, model = _recipe(run), str(run.recipe["model"])
    differing = [name for name in own if any(other.get(name) != own[name] for other in kin)]
    if len(differing) > DIFFERENCES_TOLD:
        model = f"{model} in {run.folder}"
        differing = []
    if len({other.recipe["data"] for other in firsts}) > 1 and "data" not in differing:
        differing.append("data")
    told = [_told(name, own[name]) for name in differing]
    if not run.finished:
        told.append(f"unfinished, {run.rows[-1]['epoch']} of {run.recipe['epochs']} epochs")
    return ", ".join([model, *filter(None, told)])


def _told(name: str, value: Any) -> str:
    # The model's choices say their names themselves.
    return ", ".join(value) if name == "choices" else f"{name}={value}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
