"""What runs of each task are compared by: their scores and the costs of their models."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from parhelion.errors import UserError
from parhelion.files.run_folder import WEIGHTS
from parhelion.files.weights import read_facts


def percent(share: float) -> str:
    """`share` in a table: `91.25%`."""
    return f"{100 * share:.2f}%"


def decimals(value: float) -> str:
    """`value` in a table: `0.4683`."""
    return f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A score in the table."""

    heading: str
    # Its name in metrics.jsonl.
    metric: str
    # The best of all epochs instead of the last.
    best: bool = False
    text: Callable[[float], str] = percent


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What runs of one task are compared by; metrics have their names in metrics.jsonl."""

    task: str
    columns: tuple[Column, ...]
    # Metrics that are drawn, shares of which more is better, each with its title.
    drawn: Mapping[str, str]
    # Metrics of the last epoch that --json gives besides those of the columns.
    also: tuple[str, ...] = ()
    # Titles of the two costs.
    params: str = "parameters"
    work: str = "multiply-adds"

    @property
    def shares(self) -> tuple[Column, ...]:
        """Columns of the last epoch's scores in percent."""
        return tuple(column for column in self.columns if not column.best and column.text is percent)

    def needed(self, recipe: Mapping[str, Any]) -> tuple[str, ...]:
        """The metrics that every epoch of a run of `recipe` must have."""
        # Faster R-CNN segments nothing.
        masks = recipe.get("masks", True)
        names = dict.fromkeys([*(column.metric for column in self.columns), *self.also])
        return tuple(name for name in names if masks or not name.startswith("mask_"))


CLASSIFICATION = Comparison(
    task="classification",
    columns=(
        Column(heading="top-1", metric="top1"),
        Column(heading="best top-1", metric="top1", best=True),
        Column(heading="loss", metric="val_loss", text=decimals),
    ),
    drawn={"top1": "top-1"},
    also=("top5",),
)
DETECTION = Comparison(
    task="detection",
    columns=(
        Column(heading="box AP", metric="box_ap"),
        Column(heading="box AP50", metric="box_ap50"),
        Column(heading="mask AP", metric="mask_ap"),
        Column(heading="mask AP50", metric="mask_ap50"),
    ),
    drawn={"box_ap": "box AP", "mask_ap": "mask AP"},
    params="detector parameters",
    work="backbone multiply-adds",
)
# By the `task` of a recipe.
COMPARISONS = {comparison.task: comparison for comparison in (CLASSIFICATION, DETECTION)}


def costs(comparison: Comparison, folder: Path) -> tuple[int, int]:
    """Parameters of the model whose weights lie in `folder`, and multiply-adds of one image as it is evaluated.

    Raises UserError where the weights are damaged or describe no model that can be built.
    """
    facts = read_facts(folder / WEIGHTS)
    try:
        # Only what the model is built from: seeds of one recipe are counted once.
        return _counted(comparison.task, json.dumps({name: facts[name] for name in _saved(comparison.task).FACTS}))
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the header of {folder / WEIGHTS} describes no model that can be built ({error})") from error


@lru_cache
def _counted(task: str, facts: str) -> tuple[int, int]:
    counted: tuple[int, int] = _saved(task).costs(json.loads(facts))
    return counted


def _saved(task: str) -> ModuleType:
    """The module that saves models of `task`. It brings torch, which mistakes in the folder of a run do not need."""
    return import_module(f"parhelion.{task}.saved")
