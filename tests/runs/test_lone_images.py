"""Batches of one image where the last map is one pixel: batch norm has nothing to compare."""

import json
from dataclasses import replace

import pytest
from runs.colour_folders import colour_folders, quick_recipe, truncate
from runs.interrupted_runs import assert_same_run, stop_at
from runs.tiny_scenes import quick_detector, tiny_scenes

from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

# The last map has 1/8 of the image's side; that of the detector's backbone 1/16.
SMALLEST, SMALLEST_DETECTED = 8, 16

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


def smallest(**changes):
    return quick_recipe(**{"image_px": SMALLEST, "epochs": 1, **changes})


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "parts", "words"),
    [
        ("resnet_tiny", {"batch": 1}, "batch is 1, so one image comes at a time"),
        ("halonet_tiny", {"batch": 5, "accumulate": 5}, "batch is 5 in 5 parts, so one image comes at a time"),
        ("gsa_tiny", {"batch": 1, "freeze": 2}, "batch is 1, so one image comes at a time"),
    ],
)
def test_one_image_at_a_time_is_refused_before_training(data, tmp_path, model, parts, words):
    with pytest.raises(UserError, match=rf"^{words}, and of one image of 8 pixels batch norm gets one value"):
        train(smallest(model=model, **parts), Request(data=str(data), out=tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_single_training_image_is_refused_before_training(tmp_path):
    images = tiny_scenes(tmp_path / "data", train=1, val=1)
    with pytest.raises(UserError, match=r"^there is one training image, and of one image of 16 pixels batch norm"):
        train(quick_detector(image_px=SMALLEST_DETECTED), Request(data=images, out=tmp_path / "run", quiet=True))


def test_one_image_at_a_time_trains_where_every_map_is_larger_or_every_norm_is_frozen(data, tmp_path, capsys):
    alone = {"batch": 12, "accumulate": 12, "updates": 1}
    train(smallest(image_px=9, **alone), Request(data=str(data), out=tmp_path / "larger"))
    said = capsys.readouterr().err
    assert "batch is 12 in 12 parts, so one image comes at a time: batch norm takes its statistics from that" in said
    frozen = smallest(freeze=4, **alone)
    train(frozen, Request(data=str(data), out=tmp_path / "frozen"))
    assert "batch norm" not in capsys.readouterr().err


def test_an_image_that_skipping_left_alone_is_left_out_and_counted(tmp_path, monkeypatch, capsys):
    images = colour_folders(tmp_path / "data")
    for number in range(6):
        truncate(next((images / "train" / "red").glob(f"{number}.*")))
    recipe = smallest(batch=2, epochs=2, on_bad_image="skip", checkpoint_updates=8, ema_decay=0.75)
    train(recipe, Request(data=str(images), out=tmp_path / "whole"))
    said = capsys.readouterr().out
    alone = [line for line in said.splitlines() if "it came alone in its batch" in line]
    assert alone
    assert all(line.startswith("skipped: the image ") for line in alone)
    losses = [json.loads(line) for line in (tmp_path / "whole" / "losses.jsonl").read_text().splitlines()]
    first = rows(tmp_path / "whole")[0]
    # 16 updates of two images; the 33rd image is left over.
    trained = 2 * sum(row["epoch"] == 1 for row in losses)
    assert 32 - 6 - 1 <= trained + first["skipped_images"] - 6 <= 32
    assert first["skipped_images"] > 6
    out = tmp_path / "killed"
    stop_at(monkeypatch, 19, killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, Request(data=str(images), out=out, quiet=True))
    train(recipe, Request(data=str(images), out=out, resume=True, quiet=True))
    assert_same_run(out, tmp_path / "whole")


def killed():
    raise RuntimeError("killed")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, val=2)


def test_a_detector_refuses_one_image_at_a_time_where_none_is_large_enough(scenes, tmp_path, capsys):
    alone = quick_detector(image_px=SMALLEST_DETECTED, batch=1, epochs=1, warmup_epochs=0.5)
    with pytest.raises(UserError, match=r"^batch is 1, so one image comes at a time, and of one image of 16 pixels"):
        train(alone, Request(data=scenes, out=tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()
    train(replace(alone, norm="frozen"), Request(data=scenes, out=tmp_path / "frozen"))
    assert "batch norm" not in capsys.readouterr().err


def test_a_detector_leaves_out_images_that_are_scaled_too_small_for_a_batch_of_their_own(scenes, tmp_path, capsys):
    # Some of the images are scaled to at most 16 pixels, the others are larger.
    recipe = quick_detector(image_px=32, jitter=(0.3, 1.0), batch=1, epochs=2, warmup_epochs=0.5)
    train(recipe, Request(data=scenes, out=tmp_path / "run"))
    said = capsys.readouterr()
    alone = [line for line in said.out.splitlines() if "it came alone in its batch" in line]
    assert 0 < len(alone) < 4
    assert sum(row["skipped_images"] for row in rows(tmp_path / "run")) >= len(alone)
    assert "batch norm takes its statistics from that image alone" in said.err
