"""R-CNNs in half and double precision: what between the heads stays exact."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from small_rcnns import FOUND, SIZES, images_of, small, targets_of
from torch import Tensor, nn
from torchvision.models.detection.transform import resize_boxes


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
