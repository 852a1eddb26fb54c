"""R-CNNs: images of all sizes, small masks, any module as backbone, and what cannot be built."""

from typing import Any

import pytest
import torch
from small_rcnns import (
    CLASSES,
    CONV7,
    FOUND,
    IMAGE_PX,
    LOSSES,
    SIZES,
    SMALL,
    assert_finite_gradients,
    images_of,
    small,
    small_boxes,
    targets_of,
)
from torch import Tensor, nn

from parhelion.detection import faster_rcnn, mask_rcnn
from parhelion.errors import UserError
from parhelion.models import create_model

OURS = ["resnet_tiny", "halonet_tiny", "gsa_tiny"]
BACKBONES = [*OURS, "timm:resnet18", "timm:test_vit"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halonet_tiny", "resnet_tiny"])
def test_images_of_three_sizes_train_in_one_batch(name: str) -> None:
    sizes = [(160, 240), (321, 167), (512, 512)]
    model = small(name, image_px=512)
    assert_finite_gradients(model, model(images_of(sizes), targets_of(sizes)))


@pytest.mark.parametrize("name", BACKBONES)
def test_each_kind_of_backbone_trains_and_finds(name: str) -> None:
    model = small(name)
    assert_finite_gradients(model, model(images_of(SIZES), targets_of(SIZES)))
    with torch.no_grad():
        for found, (h, w) in zip(model.eval()(images_of(SIZES)), SIZES, strict=True):
            assert_found_inside(found, h, w)


def assert_found_inside(found: dict[str, Tensor], h: int, w: int) -> None:
    assert found.keys() == {"boxes", "labels", "scores", "masks"}
    assert len(found["boxes"]) == len(found["labels"]) == len(found["scores"]) <= FOUND
    assert found["masks"].shape == (len(found["boxes"]), 28, 28)
    assert found["labels"].ge(1).all()
    assert found["labels"].le(CLASSES).all()
    assert found["boxes"].ge(0).all()
    assert found["boxes"].le(torch.tensor([w, h, w, h]) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", OURS)
def test_evaluation_takes_images_of_all_sizes(name: str) -> None:
    model = small(name).eval()
    count = 0
    # Single, because a batch is as large as its largest image.
    for h, w in [(5, 9), (31, 17), (1, 1), (1, 700), (300, 2), (97, 211)]:
        with torch.no_grad():
            (found,) = model(images_of([(h, w)]))
        assert_found_inside(found, h, w)
        count += len(found["boxes"])
    assert count > 0


@pytest.mark.parametrize(
    ("size", "scaled"), [((60, 48), (96, 76)), ((200, 480), (40, 96)), ((96, 32), (96, 32)), ((3, 500), (1, 96))]
)
def test_in_evaluation_the_longer_side_has_image_px_pixels(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    images, _ = small().eval().transform(images_of([size]))
    assert images.image_sizes == [scaled]
    assert images.tensors.shape[-2:] == tuple(-(-side // 16) * 16 for side in scaled)


def test_while_training_images_stay_as_they_are() -> None:
    sizes = [(37, 150), (110, 23)]
    images, targets = small().train().transform(images_of(sizes), targets_of(sizes))
    assert images.image_sizes == sizes
    # Padded to the next multiple of the coarsest map's 1/16.
    assert images.tensors.shape[-2:] == (112, 160)
    assert torch.equal(targets[0]["boxes"], targets_of(sizes)[0]["boxes"])


def test_images_are_normalised_as_asked() -> None:
    image = torch.rand(2, 48, IMAGE_PX)
    for settings, expected in (
        ({}, (image - 0.5) / 0.5),
        ({"image_mean": [0.25, 0.5], "image_std": [2.0, 4.0]}, (image - torch.tensor([0.25, 0.5])[:, None, None])),
    ):
        model = small(in_chans=2, **settings).eval()
        if settings:
            expected = expected / torch.tensor([2.0, 4.0])[:, None, None]
        images, _ = model.transform([image])
        torch.testing.assert_close(images.tensors[0], expected)
        assert len(model([image])) == 1


def test_boxes_come_back_in_pixels_of_the_image_and_masks_stay_small() -> None:
    model = small(image_px=64).eval()
    boxes, masks = torch.tensor([[8.0, 4.0, 32.0, 10.0]]), torch.rand(1, 1, 28, 28)
    found = [{"boxes": boxes, "labels": torch.tensor([2]), "scores": torch.tensor([0.5]), "masks": masks}]
    (back,) = model.transform.postprocess(found, [(16, 64)], [(48, 640)])
    assert back["boxes"].tolist() == [[80.0, 12.0, 320.0, 30.0]]
    assert torch.equal(back["masks"], masks[0])


def test_nothing_found_has_the_same_form() -> None:
    model = small(box_score_thresh=1.0).eval()
    (found,) = model(images_of([(40, 56)]))
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 28, 28),
    }


def test_faster_rcnn_is_mask_rcnn_without_masks() -> None:
    whole, boxes = small("halonet_tiny").eval(), small_boxes("halonet_tiny").eval()
    mask_head = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")
    weights = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith(mask_head)}
    boxes.load_state_dict(weights)
    images = images_of(SIZES)
    with torch.no_grad():
        for these, those in zip(boxes(images), whole(images), strict=True):
            assert these.keys() == {"boxes", "labels", "scores"}
            assert all(torch.equal(these[name], those[name]) for name in these)
    assert boxes.train()(images, targets_of(SIZES)).keys() == LOSSES - {"loss_mask"}


def own_backbone() -> nn.Module:
    return create_model("resnet_tiny", features_only=True, out_indices=(1, 2), **CONV7)


def test_a_module_serves_as_backbone() -> None:
    model = mask_rcnn(own_backbone(), CLASSES, image_px=IMAGE_PX, **SMALL)
    assert model.backbone.reductions == (4, 8)
    assert_finite_gradients(model, model(images_of(SIZES), targets_of(SIZES)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 0}, "num_classes is 0, but a detector needs at least one kind of object"),
        ({"num_classes": -2}, "num_classes is -2, but"),
        ({"backbone": "halonet_tinny"}, "there is no model 'halonet_tinny'; did you mean halonet_tiny"),
        ({"backbone": "timm:resnet19"}, "timm has no model 'resnet19'"),
        ({"choices": {"blok": 4}}, "resnet_tiny has no choice 'blok'; did you mean block"),
        ({"norm": "frosen"}, "norm is 'frosen', but it should be 'batch' or 'frozen'"),
        (
            {"box_detection_per_img": 5},
            "a detector has no setting 'box_detection_per_img'; did you mean box_detections_",
        ),
        ({"min_size": 800}, "a detector has no setting 'min_size'"),
        ({"size_divisible": 64}, "a detector has no setting 'size_divisible'"),
    ],
)
@pytest.mark.parametrize(("build", "widths"), [(mask_rcnn, (8, 16, 8)), (faster_rcnn, (8, 16))])
def test_what_cannot_be_built_is_refused(build: Any, widths: Any, arguments: dict[str, Any], sentence: str) -> None:
    given = {"backbone": "resnet_tiny", "num_classes": CLASSES, "widths": widths, "choices": CONV7, **arguments}
    with pytest.raises(UserError) as caught:
        build(given.pop("backbone"), given.pop("num_classes"), **given)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_what_is_for_names_is_refused_for_a_module() -> None:
    for settings in ({"choices": CONV7}, {"drop_path": 0.1}):
        with pytest.raises(UserError, match="choices and drop_path are for a backbone that is built by its name"):
            mask_rcnn(own_backbone(), CLASSES, **settings)


def test_maps_that_do_not_halve_are_refused() -> None:
    uneven = create_model("resnet_tiny", features_only=True, out_indices=(1, 3), **CONV7)
    with pytest.raises(UserError, match="maps are 1/4, 1/16 of the image, but those of a pyramid halve"):
        mask_rcnn(uneven, CLASSES)
