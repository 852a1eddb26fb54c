"""A field of a recipe that changes nothing would be a promise broken: each is tried."""

import json
from dataclasses import fields, replace
from unittest.mock import patch

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe
from runs.pictures import without_pictures
from safetensors.torch import load_file
from timm.models import checkpoint_seq

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.classification.saved import Classifier
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

# With pictures of 16 pixels of 32, so that crops differ.
BASE = quick_recipe(model="halonet_tiny", epochs=1, warmup_epochs=0.25, drop_path=0.0, dropout=0.0, ema_decay=0.0)

# fmt: off
CHANGES = {  # other numbers come out of a run with this
    "model": "resnet_tiny", "image_px": 24, "in_chans": 1, "choices": ("halo=2",), "freeze": 1, "epochs": 2, "batch": 8,
    "updates": 2, "accumulate": 2, "optimizer": "lion", "lr_per_256": 0.1, "warmup_epochs": 0.0, "lr_end_ratio": 0.5,
    "layer_decay": 0.5, "momentum": 0.5, "weight_decay": 0.5, "clip_norm": 1e-3, "ema_decay": 0.5,
    "label_smoothing": 0.3, "drop_path": 0.5, "dropout": 0.5, "precision": "bf16", "crop": "padded",
    "crop_scale": (0.5, 0.6), "crop_ratio": (1.0, 1.5), "flip": 0.0, "randaugment": 9, "erase": 1.0,
    "color_jitter": 0.9, "mixup": 0.5, "cutmix": 0.5, "mean": (0.1,), "std": (0.9,), "eval_crop_ratio": 0.5,
    "eval_px": 24, "interpolation": "nearest", "seed": 8,
}
NEEDED = {"crop_scale": {"crop": "resized"}, "crop_ratio": {"crop": "resized"}}
ELSEWHERE = {  # fields that change how a run goes, not what comes out; where they are tried
    "schedule", "step_updates", "drop_updates", "compile", "recompute", "workers",  # below
    "checkpoint_updates", "keep", "sharding",  # below
    "sync_bn",  # test_processes.py
    "on_bad_image",  # test_classification.py
    "class_weights", "sampling",  # test_long_tails.py
}
# fmt: on

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Trains a recipe, once, and says where."""
    known = {}

    def of(recipe):
        if recipe not in known:
            known[recipe] = tmp_path_factory.mktemp("runs") / "run"
            # Costs are counted without the weights, and take as long as the training.
            with without_pictures(), patch("parhelion.classification.task.multiply_adds", return_value=1):
                train(recipe, Request(data=str(data), out=known[recipe], quiet=True))
        return known[recipe]

    return of


def weights(out):
    return load_file(out / "weights.safetensors")


def are_equal(ours, theirs):
    """Whether two runs had the same losses and ended with the same weights."""
    one, other = weights(ours), weights(theirs)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return same and (ours / "losses.jsonl").read_text() == (theirs / "losses.jsonl").read_text()


def test_every_field_is_tried():
    assert {field.name for field in fields(ClassificationRecipe)} == CHANGES.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_what_comes_out(field, trained):
    base = replace(BASE, **NEEDED.get(field, {}))
    changed, before = trained(replace(base, **{field: CHANGES[field]})), trained(base)
    if field.startswith("eval_") or field == "interpolation":
        assert (changed / "metrics.jsonl").read_text() != (before / "metrics.jsonl").read_text()
    else:
        assert not are_equal(changed, before)


def test_the_rate_falls_after_so_many_updates(trained):
    falling = trained(replace(BASE, schedule="step", step_updates=1))
    assert not are_equal(falling, trained(replace(BASE, schedule="step", step_updates=2)))
    assert not are_equal(falling, trained(BASE))


def test_the_rate_falls_after_the_updates_that_are_named(trained):
    base = replace(BASE, schedule="step", warmup_epochs=0.0)
    falling = trained(replace(base, drop_updates=(1, 2)))
    rates = [json.loads(line)["lr"] for line in (falling / "losses.jsonl").read_text().splitlines()]
    assert rates[1:] == pytest.approx([rates[0] / 10, rates[0] / 100])
    assert not are_equal(falling, trained(replace(base, drop_updates=(1,))))


def test_frozen_parts_are_saved_as_they_began(trained):
    ours, begun = weights(trained(replace(BASE, freeze=2))), weights(trained(replace(BASE, freeze=2, updates=1)))
    kept = [name for name in ours if name.startswith(("stem.", "stages.0."))]
    assert kept
    assert all(torch.equal(ours[name], begun[name]) for name in kept)
    assert not torch.equal(ours["head.fc.weight"], begun["head.fc.weight"])


def test_blocks_are_computed_again(trained):
    with patch("parhelion.models.resnet.checkpoint_seq", wraps=checkpoint_seq) as again:
        trained(replace(BASE, recompute=True))
    assert again.call_count


def test_compiling_compiles(trained):
    # Compiling itself takes a minute; what is asked of torch is enough here.
    with patch("torch.compile", side_effect=lambda model: model) as compiled:
        trained(replace(BASE, compile=True))
    compiled.assert_called_once()


def test_workers_change_nothing(trained):
    assert are_equal(trained(replace(BASE, workers=2)), trained(BASE))


def test_checkpoints_are_as_many_and_as_close_as_asked(trained):
    close, far = (
        trained(replace(BASE, checkpoint_updates=1, keep=2)),
        trained(replace(BASE, checkpoint_updates=0, keep=9)),
    )
    assert sorted(path.name for path in (close / "checkpoints").iterdir()) == ["000000002", "000000003"]
    assert sorted(path.name for path in (far / "checkpoints").iterdir()) == ["000000003"]


@pytest.mark.usefixtures("no_pictures")
def test_sharding_says_when_there_is_nobody_to_share_with(data, tmp_path, capsys):
    train(replace(BASE, sharding="fsdp", updates=1), Request(data=str(data), out=tmp_path / "run"))
    assert "sharding is fsdp, but one process alone holds all weights" in capsys.readouterr().err


def test_evaluation_has_its_own_size(trained):
    assert Classifier.load(trained(replace(BASE, eval_px=24))).preprocessing.image_px == 24
