"""A field of a detection recipe that changes nothing would be a promise broken: each is tried."""

import json
from dataclasses import fields, replace
from unittest.mock import patch

import pytest
import torch
from runs.pictures import without_pictures
from runs.tiny_scenes import quick_detector, tiny_scenes
from safetensors.torch import load_file
from timm.models import checkpoint_seq

from parhelion.detection import scores
from parhelion.detection.recipe import DetectionRecipe
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

BASE = quick_detector(epochs=1, batch=2, warmup_epochs=0.5, clip_norm=0.0, weight_decay=0.0)

# fmt: off
CHANGES = {  # other numbers come out of a run with this
    "model": "resnet_tiny", "image_px": 48, "in_chans": 1, "choices": ("halo=2", "stem=conv7"), "freeze": 1,
    "epochs": 2, "batch": 4, "updates": 1, "accumulate": 2, "optimizer": "lion", "lr_per_256": 0.2,
    "warmup_epochs": 0.0, "lr_end_ratio": 0.9, "layer_decay": 0.5, "momentum": 0.5, "weight_decay": 0.5,
    "clip_norm": 1e-3, "ema_decay": 0.5, "drop_path": 0.5, "precision": "bf16", "flip": 0.0, "color_jitter": 0.9,
    "mean": (0.1,), "std": (0.9,), "seed": 8, "masks": False, "norm": "frozen", "norm_heads": True, "fpn_width": 12,
    "box_width": 24, "mask_width": 12, "proposals": 4, "sampled_boxes": 16, "jitter": (0.5, 0.6),
}
NEEDED = {"lr_end_ratio": {"warmup_epochs": 0.0}}
IN_EVALUATION = {"min_score": 0.5, "max_found": 1}
ELSEWHERE = {  # fields that change how a run goes, not what comes out; where they are tried
    "schedule", "step_updates", "drop_updates", "recompute", "checkpoint_updates", "keep", "sharding",  # below
    "workers", "on_bad_image", "on_bad_annotation",  # test_detection.py
    "exif",  # test_detection_photos.py
    "sync_bn",  # test_detection_processes.py
}
# fmt: on

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, val=1)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Trains a recipe, once, and says where; what it found last is in found.json."""
    known, outcome = {}, scores.outcome

    def of(recipe):
        if recipe not in known:
            out = known[recipe] = tmp_path_factory.mktemp("runs") / "run"

            def noted(*given):
                found = outcome(*given)
                (out / "found.json").write_text(json.dumps(found.entries))
                return found

            with without_pictures(), patch.object(scores, "outcome", noted):
                train(recipe, Request(data=data, out=out, quiet=True))
        return known[recipe]

    return of


def weights(out):
    return load_file(out / "weights.safetensors")


def found(out):
    return json.loads((out / "found.json").read_text())


def rates(out):
    return [json.loads(line)["lr"] for line in (out / "losses.jsonl").read_text().splitlines()]


def are_equal(ours, theirs):
    """Whether two runs had the same losses and ended with the same weights."""
    one, other = weights(ours), weights(theirs)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return same and (ours / "losses.jsonl").read_text() == (theirs / "losses.jsonl").read_text()


def test_every_field_is_tried():
    assert {field.name for field in fields(DetectionRecipe)} == CHANGES.keys() | IN_EVALUATION.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_what_comes_out(field, trained):
    base = replace(BASE, **NEEDED.get(field, {}))
    assert not are_equal(trained(replace(base, **{field: CHANGES[field]})), trained(base))


@pytest.mark.usefixtures("no_pictures")
def test_the_base_is_the_same_twice(trained, data, tmp_path):
    train(BASE, Request(data=data, out=tmp_path / "run", quiet=True))
    assert are_equal(tmp_path / "run", trained(BASE))


@pytest.mark.parametrize("field", IN_EVALUATION)
def test_a_field_of_the_evaluation_leaves_the_training_and_changes_what_is_found(field, trained):
    base, value = replace(BASE, min_score=0.2), IN_EVALUATION[field]
    ours, theirs = trained(replace(base, **{field: value})), trained(base)
    assert are_equal(ours, theirs)
    # A function of the weights alone, which are the same.
    all_found = found(theirs)
    assert len(all_found) > 1
    if field == "max_found":
        assert len(found(ours)) == 1
        assert found(ours)[0] == max(all_found, key=lambda entry: entry["score"])
    else:
        assert found(ours) == [entry for entry in all_found if entry["score"] > value]


def test_the_rate_falls_after_so_many_updates_or_after_those_that_are_named(trained):
    base = replace(BASE, epochs=2, warmup_epochs=0.0, schedule="step")
    peak = base.lr_per_256 * base.batch / 256
    assert rates(trained(replace(base, step_updates=3))) == pytest.approx([peak, peak, peak, peak / 10])
    named = trained(replace(base, drop_updates=(1, 3)))
    assert rates(named) == pytest.approx([peak, peak / 10, peak / 10, peak / 100])


@pytest.mark.usefixtures("no_pictures")
def test_a_short_try_of_a_long_recipe_trains_and_says_that_the_rate_does_not_fall(data, tmp_path, capsys):
    long = replace(BASE, schedule="step", drop_updates=(1, 60_000), updates=2, warmup_epochs=0.0)
    train(long, Request(data=data, out=tmp_path / "run"))
    assert [line for line in capsys.readouterr().err.splitlines() if "drop_updates" in line] == [
        "parhelion: drop_updates is 60000, but the run ends after 2 updates: the learning rate does not fall there"
    ]
    assert len(rates(tmp_path / "run")) == 2


def test_frozen_parts_are_saved_as_they_began(trained):
    ours, begun = weights(trained(replace(BASE, freeze=2))), weights(trained(replace(BASE, freeze=2, updates=1)))
    body = "backbone.body.model."
    kept = [name for name in ours if name.startswith((f"{body}stem.", f"{body}stages.0."))]
    assert any("running_mean" in name for name in kept)
    assert all(torch.equal(ours[name], begun[name]) for name in kept)
    moved = [f"{body}stages.2.0.reduce.weight", "roi_heads.box_head.fc6.weight"]
    assert not any(torch.equal(ours[name], begun[name]) for name in moved)


def test_fixed_norms_stay_and_the_weights_beside_them_move(trained):
    ours, begun = (weights(trained(replace(BASE, norm="frozen", updates=updates))) for updates in (0, 1))
    statistics = [name for name in ours if name.startswith("backbone.body.") and "running_" in name]
    assert len(statistics) > 10
    assert all(torch.equal(ours[name], begun[name]) for name in statistics)
    assert not torch.equal(
        ours["backbone.body.model.stages.2.0.reduce.weight"], begun["backbone.body.model.stages.2.0.reduce.weight"]
    )


def test_blocks_are_computed_again_to_the_same_end(trained):
    with patch("parhelion.models.resnet.checkpoint_seq", wraps=checkpoint_seq) as again:
        ours = weights(trained(replace(BASE, recompute=True, norm="frozen")))
    assert again.call_count
    theirs = weights(trained(replace(BASE, norm="frozen")))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-6)


def test_checkpoints_are_as_many_and_as_close_as_asked(trained):
    base = replace(BASE, batch=1)
    close, far = (
        trained(replace(base, checkpoint_updates=1, keep=3)),
        trained(replace(base, checkpoint_updates=0, keep=9)),
    )
    assert sorted(path.name for path in (close / "checkpoints").iterdir()) == ["000000002", "000000003", "000000004"]
    assert sorted(path.name for path in (far / "checkpoints").iterdir()) == ["000000004"]


@pytest.mark.usefixtures("no_pictures")
def test_sharding_says_when_there_is_nobody_to_share_with(data, tmp_path, capsys):
    train(replace(BASE, sharding="fsdp", updates=1), Request(data=data, out=tmp_path / "run"))
    assert "sharding is fsdp, but one process alone holds all weights" in capsys.readouterr().err
