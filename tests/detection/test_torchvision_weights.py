"""Starting from torchvision's detectors; random weights stand in for the published ones, which are not fetched here."""

import copy
from typing import Any
from urllib.error import URLError

import pytest
import torch
from small_detectors import CLASSES, small_detector
from small_rcnns import FOUND, IMAGE_PX, SIZES, images_of
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import MaskRCNN, MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from parhelion.detection import faster_rcnn, mask_rcnn
from parhelion.detection.initial import OF_CLASSES, initialise_detector
from parhelion.detection.masks import pasted
from parhelion.errors import UserError

SPEC = "torchvision:maskrcnn_resnet50_fpn"
CATEGORIES = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
NAMES = tuple(name for name in CATEGORIES[1:] if name != "N/A")
PARITY = {"box_score_thresh": 0.0, "box_detections_per_img": FOUND}
PARITY |= {"rpn_post_nms_top_n_test": 60}


def as_published(name: str) -> str:
    """The name that a tensor had when the weights were published."""
    for part in ("inner_blocks", "layer_blocks"):
        for level in range(4):
            name = name.replace(f"fpn.{part}.{level}.0.", f"fpn.{part}.{level}.")
    for layer in range(4):
        name = name.replace(f"mask_head.{layer}.0.", f"mask_head.mask_fcn{layer + 1}.")
    return name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")


