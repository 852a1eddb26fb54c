"""R-CNNs: torchvision's to the last digits."""

import pytest
import torch
from small_rcnns import FOUND, IMAGE_PX, LOSSES, SIZES, images_of, targets_of
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from parhelion.detection import mask_rcnn
from parhelion.detection.masks import pasted
from parhelion.models.timm_resnets import our_name

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
