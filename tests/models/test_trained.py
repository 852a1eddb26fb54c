"""What a weights file says of its model holds wherever the file is loaded."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from small_detectors import small_detector

import parhelion
from parhelion.classification.saved import Classifier, load_classifier, save_classifier
from parhelion.data.transforms import Preprocessing, eval_transform
from parhelion.detection.saved import save_detector
from parhelion.errors import UserError

ARGUMENTS = {"num_classes": 3, "in_chans": 3, "image_size": 32, "block": 6, "halo": 2}
PREPROCESSING = Preprocessing(
    image_px=40, mean=(0.327, 0.37, 0.303), std=(0.2, 0.21, 0.22), crop_ratio=0.95, interpolation="bilinear"
)
CLASSES = ("ant", "bee", "cat")


def saved_run(folder: Path, name: str = "halonet_tiny", **arguments: Any) -> Classifier:
    """A run's folder as `parhelion train` leaves it, and its classifier."""
    arguments = {**ARGUMENTS, **arguments}
    model = parhelion.create_model(name, **arguments).eval()
    classifier = Classifier(
        model=model,
        name=name,
        arguments=arguments,
        class_names=CLASSES,
        preprocessing=PREPROCESSING,
        epoch=2,
        metrics={},
    )
    folder.mkdir()
    save_classifier(folder / "weights.safetensors", classifier)
    return classifier


@pytest.fixture
def trained(tmp_path: Path) -> Classifier:
    return saved_run(tmp_path / "run")


@pytest.fixture
def run(tmp_path: Path, trained: Classifier) -> Path:
    return tmp_path / "run"


def by_timm(path: Path) -> torch.nn.Module:
    return timm.create_model(
        "parhelion_halonet_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    ).eval()


@pytest.mark.parametrize(
    "load",
    [
        lambda run: parhelion.create_model("halonet_tiny", checkpoint_path=run),
        lambda run: parhelion.create_model("halonet_tiny", checkpoint_path=str(run / "weights.safetensors")),
        by_timm,
        lambda run: load_classifier(str(run)).model,
    ],
    ids=["folder", "file", "timm", "load_classifier"],
)
def test_a_trained_model_is_what_its_file_says(run: Path, trained: Classifier, load: Any) -> None:
    model = load(run).eval()
    images = torch.randn(2, 3, 40, 44)
    in_one_layout = [network.to(memory_format=torch.channels_last) for network in (model, trained.model)]
    assert torch.equal(*[network(images) for network in in_one_layout])
    config = timm.data.resolve_model_data_config(model)
    assert config == {
        "input_size": (3, 40, 40),
        "interpolation": "bilinear",
        "mean": PREPROCESSING.mean,
        "std": PREPROCESSING.std,
        "crop_pct": 0.95,
        "crop_mode": "center",
    }
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (57, 71, 3), dtype=np.uint8))
    assert torch.equal(timm.data.create_transform(**config)(image), eval_transform(PREPROCESSING)(image))
    assert (model.pretrained_cfg["num_classes"], model.pretrained_cfg["label_names"]) == (3, CLASSES)


def test_feature_maps_of_a_trained_model_keep_its_preprocessing(run: Path, trained: Classifier) -> None:
    pyramid = parhelion.create_model("halonet_tiny", checkpoint_path=run, features_only=True).eval()
    images = torch.randn(2, 3, 40, 44)
    assert torch.equal(pyramid(images)[-1], trained.model.forward_features(images))
    assert timm.data.resolve_model_data_config(pyramid)["mean"] == PREPROCESSING.mean


def test_arguments_may_repeat_what_the_file_says_but_not_contradict_it(run: Path) -> None:
    def load(**arguments: Any) -> Any:
        return parhelion.create_model("halonet_tiny", checkpoint_path=run, **arguments)

    load(num_classes=3, image_size=(32, 32), block=6, border="zero", drop_path=0.1, drop_rate=0.2)
    for given, before in (
        ({"num_classes": 1000}, "num_classes=3"),
        ({"num_classes": 0}, "num_classes=3"),
        ({"in_chans": 1}, "in_chans=3"),
        ({"image_size": 48}, "image_size=32"),
        ({"block": 8}, "block=6"),
        ({"border": "masked"}, "border='zero'"),
    ):
        ((name, value),) = given.items()
        with pytest.raises(UserError, match=re.escape(f"{before}, but {name}={value!r} was asked for; leave {name}")):
            load(**given)
    with pytest.raises(UserError, match=r"another architecture: they are of halonet_tiny, not of gsa_tiny; give"):
        parhelion.create_model("gsa_tiny", checkpoint_path=run)
    with pytest.raises(UserError, match="has no choice 'blok'; did you mean block"):
        load(blok=6)


def test_choices_that_are_lists_come_back(tmp_path: Path) -> None:
    trained = saved_run(tmp_path / "hybrid", conv_stages=(1,))
    model = parhelion.create_model("halonet_tiny", checkpoint_path=tmp_path / "hybrid", conv_stages=(1,)).eval()
    images = torch.randn(2, 3, 40, 44)
    assert torch.equal(model(images), trained.model(images))


def test_a_plain_file_keeps_the_models_own_preprocessing(tmp_path: Path, trained: Classifier) -> None:
    weights = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
    save_file(weights, tmp_path / "plain.safetensors")
    model = parhelion.create_model("halonet_tiny", checkpoint_path=tmp_path / "plain.safetensors", **ARGUMENTS)
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.485, 0.456, 0.406)


def test_what_holds_no_classifier_is_named(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            parhelion.create_model("halonet_tiny", checkpoint_path=path)
        return str(caught.value)

    assert f"no checkpoint or run folder {tmp_path / 'nowhere'}" in refused(tmp_path / "nowhere")
    assert "holds no weights.safetensors" in refused(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"x")
    assert "is a pickle" in refused(tmp_path / "w.pt")
    save_detector(tmp_path / "w.safetensors", small_detector())
    assert "are of a detector; parhelion.detection.saved.load_detector" in refused(tmp_path / "w.safetensors")
