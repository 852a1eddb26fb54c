"""R-CNNs: torchvision's to the last digits, images of all sizes, frozen parts, half precision, small masks."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.detection import FasterRCNN, MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import FrozenBatchNorm2d

from parhelion.detection import faster_rcnn, mask_rcnn
from parhelion.detection.masks import pasted
from parhelion.errors import UserError
from parhelion.models.catalog import create_model
from parhelion.models.timm_resnets import our_name
from parhelion.recipes.preparing import frozen_parts
from parhelion.train.loop import Step

CLASSES, IMAGE_PX, FOUND = 3, 96, 7
SMALL = {"widths": (8, 16, 8), "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 16}
SMALL |= {"box_score_thresh": 0.0, "box_detections_per_img": FOUND}
CONV7 = {"stem": "conv7"}
OURS = ["resnet_tiny", "halonet_tiny", "gsa_tiny"]
BACKBONES = [*OURS, "timm:resnet18", "timm:test_vit"]
SIZES = [(64, 112), (71, 40)]
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def small(name: str = "resnet_tiny", **settings: Any) -> MaskRCNN:
    choices = {} if name.startswith("timm:") else CONV7
    return mask_rcnn(name, CLASSES, **{"image_px": IMAGE_PX, "choices": choices, **SMALL, **settings})


def small_boxes(name: str = "resnet_tiny", **settings: Any) -> FasterRCNN:
    boxes_only = {**SMALL, "widths": SMALL["widths"][:2]}
    return faster_rcnn(name, CLASSES, **{"image_px": IMAGE_PX, "choices": CONV7, **boxes_only, **settings})


def images_of(sizes: Sequence[tuple[int, int]], *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.rand(3, h, w, dtype=dtype) for h, w in sizes]


def targets_of(sizes: Sequence[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """In each image but the last two objects whose masks fill their boxes; in that none."""
    targets = []
    for h, w in sizes[:-1]:
        boxes = torch.tensor([[5, 3, w // 2, 2 * h // 3], [w // 4, h // 3, w - 1, h - 2]])
        masks = torch.zeros(2, h, w, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        targets.append({"boxes": boxes.float(), "labels": torch.tensor([1, 3]), "masks": masks})
    h, w = sizes[-1]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [*targets, {**nothing, "masks": torch.zeros(0, h, w, dtype=torch.uint8)}]


def assert_finite_gradients(model: nn.Module, losses: dict[str, Tensor]) -> None:
    assert losses.keys() == LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


PARITY = {"box_score_thresh": 0.0, "box_detections_per_img": FOUND, "box_batch_size_per_image": 16}
PARITY |= {"rpn_post_nms_top_n_train": 60, "rpn_post_nms_top_n_test": 60}


def torchvisions(norm: str) -> MaskRCNN:
    """Its Mask R-CNN, in float64, that scales as ours does; weights and statistics unlike any start."""
    arguments = {"min_size": IMAGE_PX, "max_size": IMAGE_PX, "_skip_resize": True, **PARITY}
    if norm == "batch":
        model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **arguments)
    else:
        body = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
        model = MaskRCNN(body, 91, **arguments)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(1.0, 3.0)
        elif name.startswith("backbone.body") and tensor.ndim == 1:
            tensor += 0.1 * torch.randn_like(tensor)
        elif name.startswith(("rpn.head.", "roi_heads.box_predictor.")) and tensor.ndim > 1:
            tensor *= 5
    return model.double()


def as_ours(name: str) -> str:
    """Our name of a tensor of torchvision's."""
    body = "backbone.body."
    return f"{body}model.{our_name(name.removeprefix(body))}" if name.startswith(body) else name


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "norm"), [("timm:resnet50", "frozen"), ("resnet50", "batch")])
def test_with_torchvisions_weights_losses_and_detections_are_torchvisions(backbone: str, norm: str) -> None:
    theirs = torchvisions(norm)
    ours = mask_rcnn(backbone, 90, image_px=IMAGE_PX, norm=norm, **PARITY).double()
    weights = theirs.state_dict()
    if backbone == "resnet50":
        weights = {as_ours(name): tensor for name, tensor in weights.items()}
    # timm's names are torchvision's.
    ours.load_state_dict(weights)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

    images, targets = images_of(SIZES, dtype=torch.float64), targets_of(SIZES)
    losses = []
    for model in (theirs, ours):
        torch.manual_seed(11)
        with torch.no_grad():
            losses.append(model.train()(images, targets))
    assert losses[1].keys() == losses[0].keys() == LOSSES
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-8, atol=0.0)

    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    for size, those, these in zip(SIZES, expected, found, strict=True):
        assert len(these["boxes"]) == FOUND
        assert torch.equal(these["labels"], those["labels"])
        torch.testing.assert_close(these["scores"], those["scores"], rtol=1e-8, atol=0.0)
        torch.testing.assert_close(these["boxes"], those["boxes"], rtol=1e-8, atol=1e-8)
        assert these["masks"].shape == (FOUND, 28, 28)
        whole = torch.stack([pasted(*one, size) for one in zip(these["masks"], these["boxes"], strict=True)])
        assert torch.equal(whole, those["masks"][:, 0] >= 0.5)


