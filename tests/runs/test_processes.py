"""Several processes on one run under torchrun, on this machine's CPU."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from runs.colour_folders import colour_folders, colour_shards, truncate
from runs.launched import ends_with_code, in_processes, launched, wait_for
from runs.pictures import without_pictures
from safetensors.torch import load_file

from parhelion.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_pictures")]

# SGD, because Adam divides by tiny gradients in its first updates, which makes rounding large.
WORDS = (
    *("halonet_tiny", "--image-px", "16", "--batch", "12", "--epochs", "2", "--seed", "7"),
    *("--optimizer", "sgd", "--lr-per-256", "0.05", "--checkpoint-updates", "1"),
)
UPDATES = 2 * (33 // 12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


def arguments(data, out, *words):
    return ["train", *WORDS, "--data", str(data), "--out", str(out), *words]


def run(folder, processes, *words):
    """Train in `processes` processes, to the end; what they said."""
    codes, launch = in_processes(folder, [arguments(*words)], processes=processes)
    assert codes == [[0]] * processes, launch.err
    return launch.out + launch.err


def run_here(data, out, *words):
    """Train in this process alone, which need not start first."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(arguments(data, out, *words)) == 0
    return said.getvalue()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_losses(ours, theirs):
    """Equal up to rounding, which grows from update to update: as between a run with one thread and one with two."""
    torch.testing.assert_close(ours[:3], theirs[:3], rtol=2e-6, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


def losses(out):
    rows = lines(out / "losses.jsonl")
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    return torch.tensor([row["loss"] for row in rows])


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    torch.set_num_threads(1)
    with without_pictures():
        run_here(data, out)
    return out


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """The run of two processes that share the weights' parts."""
    out = tmp_path_factory.mktemp("runs") / "two"
    with without_pictures():
        run(out.with_name("launch"), 2, data, out, "--sharding", "fsdp", "--ema-decay", "0.5")
    return out


def test_two_processes_have_the_losses_of_one(data, alone, tmp_path):
    run(tmp_path / "launch", 2, data, tmp_path / "ddp")
    assert_same_losses(losses(tmp_path / "ddp"), losses(alone))
    ours, theirs = (load_file(out / "weights.safetensors") for out in (tmp_path / "ddp", alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)
    assert lines(tmp_path / "ddp" / "metrics.jsonl")[-1]["top1"] == lines(alone / "metrics.jsonl")[-1]["top1"]


def test_parts_of_weights_have_the_losses_of_the_whole(alone, two):
    assert_same_losses(losses(two), losses(alone))
    assert len(list((two / "checkpoints" / f"{UPDATES:09d}").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_parts_that_two_saved_go_on_in_another_number_of_processes(data, two, tmp_path, processes):
    out = tmp_path / "resumed"
    shutil.copytree(two, out)
    # As if the run had been killed after the checkpoint before the last.
    shutil.rmtree(out / "checkpoints" / f"{UPDATES:09d}")
    words = (data, out, "--sharding", "fsdp", "--ema-decay", "0.5", "--resume")
    said = run_here(*words) if processes == 1 else run(tmp_path / "launch", processes, *words)
    assert f"after update {UPDATES - 1} of {UPDATES}" in said
    assert_same_losses(losses(out), losses(two))
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (out, two))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_killed_worker_is_restarted_and_the_run_completes(data, tmp_path):
    out = tmp_path / "killed"
    # Long enough not to be over when the worker is found.
    work = ends_with_code(arguments(data, out, "--resume", "--epochs", "10"))
    with launched(tmp_path / "launch", work, restarts=2) as launch:
        wait_for(lambda: list(out.glob("checkpoints/0*")))
        os.kill(launch.workers()[1], signal.SIGKILL)
        assert launch.code() == 0, launch.err
    assert [row["update"] for row in lines(out / "losses.jsonl")] == list(range(1, 5 * UPDATES + 1))
    assert [row["epoch"] for row in lines(out / "metrics.jsonl")] == list(range(1, 11))
    assert json.loads((out / "environment.json").read_text())["before"]


def test_a_launcher_that_is_asked_to_stop_lets_the_run_save_and_one_process_goes_on(data, alone, tmp_path):
    out = tmp_path / "stopped"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*launch, "-m", "parhelion.cli", *arguments(data, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        wait_for(lambda: list(out.glob("checkpoints/0*")), 120)
        launcher.send_signal(signal.SIGTERM)
        said = launcher.communicate(timeout=60)[1]
    assert "goes on" in said
    newest = max((out / "checkpoints").glob("0*")).name
    assert not list(out.rglob("checkpoints/.*"))
    assert f"after update {int(newest)} of {UPDATES}" in run_here(data, out, "--resume")
    assert_same_losses(losses(out), losses(alone))


def with_images(data, folder, left, broken=()):
    """The images of `data`, of those of validation the ones `left`, of which those `broken` cannot be read."""
    shutil.copytree(data, folder)
    for file in (folder / "val").rglob("*.*g"):
        if file.relative_to(folder / "val").with_suffix("").as_posix() not in left:
            file.unlink()
    for name in broken:
        truncate(next((folder / "val").glob(f"{name}.*")))
    return folder


def test_two_processes_evaluate_what_there_is_and_end_alike_for_what_one_of_them_meets(data, tmp_path):
    streams = colour_shards(data, tmp_path / "shards", train=(6, 3, 5), val=(2,))
    single = with_images(data, tmp_path / "single", ["red/1"])
    bad = with_images(data, tmp_path / "bad", ["blue/1", "red/1"], broken=["red/1"])
    none = with_images(data, tmp_path / "none", ["blue/1"], broken=["blue/1"])
    again = ("--epochs", "1", "--warmup-epochs", "0.5", "--on-bad-image")
    commands = [
        arguments("wds/colours", tmp_path / "streams", *again, "refuse", "--data-dir", str(streams)),
        arguments(single, tmp_path / "one", *again, "refuse"),
        # The second process alone meets the image that cannot be read.
        arguments(bad, tmp_path / "refused", *again, "refuse"),
        arguments(bad, tmp_path / "skipped", *again, "skip"),
        # No process has an image.
        arguments(none, tmp_path / "nothing", *again, "skip"),
        # Only the first process looks at the folder.
        arguments(single, tmp_path / "one", *again, "refuse"),
    ]
    codes, launch = in_processes(tmp_path / "launch", commands)
    assert codes == [[0, 0, 2, 0, 2, 2]] * 2
    assert "Traceback" not in launch.err
    for sentence in (
        f"parhelion: cannot read the image {bad / 'val' / 'red' / '1.png'}",
        "parhelion: none of the 1 images could be used; the first: cannot read the image",
        f"parhelion: --out {tmp_path / 'one'} already holds a run",
    ):
        assert launch.err.count(sentence) == 2
    for out, skipped in (("streams", 0), ("one", 0), ("skipped", 1)):
        (row,) = lines(tmp_path / out / "metrics.jsonl")
        assert row["skipped_images"] == skipped
    # What was trained is kept.
    assert list((tmp_path / "nothing" / "checkpoints").glob("0*"))


def test_an_image_that_one_of_two_cannot_read_ends_both_at_once(data, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(data, images)
    truncate(images / "train" / "red" / "4.jpg")
    with launched(tmp_path / "launch", ends_with_code(arguments(images, tmp_path / "run"))) as launch:
        assert launch.code() == 1
    # Both say why, and none that the other is gone.
    assert launch.err.count("parhelion: cannot read the image") == 2
    assert "onnection" not in launch.err
