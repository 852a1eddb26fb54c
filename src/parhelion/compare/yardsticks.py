"""`Yardstick`: what runs of one task are compared by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


def percent(share: float) -> str:
    """`share` as a table shows it: `91.25%`."""
    return f"{100 * share:.2f}%"


def decimals(value: float) -> str:
    """`value` as a table shows it: `0.4683`."""
    return f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number of the table."""

    heading: str
    # Its name in metrics.jsonl.
    metric: str
    # The best of all epochs, not the last.
    best: bool = False
    text: Callable[[float], str] = percent


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What runs of one task are compared by; metrics by their names in metrics.jsonl, the more the better."""

    # What a row of metrics.jsonl is, in words.
    row: str
    columns: tuple[Column, ...]
    # Shares that are drawn, each with its name.
    drawn: Mapping[str, str]
    # What --json tells besides, of the last epoch.
    also: tuple[str, ...] = ()
    # What the two costs are called.
    params: str = "parameters"
    work: str = "multiply-adds"

    @property
    def shares(self) -> tuple[Column, ...]:
        """Columns of what came of the last epoch, as far as it is told in percent."""
        return tuple(column for column in self.columns if not column.best and column.text is percent)

    def needed(self, recipe: Mapping[str, Any]) -> tuple[str, ...]:
        """Metrics that every epoch of a run of `recipe` has."""
        # Faster R-CNN segments nothing.
        masks = recipe.get("masks", True)
        names = dict.fromkeys([*(column.metric for column in self.columns), *self.also])
        return tuple(name for name in names if masks or not name.startswith("mask_"))


CLASSIFICATION = Yardstick(
    row="a classification",
    columns=(
        Column(heading="top-1", metric="top1"),
        Column(heading="best top-1", metric="top1", best=True),
        Column(heading="loss", metric="val_loss", text=decimals),
    ),
    drawn={"top1": "top-1"},
    also=("top5",),
)
DETECTION = Yardstick(
    row="a detection",
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
YARDSTICKS = {"classification": CLASSIFICATION, "detection": DETECTION}
