"""The command line lists and shows recipes of detection."""

import json
import sys

import pytest
from cli.command_line import printed

from parhelion.recipes.table import RECIPES, recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def test_detection_recipes_are_listed_and_shown(capsys):
    lines = [line.split("\t") for line in printed(capsys, "recipes", "mask_rcnn_*").splitlines()]
    assert [line[0] for line in lines] == [name for name in RECIPES if recipe(name).task == "detection"]
    rows = {line[0]: line[1:] for line in lines}
    # 67,500 times 64 images, and 3 times 82,835,193,856 multiply-adds of the backbone for each.
    assert rows["mask_rcnn_halo_resnet50_se_coco"] == [
        *("4.3e+06", "1.1e+18", "45.2 box AP, 40.3 mask AP (paper)", "arXiv 2103.12731"),
    ]
    text = printed(capsys, "recipes", "mask_rcnn_halo_resnet50_se_coco")
    assert "--data coco:DIR" in text
    assert "--init-from runs/halo_resnet50_se_imagenet" in text
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert json.loads(fields["task"]) == "detection"
    assert json.loads(fields["drop_updates"]) == [60_000, 65_000]
    (row,) = json.loads(printed(capsys, "recipes", "mask_rcnn_resnet_tiny", "--json"))
    assert row["images"] == row["recipe"]["epochs"] * 2000
    assert row["recipe"]["task"] == "detection"
    assert "of a detector in its backbone alone" in " ".join(printed(capsys, "recipes", "--help").split())


def test_on_a_terminal_detection_recipes_are_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert "45.2 box AP, 40.3 mask AP" in printed(capsys, "recipes", "mask_rcnn_*")
