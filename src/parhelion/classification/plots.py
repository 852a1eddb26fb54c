"""The pictures of a classification run: learning curves, confusion matrix, a sheet of predictions.

Drawn with matplotlib's objects, never pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from parhelion.classification.scores import Outcome
from parhelion.data.transforms import Preprocessing
from parhelion.files.drawing import (
    AMBER,
    BLUE,
    EMPTY,
    GREEN,
    INK,
    PAPER,
    RED,
    draw_curve,
    dress_curves,
    new_figure,
    plain,
    save_figure,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names of the files in a run's folder.
CURVES = "learning_curves.png"
CONFUSION = "confusion_matrix.png"
SHEET = "predictions.png"
# Two rows of a sheet each.
MISTAKES, RIGHT = 16, 16
# The sheet is chosen among so many images, because they are read once more.
SHEET_POOL = 5000
# With more classes a cell has no room for its number, and not every class has room for its name.
CLASSES_WITH_NUMBERS = 20
CLASSES_WITH_NAMES = 40
SHEET_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of a sheet, with its predicted and its true class."""

    image: Image.Image
    predicted: str
    confidence: float
    true: str


def draw_scores(
    out: Path, title: str, rows: Sequence[Mapping[str, float]], outcome: Outcome, class_names: Sequence[str]
) -> None:
    """Draw learning curves and confusion matrix to the folder `out`."""
    learning_curves(rows, out / CURVES, title)
    confusion_matrix(outcome.confusion(len(class_names)), class_names, out / CONFUSION, title)


def draw_sheet(
    out: Path,
    title: str,
    outcome: Outcome,
    loader: Iterable[Mapping[str, Any]],
    preprocessing: Preprocessing,
    class_names: Sequence[str],
) -> None:
    """Draw a sheet of predictions to the folder `out`.

    loader: The evaluation loader that `outcome` came from, with the images as the model sees them.
    """
    chosen = sheet_rows(outcome, wrong=MISTAKES, right=RIGHT, pool=SHEET_POOL)
    images = _images(loader, set(chosen))
    tiles = [
        Tile(
            image=_picture(images[row], preprocessing),
            predicted=class_names[int(outcome.top[row, 0])],
            confidence=outcome.probability[row, 0].item(),
            true=class_names[int(outcome.target[row])],
        )
        for row in chosen
    ]
    prediction_sheet(tiles, out / SHEET, title)


def learning_curves(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Draw loss and accuracy over the epochs of metrics.jsonl's `rows` to `path`."""
    figure = new_figure(10.0, 4.2, title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    draw_curve(loss, epochs, [row["train_loss"] for row in rows], color=AMBER, name="training")
    draw_curve(loss, epochs, [row["val_loss"] for row in rows], color=BLUE, name="validation")
    dress_curves(loss, "loss", epochs)
    loss.set_ylim(bottom=0)
    for name, label, color in (("top5", "top-5", GREEN), ("top1", "top-1", BLUE)):
        percent = [100 * row[name] for row in rows]
        draw_curve(accuracy, epochs, percent, color=color, name=f"{label}, {percent[-1]:.2f}% at last")
    dress_curves(accuracy, "validation accuracy, %", epochs)
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

    Classes take turns with their right answers, each from its most to its least confident one. Only the first `pool`
    rows are considered, and fewer rows come back where there are not enough.
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


def _images(loader: Iterable[Mapping[str, Any]], rows: set[int]) -> dict[int, Tensor]:
    """The images of `loader` at the positions `rows`; reading stops after the last of them."""
    found: dict[int, Tensor] = {}
    for row, image in enumerate(_one_by_one(loader)):
        if row in rows:
            found[row] = image
        if len(found) == len(rows):
            break
    return found


def _one_by_one(loader: Iterable[Mapping[str, Any]]) -> Iterator[Tensor]:
    for batch in loader:
        yield from batch["image"]


def _picture(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The normalised `image` (channels, h, w) as a person sees it."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preprocessing.mean, preprocessing.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
