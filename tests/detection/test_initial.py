"""What a detector starts from: a classifier's backbone, or another detector."""

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_detectors import CLASSES, small_detector
from torch import Tensor, nn

from parhelion.classification.saved import Classifier, save_classifier
from parhelion.data.transforms import Preprocessing
from parhelion.detection.initial import OF_CLASSES, initialise_detector
from parhelion.detection.saved import save_detector
from parhelion.errors import UserError
from parhelion.models.adapt import Adaptation, TensorReport
from parhelion.models.catalog import create_model

BODY = "backbone.body.model."
CONV7 = {"stem": "conv7"}
OTHERS = ("Größe", "c", "a/b")
MASK_HEAD = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(these: Mapping[str, Tensor], those: Mapping[str, Tensor], names: Any) -> bool:
    return all(torch.equal(these[name], those[name]) for name in names)


def classification_run(folder: Path, name: str, *, image_size: int = 64, **choices: Any) -> nn.Module:
    """A run folder with a classifier of 5 classes, whose statistics are unlike their start; its network."""
    folder.mkdir()
    arguments = {"num_classes": 5, "in_chans": 3, "image_size": image_size, **CONV7, **choices}
    model = create_model(name, **arguments).eval()
    for tensor in model.state_dict().values():
        tensor += 0.1 * torch.rand_like(tensor) if tensor.is_floating_point() and tensor.ndim == 1 else 0
    classifier = Classifier(
        model=model,
        name=name,
        arguments=arguments,
        class_names=tuple("abcde"),
        preprocessing=Preprocessing(image_px=image_size, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3),
        epoch=1,
        metrics={},
    )
    save_classifier(folder / "weights.safetensors", classifier)
    return model


def detection_run(folder: Path, **changes: Any) -> nn.Module:
    """A run folder with a detector; its network."""
    folder.mkdir()
    detector = small_detector(**changes)
    save_detector(folder / "weights.safetensors", detector)
    return detector.model


