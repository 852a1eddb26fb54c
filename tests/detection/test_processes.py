"""Several processes on one detection run under torchrun, on this machine's CPU."""

import json
import math
import shutil

import pytest
from runs.launched import in_processes
from runs.tiny_scenes import TINY, TRAIN, VAL, tiny_scenes

from parhelion.cli import main
from parhelion.detection.saved import Detector

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SIZES = (word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value)))
WORDS = (
    *("mask_rcnn_halonet_tiny", "--image-px", "64", "--batch", "4", "--epochs", "2", "--warmup-epochs", "0.5"),
    *("--checkpoint-updates", "1", *SIZES),
)
UPDATES = 2 * (TRAIN // 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


def trained(data, folder, *words):
    """What two processes print when they train, and the folder of their run."""
    out = folder / "run"
    codes, launch = in_processes(folder / "launch", [["train", *WORDS, "--data", data, "--out", str(out), *words]])
    assert codes == [[0], [0]], launch.err
    return launch.out, out


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_whole(out):
    losses = lines(out / "losses.jsonl")
    assert [row["update"] for row in losses] == list(range(1, UPDATES + 1))
    assert all(0 < row["loss"] < 10 and math.isfinite(row["loss"]) for row in losses)
    assert [row["epoch"] for row in lines(out / "metrics.jsonl")] == [1, 2]
    assert (out / "detections.png").exists()


def assert_scores_are_those_of_one_process(out, data, capsys):
    """Every image was looked at, once; how images are padded in their batches makes a small difference."""
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", data, "--batch", "2", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == VAL
    last = lines(out / "metrics.jsonl")[-1]
    for kind in ("box", "mask"):
        assert scores[kind]["ap"] == pytest.approx(last[f"{kind}_ap"], abs=0.02)
        assert scores[kind]["ar100"] == pytest.approx(last[f"{kind}_ar100"], abs=0.1)


def test_two_processes_train_evaluate_and_are_gone_on_with_by_one(data, tmp_path, capsys):
    said, out = trained(data, tmp_path, "--no-sync-bn")
    # By the first process alone.
    assert said.count("epoch 2/2") == 1
    assert_whole(out)
    assert_scores_are_those_of_one_process(out, data, capsys)
    # The averages of batch norms that are evaluated are those that are saved.
    assert Detector.load(out).metrics["box_ap"] == lines(out / "metrics.jsonl")[-1]["box_ap"]
    resumed = tmp_path / "resumed"
    shutil.copytree(out, resumed)
    # As if the run had been killed after the checkpoint before the last.
    shutil.rmtree(resumed / "checkpoints" / f"{UPDATES:09d}")
    (resumed / "detections.png").unlink()
    assert main(["train", "--resume", str(resumed)]) == 0
    assert f"going on with {resumed} after update {UPDATES - 1} of {UPDATES}" in capsys.readouterr().out
    assert_whole(resumed)
    assert lines(resumed / "losses.jsonl")[:-1] == lines(out / "losses.jsonl")[:-1]


@pytest.mark.thorough
def test_parts_of_weights_and_shared_batch_statistics_train_too(data, tmp_path, capsys):
    _, out = trained(data, tmp_path, "--sharding", "fsdp", "--ema-decay", "0.5")
    assert_whole(out)
    assert len(list((out / "checkpoints" / f"{UPDATES:09d}").glob("*.safetensors"))) == 2
    assert_scores_are_those_of_one_process(out, data, capsys)