@pytest.fixture(scope="module")
def theirs() -> MaskRCNN:
    """torchvision's Mask R-CNN as `weights="COCO_V1"` gives it; statistics and weights unlike any start."""
    torch.manual_seed(1)
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5)
    arguments: dict[str, Any] = {"min_size": IMAGE_PX, "max_size": IMAGE_PX, "_skip_resize": True, **PARITY}
    model = MaskRCNN(body, len(CATEGORIES), **arguments)
    overwrite_eps(model, 0.0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            # Small ones, as in trained networks, which eps would change much; large ones keep the maps in bounds.
            tensor.uniform_(1.0, 3.0)
            tensor[::7] = 1e-5
        elif name.startswith("backbone.body") and tensor.ndim == 1:
            tensor += 0.1 * torch.randn_like(tensor)
            tensor[::7] *= 1e-3
        elif name.startswith(("rpn.head.", "roi_heads.box_predictor.")) and tensor.ndim > 1:
            tensor *= 5
    gaps = [label for label, name in enumerate(CATEGORIES) if name == "N/A"]
    model.roi_heads.box_predictor.cls_score.bias.data[gaps] = -1e4
    return model.eval()


@pytest.fixture(scope="module")
def scene(theirs: MaskRCNN) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Images in float64, for where small variances are divided by float32 rounds much; and what it finds there."""
    torch.manual_seed(2)
    images = images_of(SIZES, dtype=torch.float64)
    with torch.no_grad():
        return images, copy.deepcopy(theirs).double()(images)


@pytest.fixture(autouse=True)
def nothing_is_fetched(theirs: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments with which torchvision was asked for weights; it answers with those of `theirs`."""
    asked = []

    def get_state_dict(weights: WeightsEnum, **arguments: Any) -> dict[str, Tensor]:
        assert weights == MaskRCNN_ResNet50_FPN_Weights.COCO_V1
        asked.append(arguments)
        return {as_published(name): tensor for name, tensor in theirs.state_dict().items()}

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", pytest.param("timm:resnet50", marks=pytest.mark.thorough)])
def test_what_is_found_is_what_torchvision_finds(
    backbone: str, theirs: MaskRCNN, scene: Any, nothing_is_fetched: list[dict[str, Any]]
) -> None:
    ours = mask_rcnn(backbone, len(NAMES), image_px=IMAGE_PX, norm="frozen", **PARITY)
    report = initialise_detector(ours, SPEC, class_names=NAMES)
    # No code of a pickle runs, and what is fetched is what torchvision's authors published.
    assert [(one["weights_only"], one["check_hash"]) for one in nothing_is_fetched] == [(True, True)]
    assert report.counts == {"loaded": len(theirs.state_dict()) - 6, "adapted": 6, "started afresh": 0, "dropped": 0}
    names = {tensor.in_weights.name for tensor in report.tensors if tensor.in_weights}
    assert names == set(theirs.state_dict())
    assert {tensor.in_model.name for tensor in report.tensors if tensor.in_model} == set(ours.state_dict())
    assert "eps of batch norms 0.0" in report.choices[0]
    images, expected = scene
    with torch.no_grad():
        found = ours.double().eval()(images)
    for size, those, these in zip(SIZES, expected, found, strict=True):
        assert len(these["boxes"]) == FOUND
        assert [NAMES[label - 1] for label in these["labels"]] == [CATEGORIES[label] for label in those["labels"]]
        torch.testing.assert_close(these["scores"], those["scores"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(these["boxes"], those["boxes"], rtol=1e-4, atol=1e-3)
        masks = torch.stack([pasted(*one, size) for one in zip(these["masks"], these["boxes"], strict=True)])
        differing = (masks != (those["masks"][:, 0] >= 0.5)).float().mean()
        assert differing < 1e-3


def fates(report: Any, fate: str) -> set[str]:
    return {(one.in_model or one.in_weights).name for one in report.tensors if one.fate == fate}


@pytest.mark.slow
def test_other_classes_get_predictors_of_their_own_and_attention_starts_afresh(theirs: MaskRCNN) -> None:
    ours = mask_rcnn("halo_resnet50_se", len(CLASSES), image_px=IMAGE_PX)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    report = initialise_detector(ours, SPEC, class_names=CLASSES)
    after = ours.state_dict()
    afresh = {name for name in fates(report, "started afresh") if "num_batches" not in name}
    assert {name for name in afresh if not name.startswith("backbone")} == {
        name for name in after if name.startswith(OF_CLASSES)
    }
    assert all(torch.equal(after[name], before[name]) for name in afresh)
    assert {name.split(".")[6] for name in afresh if name.startswith("backbone")} == {"operator", "se"}
    assert torch.equal(after["roi_heads.box_head.fc6.weight"], theirs.state_dict()["roi_heads.box_head.fc6.weight"])
    assert torch.equal(
        after["backbone.body.model.stages.0.0.reduce.weight"],
        theirs.state_dict()["backbone.body.layer1.0.conv1.weight"],
    )


def refused(model: nn.Module, spec: str) -> str:
    """The sentence; nothing of `model` may have changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initialise_detector(model, spec, class_names=CLASSES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_detectors_of_another_structure_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    small = small_detector().model
    for name in ("maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn", "fasterrcnn_mobilenet_v3_large_fpn"):
        assert f"torchvision's {name} does not fit: " in refused(small, f"torchvision:{name}")
    assert f"torchvision has no detector 'yolo'; weights to start from are {SPEC} and torchvision:" in refused(
        small, "torchvision:yolo"
    )
    assert "no weights 'V9' of maskrcnn_resnet50_fpn; it has COCO_V1" in refused(small, f"{SPEC}.V9")
    sentence = refused(small, SPEC)
    assert sentence.startswith(f"the detector in {SPEC} does not fit this one: ")
    assert sentence.endswith(
        "give a ResNet-50 without norms in its heads and with torchvision's widths, 256, 1024 and 256"
    )

    def no_network(*_: Any, **__: Any) -> dict[str, Tensor]:
        raise URLError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", no_network)
    sentence = refused(small, SPEC)
    assert "cannot be fetched from https://download.pytorch.org/models/maskrcnn_resnet50_fpn_coco-" in sentence
    assert "no route to host" in sentence
    assert sentence.endswith("/checkpoints")
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: {"a": torch.zeros(1)})
    assert "cannot be fetched" in refused(small, SPEC)


def test_a_mask_rcnn_lends_all_but_its_masks_to_a_faster_rcnn(theirs: MaskRCNN) -> None:
    ours = faster_rcnn("timm:resnet50", len(CLASSES), image_px=IMAGE_PX, norm="frozen", image_mean=(0.5, 0.4, 0.3))
    report = initialise_detector(ours, SPEC, class_names=CLASSES)
    (note,) = report.notes
    assert f"the images behind {SPEC} were normalised with mean " in note
    assert {name.split(".")[1] for name in fates(report, "dropped")} == {"box_predictor", "mask_head", "mask_predictor"}
    fc6 = "roi_heads.box_head.fc6.weight"
    assert torch.equal(ours.state_dict()[fc6], theirs.state_dict()[fc6])
