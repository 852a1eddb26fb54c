"""A detector and a classifier that the command line trained, once for all tests here."""

import pytest
import torch
from cli.quick_words import QUICK, TRAIN
from runs.colour_folders import COLOURS, colour_folders
from runs.pictures import without_pictures
from runs.tiny_scenes import annotations_of, tiny_scenes

from parhelion.cli import main


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="session")
def images(data):
    return sorted(annotations_of(data, "val").parent.parent.glob("val/*"))


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A detector that finds something."""
    out = tmp_path_factory.mktemp("runs") / "quick"
    torch.set_num_threads(1)
    words = ("--epochs", "12", "--lr-per-256", "0.5", "--sampled-boxes", "16")
    with without_pictures():
        assert main([*TRAIN, "--data", data, "--out", str(out), *QUICK, *words]) == 0
    return out


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A classification run, and an image for it."""
    folder = tmp_path_factory.mktemp("classifier")
    colours = colour_folders(folder / "data", colours=dict(list(COLOURS.items())[:2]))
    words = ("--image-px", "16", "--epochs", "1", "--batch", "10", "--warmup-epochs", "0")
    torch.set_num_threads(1)
    with without_pictures():
        assert main(["train", "resnet_tiny", "--data", str(colours), "--out", str(folder / "run"), *words]) == 0
    return folder / "run"
