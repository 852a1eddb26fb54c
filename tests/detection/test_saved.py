"""Detectors in files: they come back as they were, and nothing else passes for one."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_detectors import ARGUMENTS, CATEGORY_IDS, CLASSES, small_detector

from parhelion.classification.saved import Classifier
from parhelion.data.transforms import Preprocessing
from parhelion.detection.saved import Detector, built, holds_detector
from parhelion.errors import UserError
from parhelion.files.weights import read_facts, read_saved, save_weights
from parhelion.models import create_model


def saved(folder: Path, **changes: Any) -> Path:
    """A run folder with `small_detector`."""
    folder.mkdir(exist_ok=True)
    small_detector(**changes).save(folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "faster_rcnn"},
        {"norm": "frozen", "in_chans": 1, "image_mean": [0.5], "image_std": [0.25]},
        {"backbone": "gsa_tiny", "choices": {"stem": "conv7"}},
        {"backbone": "timm:test_resnet", "choices": {}},
    ],
)
def test_a_detector_comes_back_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    detector = small_detector(**changes)
    path = tmp_path / "weights.safetensors"
    detector.save(path)
    images = [torch.rand(detector.in_chans, 40, 60), torch.rand(detector.in_chans, 71, 33)]
    for place in (tmp_path, path):
        assert holds_detector(place)
        again = Detector.load(place)
        assert not any(module.training for module in again.model.modules())
        assert replace(again, model=detector.model) == detector
        batch = torch.rand(2, detector.in_chans, 64, 96)
        for name, features in detector.model.backbone(batch).items():
            assert torch.equal(again.model.backbone(batch)[name], features)
        for these, those in zip(again.model(images), detector.model(images), strict=True):
            assert these.keys() == those.keys()
            assert all(torch.equal(these[name], those[name]) for name in these)


def test_a_detector_says_what_it_is() -> None:
    assert (small_detector().name, small_detector().masks) == ("mask_rcnn halonet_tiny", True)
    boxes_only = small_detector(kind="faster_rcnn")
    assert (boxes_only.name, boxes_only.masks) == ("faster_rcnn halonet_tiny", False)


@pytest.mark.parametrize("backbone", ["halonet_tiny", "gsa_tiny"])
def test_another_image_size_changes_the_scale_alone(backbone: str) -> None:
    detector = small_detector(backbone=backbone, choices={"stem": "conv7"})
    larger = detector.with_image_px(160)
    assert larger.arguments == {**detector.arguments, "image_px": 160}
    assert detector.arguments["image_px"] == 96
    images, _ = larger.model.transform([torch.rand(3, 50, 80)])
    assert images.image_sizes == [(100, 160)]


def test_tables_for_another_image_size_are_not_saved_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    larger = small_detector(backbone="gsa_tiny", choices={"stem": "conv7"}).with_image_px(160)
    with pytest.raises(UserError) as caught:
        larger.save(path)
    assert str(caught.value) == (
        "the detector is for images of 160 pixels, but its tables of global attention are not; call "
        "detector.model.backbone.resize(image_size=(160, 160)) before it is saved"
    )
    assert not path.exists()
    larger.model.backbone.resize(image_size=(160, 160))
    larger.save(path)
    images = [torch.rand(3, 50, 80)]
    (these,), (those,) = Detector.load(path).model(images), larger.model(images)
    assert all(torch.equal(these[name], those[name]) for name in those)


def test_another_image_size_without_tables_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for backbone in ({}, {"backbone": "timm:test_resnet", "choices": {}}):
        small_detector(**backbone).with_image_px(160).save(path)
        assert Detector.load(path).model.transform.max_size == 160


def test_stochastic_depth_is_for_training_and_stands_in_no_file(tmp_path: Path) -> None:
    training = built(ARGUMENTS, drop_path=0.25)
    assert training.bottlenecks[-1].drop_path.drop_prob == 0.25
    replace(small_detector(), model=training).save(tmp_path / "weights.safetensors")
    blocks = Detector.load(tmp_path).model.bottlenecks
    assert {getattr(block.drop_path, "drop_prob", 0.0) for block in blocks} == {0.0}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Detector.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewritten(folder: Path, **facts: Any) -> Path:
    """The file of a run folder with other facts in its header."""
    path = folder / "weights.safetensors"
    weights, before = read_saved(path)
    save_weights(path, weights, {**before, **facts})
    return path


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert refused(tmp_path).startswith(f"{path} is not a whole safetensors file (")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        holds_detector(tmp_path)


def test_a_pickle_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(print))
    assert "is a pickle, which could run any program when opened" in refused(path)
    with pytest.raises(UserError, match="is a pickle"):
        holds_detector(path)


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    classifier = Classifier(
        model=create_model("resnet_tiny", num_classes=3),
        name="resnet_tiny",
        arguments={"num_classes": 3},
        class_names=CLASSES,
        preprocessing=Preprocessing(image_px=32, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        epoch=1,
        metrics={},
    )
    classifier.save(path)
    assert refused(tmp_path) == f"{path} is no detector: its header lacks detector, category_ids, exif"
    assert not holds_detector(tmp_path)


def test_tensors_of_somebody_else_are_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "does not say which model it belongs to" in refused(path)
    assert "there is no checkpoint or run folder" in refused(tmp_path / "nowhere")
    assert "holds no weights.safetensors" in refused(tmp_path)


def test_tensors_that_do_not_fit_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path) / "weights.safetensors"
    weights, facts = read_saved(path)
    names = list(weights)
    weights["surplus"] = torch.zeros(1)
    del weights[names[0]]
    weights[names[1]] = torch.zeros(2, 9)
    save_weights(path, weights, facts)
    sentence = refused(tmp_path)
    assert sentence.startswith(f"{path} says that it is a mask_rcnn, but does not hold its tensors: 1 tensors missing")
    assert "1 tensors unexpected (first: surplus)" in sentence
    assert f"1 tensors of another shape (first: {names[1]} is (2, 9)" in sentence


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "yolo"}, "there is no detector of the kind 'yolo', but mask_rcnn and faster_rcnn"),
        ({"kind": ["mask_rcnn"]}, ""),
        ({"backbone": "halonet_tinny"}, "there is no model 'halonet_tinny'; did you mean halonet_tiny"),
        ({"backbone": "timm:resnet19"}, "timm has no model 'resnet19'"),
        ({"widths": [8]}, ""),
        ({"widths": [8, -3, 8]}, ""),
        ({"choices": {"blok": 4}}, "halonet_tiny has no choice 'blok'"),
        ({"norm": "frosen"}, "norm is 'frosen'"),
        ({"box_detection_per_img": 7}, "a detector has no setting 'box_detection_per_img'"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_a_header_that_describes_nothing_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = rewritten(saved(tmp_path), detector={**ARGUMENTS, **changes})
    sentence = refused(tmp_path)
    assert sentence.startswith(f"the header of {path} describes no detector that can be built: {reason}")


@pytest.mark.parametrize("described", ["mask_rcnn", 7, None, [], {}, {"kind": "mask_rcnn"}])
def test_a_header_without_a_description_is_refused(tmp_path: Path, described: Any) -> None:
    rewritten(saved(tmp_path), detector=described)
    assert "describes no detector that can be built: " in refused(tmp_path)


def test_the_header_alone_tells_what_is_in_the_file(tmp_path: Path) -> None:
    facts = read_facts(saved(tmp_path) / "weights.safetensors")
    assert facts == {
        "task": "detection",
        "detector": json.loads(json.dumps(ARGUMENTS)),
        "class_names": list(CLASSES),
        "category_ids": list(CATEGORY_IDS),
        "exif": "upright",
        "epoch": 4,
        "metrics": {"box_ap": 0.25},
    }
