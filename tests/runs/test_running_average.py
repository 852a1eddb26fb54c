"""The running average of the weights: what is evaluated and saved where a recipe has an `ema_decay`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe
from safetensors.torch import load_file

from parhelion.runs.request import Request
from parhelion.runs.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
QUICK = quick_recipe(epochs=2, batch=8, checkpoint_updates=1)  # 8 updates


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(colour_folders(tmp_path_factory.mktemp("colours")))


def weights(out: Path) -> torch.Tensor:
    """All trained numbers of a run, in one row."""
    found = load_file(out / "weights.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found) if name.endswith("weight")])


def test_a_short_run_saves_what_it_learned_not_what_it_began_with(data, tmp_path, capsys):
    for decay in (0.0, 0.9999):
        train(replace(QUICK, ema_decay=decay), Request(data=data, out=tmp_path / f"{decay}", quiet=decay == 0.0))
    said = capsys.readouterr().err
    assert "ema_decay is 0.9999, an average over 10000 updates, but the run ends after 8 updates" in said
    train(replace(QUICK, updates=1, lr_per_256=1e-9), Request(data=data, out=tmp_path / "begun", quiet=True))
    begun, average, last = (weights(tmp_path / name) for name in ("begun", "0.9999", "0.0"))
    assert (average - last).norm() < (last - begun).norm() / 2
    assert (average - begun).norm() > (last - begun).norm() / 2
