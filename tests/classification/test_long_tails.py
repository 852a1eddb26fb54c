"""Runs on a long tail of classes: weights and balanced orders act, and a run that is killed ends the same."""

import json

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe
from runs.interrupted_runs import assert_same_run, rows, stop_at
from runs.pictures import without_pictures

from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

CHANGES = {"batch": 8, "accumulate": 2, "mixup": 0.2, "checkpoint_updates": 2}

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """11 blue and 11 green images, and 2 red ones."""
    folder = colour_folders(tmp_path_factory.mktemp("tail"))
    for image in sorted((folder / "train" / "red").iterdir())[2:]:
        image.unlink()
    return folder


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The run in which rare images count and come no more often than others."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "plain"
    with without_pictures():
        train(quick_recipe(**CHANGES), Request(data=str(data), out=out, quiet=True))
    return out


def losses(out):
    return [row["loss"] for row in rows(out / "losses.jsonl")]


@pytest.mark.parametrize("field", ["class_weights", "sampling"])
def test_balancing_acts_and_a_killed_run_ends_as_if_it_had_not_been(data, plain, tmp_path, monkeypatch, field):
    recipe = quick_recipe(**CHANGES, **{field: "balanced"})
    train(recipe, Request(data=str(data), out=tmp_path / "whole", quiet=True))
    assert losses(tmp_path / "whole") != losses(plain)
    stop_at(monkeypatch, 4, killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, Request(data=str(data), out=tmp_path / "run", quiet=True))
    train(recipe, Request(data=str(data), out=tmp_path / "run", resume=True, quiet=True))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def killed():
    raise RuntimeError("killed")


def test_an_older_run_goes_on_and_its_recipe_cannot_be_changed(data, plain, tmp_path, monkeypatch):
    out, recipe = tmp_path / "run", quick_recipe(**CHANGES)
    stop_at(monkeypatch, 3, killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, Request(data=str(data), out=out, quiet=True))
    # As a version wrote it that did not know these fields.
    known = json.loads((out / "recipe.json").read_text())
    assert (known.pop("class_weights"), known.pop("sampling")) == ("none", "shuffled")
    (out / "recipe.json").write_text(json.dumps(known))
    other = quick_recipe(**CHANGES, sampling="balanced")
    with pytest.raises(UserError, match="another recipe: sampling was 'shuffled' and is 'balanced'"):
        train(other, Request(data=str(data), out=out, resume=True, quiet=True))
    train(recipe, Request(data=str(data), out=out, resume=True, quiet=True))
    assert_same_run(out, plain)
