"""Folders that timm's `save_for_hf` fills, and `timm.create_model("local-dir:...")` on them."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn

import parhelion
from parhelion.models.resnet import ResNet

SMALL = {"blocks": (1, 1, 1, 1), "widths": (8, 16, 24, 32)}
MODELS = {
    "halonet_tiny": {"num_classes": 5, "in_chans": 1, "block": 6, "halo": 2, "conv_stages": (1,)},
    "gsa_tiny": {"num_classes": 4, "image_size": (40, 48), "groups": (2, 3)},
    "resnet50": {"num_classes": 6, **SMALL},
}


def by_parhelion(name: str) -> ResNet:
    return parhelion.create_model(name, **MODELS[name])


def by_timm(name: str) -> Any:
    words = {"img_size" if key == "image_size" else key: value for key, value in MODELS[name].items()}
    return timm.create_model(f"parhelion_{name}", **words)


def saved(model: nn.Module, folder: Path, *, safe: bool = True) -> str:
    """`model`, its statistics unlike their start, in `folder`; what timm is told to find it."""
    for tensor in model.state_dict().values():
        tensor += 0.1 * torch.rand_like(tensor) if tensor.is_floating_point() and tensor.ndim == 1 else 0
    save_for_hf(model, str(folder), safe_serialization=safe)
    return f"local-dir:{folder}"


@pytest.mark.parametrize("make", [by_parhelion, by_timm])
@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, name: str, make: Any) -> None:
    model = make(name).eval()
    again = timm.create_model(saved(model, tmp_path / "saved", safe=make is by_timm), pretrained=True).eval()
    assert type(again) is type(model) is ResNet
    images = torch.randn(2, model.in_chans, 40, 44)
    assert torch.equal(again(images), model(images))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architecture"] == again.pretrained_cfg["architecture"] == f"parhelion_{name}"
    assert timm.data.resolve_model_data_config(again) == timm.data.resolve_model_data_config(model)


def test_what_was_resized_comes_back_resized(tmp_path: Path) -> None:
    halo, gsa = (parhelion.create_model(name).eval() for name in ("halonet_tiny", "gsa_tiny"))
    images = torch.randn(2, 3, 40, 44)
    for number, model in enumerate((halo, gsa)):
        model.resize(block=6, halo=2, image_size=(48, 40))
        again = timm.create_model(saved(model, tmp_path / str(number)), pretrained=True).eval()
        assert torch.equal(again(images), model(images))


def test_a_saved_model_gives_feature_maps_and_another_classifier(tmp_path: Path) -> None:
    model = by_parhelion("halonet_tiny").eval()
    spec = saved(model, tmp_path / "saved")
    pyramid = timm.create_model(spec, pretrained=True, features_only=True).eval()
    images = torch.randn(2, 1, 40, 44)
    assert torch.equal(pyramid(images)[-1], model.forward_features(images))
    other = timm.create_model(spec, pretrained=True, num_classes=7).eval()
    assert torch.equal(other.forward_features(images), model.forward_features(images))
    assert other(images).shape == (2, 7)
    assert not torch.equal(
        timm.create_model(spec).eval().forward_features(images), model.forward_features(images)
    )  # built as saved, with fresh weights
