"""Pictures of a run as PNG: learning curves, confusion matrix, a sheet of predictions.

Drawn with matplotlib's objects, never pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parhelion.classification.scores import Outcome
from parhelion.files.drawing import (
    AMBER,
    BLUE,
    EMPTY,
    GREEN,
    INK,
    PAPER,
    RED,
    dress,
    new_figure,
    plain,
    save_figure,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

# Beyond these many classes a cell has no room for its number, and not every class for its name.
CLASSES_WITH_NUMBERS = 20
CLASSES_WITH_NAMES = 40
SHEET_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of a sheet, with what the model took it for."""

    image: Image
    predicted: str
    confidence: float
    true: str


def learning_curves(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Draw loss and accuracy over the epochs of metrics.jsonl's `rows` to `path`."""
    figure = new_figure(10.0, 4.2, title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    _curve(loss, epochs, [row["train_loss"] for row in rows], AMBER, "training")
    _curve(loss, epochs, [row["val_loss"] for row in rows], BLUE, "validation")
    _dress(loss, "loss", epochs)
    loss.set_ylim(bottom=0)
    for name, label, color in (("top5", "top-5", GREEN), ("top1", "top-1", BLUE)):
        percent = [100 * row[name] for row in rows]
        _curve(accuracy, epochs, percent, color, f"{label}, {percent[-1]:.2f}% at last")
    _dress(accuracy, "validation accuracy, %", epochs)
    low = min(100 * row["top1"] for row in rows)
    accuracy.set_ylim(bottom=max(0.0, low - 0.25 * (101 - low)), top=101)
    save_figure(figure, path)


def confusion_matrix(counts: Tensor, class_names: Sequence[str], path: Path, title: str) -> None:
    """Draw `counts` (true class by row, predicted by column) as percent of each row to `path`."""
    classes = len(class_names)
    share = 100 * counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    side = min(13.0, max(5.0, 2.4 + 0.56 * classes))
    figure = new_figure(side, side, title)
    axes = figure.subplots()
    right = torch.eye(classes, dtype=torch.bool)
    _heat(axes, share.masked_fill(~right, torch.nan), "Blues")
    _heat(axes, share.masked_fill(right | (share == 0), torch.nan), "Oranges")
    axes.set_facecolor(EMPTY)
    axes.set_title("% of each true class; blue: right, orange: mistaken", color=INK, size=10, loc="left")
    _name_classes(axes, class_names)
    if classes <= CLASSES_WITH_NUMBERS:
        _number_cells(axes, share)
        for edge in range(1, classes):
            axes.axhline(edge - 0.5, color=PAPER, lw=1)
            axes.axvline(edge - 0.5, color=PAPER, lw=1)
    save_figure(figure, path)


def sheet_rows(outcome: Outcome, *, wrong: int, right: int, pool: int) -> list[int]:
    """Rows of `outcome` worth showing: the most confident mistakes, then right answers from every class.

    Right answers take turns by class, from the surest of a class to its least sure. Only the first `pool` rows
    are looked at; fewer come out where there are fewer.
    """
    sure = outcome.probability[:pool, 0].argsort(descending=True, stable=True)
    hit = (outcome.top[:, 0] == outcome.target)[sure]
    mistakes = sure[~hit][:wrong].tolist()
    queues = [sure[hit & (outcome.target[sure] == name)].tolist() for name in outcome.target.unique()]
    queues = [queue for queue in queues if queue]
    turns = -(-right // max(1, len(queues)))
    chosen = [queue[turn * (len(queue) - 1) // max(1, turns - 1)] for turn in range(turns) for queue in queues]
    return mistakes + list(dict.fromkeys(chosen))[:right]


def prediction_sheet(tiles: Sequence[Tile], path: Path, title: str) -> None:
    """Draw `tiles` to `path`: mistakes first, marked red with the true name, then right answers."""
    wrong = [tile for tile in tiles if tile.predicted != tile.true]
    right = [tile for tile in tiles if tile.predicted == tile.true]
    bands = [("Most confident mistakes", RED, wrong), ("Right", GREEN, right)]
    bands = [band for band in bands if band[2]]
    rows = [-(-len(band[2]) // SHEET_COLUMNS) for band in bands]
    # In inches: a heading, and for each row an image with its lines of text.
    heights = [0.4 + count * (1.62 + 0.17 * (band[2] is wrong)) for count, band in zip(rows, bands, strict=True)]
    figure = new_figure(1.45 * SHEET_COLUMNS, 0.5 + sum(heights), title)
    parts = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, count, (name, color, shown) in zip(parts, rows, bands, strict=True):
        part.suptitle(name, color=color, size=12, weight="bold", x=0.012, ha="left")
        grid = part.subplots(count, SHEET_COLUMNS, squeeze=False).ravel()
        for axes, tile in zip(grid, shown, strict=False):
            _draw_tile(axes, tile, color)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
    save_figure(figure, path)


def _heat(axes: Axes, share: Tensor, colors: str) -> None:
    from matplotlib.colors import PowerNorm

    # A power below one, so that a few percent are seen as well.
    axes.imshow(share.numpy(), cmap=colors, norm=PowerNorm(0.5, 0, 100), interpolation="nearest")


def _curve(axes: Axes, epochs: Sequence[float], values: Sequence[float], color: str, name: str) -> None:
    axes.plot(epochs, values, color=color, lw=2, marker="o", ms=4, label=name)


def _dress(axes: Axes, label: str, epochs: Sequence[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    dress(axes, label, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)
    axes.legend(frameon=False, labelcolor=INK)


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    step = -(-len(class_names) // CLASSES_WITH_NAMES)
    places = list(range(0, len(class_names), step))
    names = [plain(short(class_names[place], 18)) for place in places]
    size = 10 if len(places) <= CLASSES_WITH_NUMBERS else 7
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor", size=size)
    axes.set_yticks(places, names, size=size)
    axes.set_xlabel("taken for", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)


def _number_cells(axes: Axes, share: Tensor) -> None:
    for row, column in torch.nonzero(share.round() >= 1).tolist():
        value = share[row, column].item()
        color = PAPER if value > 40 else INK
        weight = "bold" if row == column else "normal"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=9, weight=weight)


def _draw_tile(axes: Axes, tile: Tile, color: str) -> None:
    small = max(tile.image.size) < 100
    how: dict[str, Any] = {"interpolation": "nearest" if small else "antialiased"}
    if tile.image.mode == "L":
        how |= {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes.imshow(tile.image, **how)
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color)
        spine.set_linewidth(2)
    text = f"{short(tile.predicted, 15)} {100 * tile.confidence:.0f}%"
    if tile.predicted != tile.true:
        text += f"\ntrue: {short(tile.true, 15)}"
    axes.set_xlabel(plain(text), color=INK, size=8.5)
