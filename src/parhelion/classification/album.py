"""The pictures that a classification run leaves in its folder."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from parhelion.classification.plots import Tile, confusion_matrix, learning_curves, prediction_sheet, sheet_rows
from parhelion.classification.scores import Outcome
from parhelion.data.transforms import Preprocessing

CURVES = "learning_curves.png"
CONFUSION = "confusion_matrix.png"
SHEET = "predictions.png"
# Two rows of a sheet each.
MISTAKES, RIGHT = 16, 16
# The sheet is chosen among this many images, because they are read once more.
SHEET_POOL = 5000


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

    loader: the evaluation loader that `outcome` came from, with the images as the model sees them.
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