def assert_complete(report: Adaptation, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Every tensor of both sides stands in the report once, with its shape."""
    for places, tensors in (
        ([tensor.in_weights for tensor in report.tensors], weights),
        ([tensor.in_model for tensor in report.tensors], model.state_dict()),
    ):
        reported = Counter((place.name, place.shape) for place in places if place is not None)
        assert reported == Counter((name, tuple(tensor.shape)) for name, tensor in tensors.items())


def with_fate(report: Adaptation, fate: str) -> set[str]:
    tensors: list[TensorReport] = [tensor for tensor in report.tensors if tensor.fate == fate]
    return {place.name for tensor in tensors if (place := tensor.in_model or tensor.in_weights) is not None}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", ["resnet_tiny", "halonet_tiny", "gsa_tiny"])
@pytest.mark.parametrize("place", ["", "weights.safetensors"])
def test_a_classifier_lends_its_backbone(tmp_path: Path, name: str, norm: str, place: str) -> None:
    old = classification_run(tmp_path / "run", name)
    new = small_detector(backbone=name, norm=norm, choices=CONV7, image_px=64).model
    before = copies(new)
    report = initialise_detector(new, str(tmp_path / "run" / place), class_names=CLASSES)
    assert_complete(report, old.state_dict(), new.backbone.body.model)
    counters = {key for key in old.state_dict() if "num_batches" in key} if norm == "frozen" else set()
    assert with_fate(report, "dropped") == {"head.fc.weight", "head.fc.bias"} | counters
    assert report.counts["adapted"] == report.counts["started afresh"] == 0
    body, weights = new.backbone.body.model.state_dict(), old.state_dict()
    assert same(body, weights, body)
    assert same(new.state_dict(), before, [key for key in before if not key.startswith(BODY)])
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        last = new.backbone.body.eval()(images)[-1]
        torch.testing.assert_close(last, old.forward_features(images), rtol=1e-4, atol=1e-4)


def test_another_window_is_what_resize_makes(tmp_path: Path) -> None:
    old = classification_run(tmp_path / "run", "halonet_tiny")
    new = small_detector(choices={**CONV7, "block": 6, "halo": 2}).model
    report = initialise_detector(new, str(tmp_path / "run"), class_names=CLASSES)
    assert report.choices == ("block 4 -> 6", "halo 1 -> 2")
    assert report.counts["adapted"] == 6
    old.resize(block=6, halo=2)
    body = new.backbone.body.model.state_dict()
    assert same(body, old.state_dict(), body)


@pytest.mark.parametrize("of", ["classifier", "detector"])
def test_global_attention_for_larger_images_is_what_resize_makes(tmp_path: Path, of: str) -> None:
    if of == "classifier":
        old = classification_run(tmp_path / "run", "gsa_tiny", image_size=64)
    else:
        old = detection_run(tmp_path / "run", backbone="gsa_tiny", choices=CONV7, image_px=64).backbone.body.model
    new = small_detector(backbone="gsa_tiny", choices=CONV7, image_px=160).model
    report = initialise_detector(new, str(tmp_path / "run"), class_names=CLASSES)
    assert report.counts["adapted"] == 6
    old.resize(image_size=(160, 160))
    body = new.backbone.body.model.state_dict()
    assert same(body, old.state_dict(), body)


@pytest.mark.parametrize("backbone", ["halonet_tiny", "timm:test_resnet"])
@pytest.mark.parametrize("kind", ["mask_rcnn", "faster_rcnn"])
def test_a_detector_of_the_same_classes_is_taken_up_whole(tmp_path: Path, kind: str, backbone: str) -> None:
    choices = {} if backbone.startswith("timm:") else CONV7
    # A dot, which is no suffix.
    old = detection_run(tmp_path / "lr0.01", kind=kind, backbone=backbone, choices=choices)
    new = small_detector(kind=kind, backbone=backbone, choices=choices).model
    for place in ("", "weights.safetensors"):
        report = initialise_detector(new, str(tmp_path / "lr0.01" / place), class_names=CLASSES)
        assert_complete(report, old.state_dict(), new)
        assert report.counts["loaded"] == len(old.state_dict()) == len(report.tensors)
        assert report.architecture == f"{kind} {backbone}"
    assert same(new.state_dict(), old.state_dict(), old.state_dict())


@pytest.mark.parametrize("others", [OTHERS, ("Größe", "a/b"), ("Größe", "a/b", "d")])
def test_other_classes_get_predictors_of_their_own(tmp_path: Path, others: tuple[str, ...]) -> None:
    old = detection_run(tmp_path / "run")
    new = small_detector(class_names=others).model
    before = copies(new)
    report = initialise_detector(new, str(tmp_path / "run"), class_names=others)
    assert_complete(report, old.state_dict(), new)
    predictors = {key for key in before if key.startswith(OF_CLASSES)}
    assert len(predictors) == 6
    assert with_fate(report, "started afresh") == with_fate(report, "dropped") == predictors
    assert with_fate(report, "loaded") == set(before) - predictors
    assert same(new.state_dict(), before, predictors)
    assert same(new.state_dict(), old.state_dict(), set(before) - predictors)
    assert "  started afresh: roi_heads.box_predictor.cls_score.bias, " in "\n".join(report.lines())


@pytest.mark.parametrize("class_names", [CLASSES, OTHERS])
def test_a_faster_rcnn_becomes_a_mask_rcnn(tmp_path: Path, class_names: tuple[str, ...]) -> None:
    old = detection_run(tmp_path / "run", kind="faster_rcnn")
    new = small_detector(class_names=class_names).model
    before = copies(new)
    report = initialise_detector(new, str(tmp_path / "run"), class_names=class_names)
    assert_complete(report, old.state_dict(), new)
    fresh = {key for key in before if key.startswith(MASK_HEAD)}
    fresh |= {key for key in before if key.startswith(OF_CLASSES)} if class_names == OTHERS else set()
    assert with_fate(report, "started afresh") == fresh
    assert same(new.state_dict(), before, fresh)
    assert same(new.state_dict(), old.state_dict(), set(before) - fresh)


@pytest.mark.parametrize("class_names", [CLASSES, OTHERS])
def test_a_mask_rcnn_becomes_a_faster_rcnn(tmp_path: Path, class_names: tuple[str, ...]) -> None:
    old = detection_run(tmp_path / "run")
    new = small_detector(kind="faster_rcnn", class_names=class_names).model
    before = copies(new)
    report = initialise_detector(new, str(tmp_path / "run"), class_names=class_names)
    assert_complete(report, old.state_dict(), new)
    fresh = {key for key in before if key.startswith(OF_CLASSES)} if class_names == OTHERS else set()
    assert with_fate(report, "started afresh") == fresh
    assert with_fate(report, "dropped") == fresh | {key for key in old.state_dict() if key.startswith(MASK_HEAD)}
    assert same(new.state_dict(), old.state_dict(), set(before) - fresh)


@pytest.mark.parametrize("backbone", ["halonet_tiny", "timm:test_resnet"])
@pytest.mark.parametrize(("before", "after"), [("batch", "frozen"), ("frozen", "batch")])
def test_norms_may_be_frozen_and_thawed(tmp_path: Path, before: str, after: str, backbone: str) -> None:
    choices = {} if backbone.startswith("timm:") else CONV7
    old = detection_run(tmp_path / "run", norm=before, backbone=backbone, choices=choices)
    new = small_detector(norm=after, backbone=backbone, choices=choices).model
    report = initialise_detector(new, str(tmp_path / "run"), class_names=CLASSES)
    assert_complete(report, old.state_dict(), new)
    counters = with_fate(report, "dropped" if after == "frozen" else "started afresh")
    assert counters
    assert all("num_batches_tracked" in name for name in counters)
    both = set(old.state_dict()) & set(new.state_dict())
    assert report.counts["loaded"] == len(both)
    assert same(new.state_dict(), old.state_dict(), both)


def test_a_detector_of_another_window_is_adapted(tmp_path: Path) -> None:
    old = detection_run(tmp_path / "run", choices={**CONV7, "block": 6, "halo": 2})
    new = small_detector(choices=CONV7).model
    report = initialise_detector(new, str(tmp_path / "run"), class_names=CLASSES)
    assert_complete(report, old.state_dict(), new)
    assert report.choices == ("block 6 -> 4", "halo 2 -> 1")
    assert with_fate(report, "adapted") == {name for name in new.state_dict() if "table_" in name}
    old.backbone.body.model.resize(block=4, halo=1)
    assert same(new.state_dict(), old.state_dict(), old.state_dict())


def refused(model: nn.Module, spec: Path | str) -> str:
    """The sentence; nothing of `model` may have changed."""
    before = copies(model)
    with pytest.raises(UserError) as caught:
        initialise_detector(model, str(spec), class_names=CLASSES)
    assert same(model.state_dict(), before, before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"widths": [8, 24, 8]}, "roi_heads.box_head.fc6.weight"),
        ({"widths": [8, 16, 12]}, "roi_heads.mask_head.0.0.weight"),
        ({"widths": [12, 16, 8]}, "backbone.fpn.inner_blocks.0.0.weight"),
        ({"backbone": "timm:test_resnet", "choices": {}}, "is missing for"),
    ],
)
def test_another_detector_is_refused_whole(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    detection_run(tmp_path / "run", **changes)
    sentence = refused(small_detector().model, tmp_path / "run")
    assert sentence.startswith(f"the detector in {tmp_path / 'run'} does not fit this one: ")
    assert named in sentence
    assert sentence.endswith("; give the same backbone and widths")


def test_another_backbone_is_refused_whole(tmp_path: Path) -> None:
    detection_run(tmp_path / "detector", backbone="gsa_tiny", choices=CONV7)
    assert "of gsa_tiny, do not fit halonet_tiny" in refused(small_detector().model, tmp_path / "detector")
    classification_run(tmp_path / "classifier", "gsa_tiny")
    assert "of gsa_tiny, do not fit halonet_tiny" in refused(small_detector().model, tmp_path / "classifier")


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    model = small_detector().model
    assert "there is nothing at" in refused(model, tmp_path / "nowhere")
    assert "there is nothing at ''" in refused(model, "")
    (tmp_path / "empty").mkdir()
    assert "holds no weights.safetensors" in refused(model, tmp_path / "empty")
    (tmp_path / "weights.pt").write_bytes(pickle.dumps(print))
    assert "is a pickle" in refused(model, tmp_path / "weights.pt")
    detection_run(tmp_path / "run")
    path = tmp_path / "run" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a whole safetensors file" in refused(model, path)


@pytest.mark.parametrize("part", ["backbone.body.model.stages.0.0.reduce.weight", "roi_heads.box_head.fc6.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_detector_with_numbers_that_are_not_finite_is_refused(tmp_path: Path, part: str, value: float) -> None:
    (tmp_path / "run").mkdir()
    detector = small_detector()
    detector.model.state_dict()[part].view(-1)[1] = value
    save_detector(tmp_path / "run" / "weights.safetensors", detector)
    sentence = refused(small_detector().model, tmp_path / "run")
    assert sentence == f"{tmp_path / 'run'} holds numbers that are not finite in 1 tensors (first: {part})"


def test_weights_of_images_normalised_otherwise_say_so(tmp_path: Path) -> None:
    classification_run(tmp_path / "classifier", "halonet_tiny")
    detection_run(tmp_path / "other", image_mean=[0.5] * 3, image_std=[0.25] * 3)
    detection_run(tmp_path / "same")
    model = small_detector().model
    for name, theirs in (("classifier", "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"), ("other", "--std 0.25 0.25 0.25")):
        (note,) = initialise_detector(model, str(tmp_path / name), class_names=CLASSES).notes
        assert "those of this run are with mean 0.25 0.5 0.75 and deviation 0.5 0.25 0.125" in note
        assert theirs in note
    assert initialise_detector(model, str(tmp_path / "same"), class_names=CLASSES).notes == ()


def test_a_classifier_is_no_start_for_a_backbone_of_timm(tmp_path: Path) -> None:
    classification_run(tmp_path / "run", "resnet_tiny")
    model = small_detector(backbone="timm:test_resnet", choices={}).model
    assert "weights to start from fit Parhelion's backbones; this one is a" in refused(model, tmp_path / "run")


def test_a_plain_file_fills_the_backbone(tmp_path: Path) -> None:
    old = create_model("halonet_tiny", num_classes=5, **CONV7)
    save_file({f"module.{name}": tensor for name, tensor in copies(old).items()}, tmp_path / "plain.safetensors")
    new = small_detector().model
    initialise_detector(new, str(tmp_path / "plain.safetensors"), class_names=CLASSES)
    body = new.backbone.body.model.state_dict()
    assert same(body, old.state_dict(), body)
