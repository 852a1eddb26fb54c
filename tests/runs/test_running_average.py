"""The running average of the weights: what is evaluated and saved where a recipe has an `ema_decay`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe
from runs.interrupted_runs import assert_same_run, stop_at
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

from parhelion.classification import album
from parhelion.runs import setup
from parhelion.classification.task import train
from parhelion.train.state import Moving
from parhelion.train.stopping import Stopped

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = quick_recipe(epochs=2, batch=8, checkpoint_updates=1)  # 8 updates


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(colour_folders(tmp_path_factory.mktemp("colours")))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(album, "draw_scores", lambda *_: None)
    monkeypatch.setattr(album, "draw_sheet", lambda out, *_: (out / album.SHEET).touch())


def weights(out: Path) -> torch.Tensor:
    """All trained numbers of a run, in one row."""
    found = load_file(out / "weights.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found) if name.endswith("weight")])


def test_a_short_run_saves_what_it_learned_not_what_it_began_with(data, tmp_path, capsys):
    for decay in (0.0, 0.9999):
        train(replace(QUICK, ema_decay=decay), data=data, out=tmp_path / f"{decay}", quiet=decay == 0.0)
    said = capsys.readouterr().err
    assert "ema_decay is 0.9999, an average over 10000 updates, but the run ends after 8 updates" in said
    train(replace(QUICK, updates=1, lr_per_256=1e-9), data=data, out=tmp_path / "begun", quiet=True)
    begun, average, last = (weights(tmp_path / name) for name in ("begun", "0.9999", "0.0"))
    assert (average - last).norm() < (last - begun).norm() / 2
    assert (average - begun).norm() > (last - begun).norm() / 2


def unwarmed(model, decay, *, foreach=True):
    return ModelEmaV3(model, decay=decay, foreach=foreach)


def test_a_run_begun_before_averages_were_warmed_up_goes_on_without(data, tmp_path, monkeypatch):
    recipe = replace(QUICK, ema_decay=0.75)
    facts = Moving.facts
    with monkeypatch.context() as before:
        before.setattr(preparing, "running_average", unwarmed)
        train(recipe, data=data, out=tmp_path / "whole", quiet=True)
        # What such a run's checkpoints do not say.
        before.setattr(Moving, "facts", lambda self: {k: v for k, v in facts(self).items() if k != "ema_warmup"})
        stop_at(before, 5, lambda: (_ for _ in ()).throw(Stopped(143, "")))
        with pytest.raises(Stopped):
            train(recipe, data=data, out=tmp_path / "run", quiet=True)
    train(recipe, data=data, out=tmp_path / "run", resume=True, quiet=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
