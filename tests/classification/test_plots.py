import sys

import numpy as np
import pytest
import torch
from PIL import Image

from parhelion.classification.plots import Tile, confusion_matrix, learning_curves, prediction_sheet, sheet_rows
from parhelion.classification.scores import Outcome

ROWS = [
    {"epoch": epoch, "train_loss": 2 / epoch, "val_loss": 1.5 / epoch, "top1": 1 - 0.5 / epoch, "top5": 1.0}
    for epoch in range(1, 4)
]


def drawn(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("epochs", [1, 3])
def test_learning_curves_are_drawn_from_one_epoch_on(tmp_path, epochs):
    learning_curves(ROWS[:epochs], tmp_path / "curves.png", "halonet_tiny on $5 shirts_$")
    assert drawn(tmp_path / "curves.png")


@pytest.mark.parametrize("classes", [1, 45, pytest.param(11, marks=pytest.mark.thorough)])
def test_confusion_is_drawn_for_few_and_many_classes(tmp_path, classes):
    counts = torch.randint(5, (classes, classes))
    # No image of this class: no division by zero.
    counts[0] = 0
    confusion_matrix(counts, [f"a rather long class name ${n}" for n in range(classes)], tmp_path / "c.png", "title")
    assert drawn(tmp_path / "c.png")


@pytest.mark.parametrize(("wrong", "right"), [(0, 3), (3, 0), (9, 11), pytest.param(1, 1, marks=pytest.mark.thorough)])
def test_a_sheet_is_drawn_with_and_without_mistakes(tmp_path, wrong, right):
    colour, grey = (Image.fromarray(np.random.default_rng(0).integers(0, 255, s, "uint8")) for s in [(5, 7, 3), (5, 7)])
    tiles = [Tile(image=colour, predicted="Shirt", confidence=0.75, true="Coat of $ many colours")] * wrong
    tiles += [Tile(image=grey, predicted="Shirt", confidence=1.0, true="Shirt")] * right
    prediction_sheet(tiles, tmp_path / "sheet.png", "title")
    assert drawn(tmp_path / "sheet.png")


def test_drawing_needs_no_display_and_leaves_pyplot_alone(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    learning_curves(ROWS, tmp_path / "curves.png", "title")
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.fixture
def outcome():
    #         wrong 0.9, wrong 0.6, wrong 0.8; right in class 0 at 0.5, 0.7, in class 2 at 0.95
    confidence = torch.tensor([0.6, 0.5, 0.9, 0.7, 0.95, 0.8])
    taken, target = torch.tensor([1, 0, 2, 0, 2, 0]), torch.tensor([0, 0, 0, 0, 2, 1])
    return Outcome(top=taken[:, None], probability=confidence[:, None], target=target, loss=confidence)


def test_a_sheet_shows_the_most_confident_mistakes_and_right_answers_of_every_class(outcome):
    assert sheet_rows(outcome, wrong=2, right=3, pool=100) == [2, 5, 3, 4, 1]
    assert sheet_rows(outcome, wrong=9, right=9, pool=100) == [2, 5, 0, 3, 4, 1]
    assert sheet_rows(outcome, wrong=9, right=9, pool=3) == [2, 0, 1]
