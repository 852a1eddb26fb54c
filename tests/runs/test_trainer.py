"""The way from a request to a run under way: short, and without a trace on the disk until all parts exist."""

import inspect
from pathlib import Path

import pytest
from runs.colour_folders import colour_folders, quick_recipe
from runs.tiny_scenes import TINY, quick_detector, tiny_scenes
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

import parhelion
from parhelion.cli import main
from parhelion.files.lock import RunLock
from parhelion.models.resnet import ResNet
from parhelion.runs.request import Request
from parhelion.runs.setup import set_up
from parhelion.train import parallel

HOME = str(Path(parhelion.__file__).parent)
QUICK = ("--epochs", "1", "--warmup-epochs", "0.5")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {"classification": str(colour_folders(root / "colours")), "detection": tiny_scenes(root / "scenes")}


class Reached(BaseException):
    """The network is about to see its first images."""


@pytest.mark.parametrize(
    ("task", "network", "words"),
    [
        ("classification", ResNet, ("halonet_tiny", "--image-px", "16", "--batch", "10")),
        (
            "detection",
            GeneralizedRCNN,
            (
                *("mask_rcnn_halonet_tiny", "--image-px", "64", "--batch", "4"),
                *(word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))),
            ),
        ),
    ],
)
def test_from_the_command_line_to_the_network_there_are_at_most_eight_calls(
    data, tmp_path, monkeypatch, task, network, words
):
    ours = []

    def forward(_self, *_given):
        ours.extend(frame.function for frame in inspect.stack() if frame.filename.startswith(HOME))
        raise Reached

    monkeypatch.setattr(network, "forward", forward)
    with pytest.raises(Reached):
        main(["train", *words, "--data", data[task], "--out", str(tmp_path / "run"), *QUICK])
    assert ours[-1] == "main"
    assert len(ours) <= 8, ours


@pytest.mark.parametrize("recipe", [quick_recipe(), quick_detector()], ids=["classification", "detection"])
def test_nothing_is_written_until_all_parts_of_a_run_exist(data, tmp_path, recipe):
    out = tmp_path / "run"
    with RunLock(out) as lock:
        request = Request(data=data[recipe.task], out=out, quiet=True)
        setup = set_up(recipe, request, parallel.accelerator_for(recipe.precision), lock)
        assert not out.exists()
    assert setup.plan.updates == recipe.epochs * (setup.task.images.facts["train_images"] // recipe.batch)
    assert setup.ready.evaluated is setup.network.model
