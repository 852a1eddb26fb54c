"""Small R-CNNs, and images and targets for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN

from parhelion.detection import faster_rcnn, mask_rcnn

CLASSES, IMAGE_PX, FOUND = 3, 96, 7
SMALL = {"widths": (8, 16, 8), "rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 16}
SMALL |= {"box_score_thresh": 0.0, "box_detections_per_img": FOUND}
CONV7 = {"stem": "conv7"}
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