def test_the_weights_of_torchvisions_mask_rcnn_are_all_there() -> None:
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
        ours = mask_rcnn("resnet50", 90).state_dict()
        timms = mask_rcnn("timm:resnet50", 90).state_dict()
    shapes = {name: tensor.shape for name, tensor in theirs.items()}
    assert {name: tensor.shape for name, tensor in timms.items()} == shapes
    assert {name: tensor.shape for name, tensor in ours.items()} == {as_ours(name): s for name, s in shapes.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halonet_tiny", "resnet_tiny"])
def test_images_of_three_sizes_train_in_one_batch(name: str) -> None:
    sizes = [(320, 480), (641, 333), (1024, 1024)]
    model = small(name, image_px=1024)
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


def test_frozen_norms_stay_while_everything_else_learns() -> None:
    model = small("halonet_tiny", norm="frozen")
    assert not any(isinstance(module, _NormBase) for module in model.modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = {
        f"{path}.{name}"
        for path, m in model.named_modules()
        if "Frozen" in type(m).__name__
        for name in dict(m.named_buffers())
    }
    assert norms
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(images_of(SIZES), targets_of(SIZES)).values()).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & norms
    assert changed == {name for name, _ in model.named_parameters()}


def test_norms_of_the_batch_move() -> None:
    model = small("halonet_tiny")
    model(images_of(SIZES), targets_of(SIZES))
    counts = {int(tensor) for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


@pytest.mark.parametrize("name", ["gsa_tiny", "timm:resnet18"])
def test_frozen_parts_neither_learn_nor_move(name: str) -> None:
    model = small(name)
    frozen = frozen_parts(model, 2)
    before = [{key: tensor.clone() for key, tensor in part.state_dict().items()} for part in frozen]
    step = Step(model, lambda model, batch: model(*batch), frozen=frozen)
    step.train()
    sum(model(images_of(SIZES), targets_of(SIZES)).values()).backward()
    frozen_parameters = {id(parameter) for part in frozen for parameter in part.parameters()}
    assert frozen_parameters
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen_parameters), key
    for part, state in zip(frozen, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())
    with pytest.raises(UserError, match=f"freeze is 9, but the model has {len(model.parts)} parts"):
        frozen_parts(model, 9)


@pytest.mark.parametrize("name", ["halonet_tiny", "timm:resnet18"])
def test_computing_blocks_again_gives_the_same_losses_and_gradients(name: str) -> None:
    model, images = small(name, norm="frozen"), images_of(SIZES)
    kept = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        torch.manual_seed(13)
        losses = model(images, targets_of(SIZES))
        sum(losses.values()).backward()
        gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
        kept.append({**{key: loss.detach() for key, loss in losses.items()}, **gradients})
    for key, tensor in kept[0].items():
        torch.testing.assert_close(kept[1][key], tensor, rtol=1e-4, atol=1e-6, msg=key)


def test_bottlenecks_are_those_of_the_backbone() -> None:
    model = small("halonet_tiny")
    assert model.bottlenecks == model.backbone.body.model.bottlenecks


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def watched(model: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """What the modules of these names return, filled when the model runs."""
    seen: dict[str, Any] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
    return seen


BETWEEN = ["backbone", "rpn.head", "rpn", "roi_heads.box_roi_pool", "roi_heads.box_predictor", "roi_heads"]
OF_MASKS = ["roi_heads.mask_roi_pool", "roi_heads.mask_predictor"]
IN_HALF = ["backbone.body", "backbone.fpn", "rpn.head.conv", "roi_heads.box_head", "roi_heads.mask_head"]


def float_types(value: Any) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors_in(value) if tensor.is_floating_point()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["halonet_tiny", "gsa_tiny", "timm:resnet18"])
def test_under_autocast_everything_between_the_heads_is_float32(name: str, training: bool) -> None:
    model = small(name).train(training)
    seen = watched(model, [*BETWEEN, *OF_MASKS, *IN_HALF])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model(images_of(SIZES), targets_of(SIZES) if training else None)
    for module in [*BETWEEN, *OF_MASKS]:
        assert float_types(seen[module]) == {torch.float32}, module
    # Otherwise the test would show nothing.
    for module in IN_HALF:
        assert float_types(seen[module]) == {torch.bfloat16}, module
    assert float_types(answer) == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors_in(answer))


class Replay(nn.Module):
    """Says again what was said before."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_inputs: Any) -> Any:
        return self.output


def test_boxes_under_autocast_are_those_of_float32_for_the_same_logits() -> None:
    model = small("halonet_tiny").eval()
    seen = watched(model, ["transform", "backbone", "rpn.head", "rpn", "roi_heads.box_predictor", "roi_heads"])
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(images_of(SIZES))
        (images, _), (proposals, _), (found, _) = seen["transform"], seen["rpn"], seen["roi_heads"]
        features, predicted = seen["backbone"], seen["roi_heads.box_predictor"]
        model.rpn.head = Replay(seen["rpn.head"])
        again, _ = model.rpn(images, features)
        boxes, scores, labels = model.roi_heads.postprocess_detections(*predicted, proposals, images.image_sizes)
    for these, those in zip(again, proposals, strict=True):
        assert len(these) > FOUND
        assert torch.equal(these, those)
    for number, one in enumerate(found):
        assert torch.equal(one["scores"], scores[number])
        assert torch.equal(one["labels"], labels[number])
        # The heads' answer meanwhile holds the boxes in pixels of the image as it came.
        assert torch.equal(one["boxes"], resize_boxes(boxes[number], images.image_sizes[number], SIZES[number]))


def test_a_model_in_float64_stays_there() -> None:
    model = small("gsa_tiny").double().eval()
    seen = watched(model, [*BETWEEN, *OF_MASKS])
    with torch.no_grad():
        found = model(images_of(SIZES, dtype=torch.float64))
    assert float_types(found) == float_types(seen) == {torch.float64}


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
