"""Faster R-CNN (arXiv 1506.01497) and Mask R-CNN (arXiv 1703.06870), torchvision's, over any backbone."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, get_args

from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign

from parhelion.detection.pyramid import Norm, Pyramid, at_least_float32, freeze_norms, named_backbone
from parhelion.errors import UserError, nearest
from parhelion.models.catalog import IMAGENET_MEAN, IMAGENET_STD
from parhelion.shapes import Tensor

# Side of an anchor, in pixels of the map that it stands on: 32 pixels of the image on a map of 1/4.
ANCHOR_SIDE = 8
ASPECTS = (0.5, 1.0, 2.0)
BOX_CELLS, MASK_CELLS = 7, 14
MASK_LAYERS = 4
# Of torchvision's arguments those that are said otherwise here, and what it would pass on unread.
SAID_OTHERWISE = {"backbone", "num_classes", "min_size", "max_size", "kwargs"}
SETTINGS = {*signature(FasterRCNN).parameters} - SAID_OTHERWISE


def mask_rcnn(
    backbone: str | nn.Module,
    num_classes: int,
    *,
    image_px: int = 1024,
    in_chans: int = 3,
    norm: Norm = "batch",
    norm_heads: bool = False,
    widths: tuple[int, int, int] = (256, 1024, 256),
    **settings: Any,
) -> MaskRCNN:
    """torchvision's Mask R-CNN with a feature pyramid over `backbone`.

    Images are a list of (in_chans, h, w) with values in 0..1, of any sizes; targets are torchvision's. While training
    the model returns its losses and takes images as they are. In evaluation it scales each until its longer side has
    `image_px` pixels, and returns for each image `boxes` (N, 4), `labels`, `scores`, in pixels of the image as it came,
    and `masks` (N, 28, 28): probabilities within the box. Departs from torchvision, which makes each mask as large as
    the image: `parhelion.detection.masks.pasted` does that for one.

    Under autocast box arithmetic and RoIAlign stay in float32.

    Args:
        backbone: Name of a model of `parhelion.list_models()`; `timm:NAME`; or a module made with `features_only=True`
            whose maps halve from one to the next.
        num_classes: Kinds of objects. Departs from torchvision, which counts the background, too.
        image_px: Longer side of the images in evaluation; global attention makes its tables for it.
        in_chans: Channels of the images.
        norm: `batch`: the backbone's batch norms as they are; `frozen`: fixed, statistics and weights.
        norm_heads: Batch norms in the pyramid and in the mask head, too, as in torchvision's second version.
        widths: Channels of the pyramid, of the box head's two linear layers, and of the mask head's four convolutions.
        settings: `choices`, `drop_path`, `image_mean` and `image_std` (ImageNet's if not given), and everything
            that torchvision's FasterRCNN takes, such as `box_detections_per_img`.

    Raises:
        UserError: no such model or setting, or a model whose maps a pyramid cannot use.
    """
    built: dict[str, Any] = {"image_px": image_px, "in_chans": in_chans, "norm": norm, "norm_heads": norm_heads}
    pyramid, shared = _shared(backbone, num_classes, widths, settings, **built)
    channels, _, mask_width = widths
    levels = [str(level) for level in range(len(pyramid.reductions))]
    model = _Masks(
        pyramid,
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=MASK_CELLS, sampling_ratio=2),
        mask_head=MaskRCNNHeads(
            channels, (mask_width,) * MASK_LAYERS, 1, norm_layer=nn.BatchNorm2d if norm_heads else None
        ),
        mask_predictor=_MaskPredictor(mask_width, mask_width, num_classes + 1),
        **shared,
    )
    return _finished(model, image_px, pyramid)


def faster_rcnn(
    backbone: str | nn.Module,
    num_classes: int,
    *,
    image_px: int = 1024,
    in_chans: int = 3,
    norm: Norm = "batch",
    norm_heads: bool = False,
    widths: tuple[int, int] = (256, 1024),
    **settings: Any,
) -> FasterRCNN:
    """torchvision's Faster R-CNN with a feature pyramid over `backbone`: boxes only; otherwise see `mask_rcnn`.

    widths: Channels of the pyramid, and of the box head's two linear layers.
    """
    built: dict[str, Any] = {"image_px": image_px, "in_chans": in_chans, "norm": norm, "norm_heads": norm_heads}
    pyramid, shared = _shared(backbone, num_classes, widths, settings, **built)
    return _finished(_Boxes(pyramid, **shared), image_px, pyramid)


class _Trainee:
    """What a recipe asks of a network that it trains, see `runs.setup.Trainee`: that of the backbone."""

    backbone: Pyramid

    @property
    def parts(self) -> list[nn.Module]:
        return self.backbone.parts

    @property
    def bottlenecks(self) -> list[nn.Module]:
        return self.backbone.bottlenecks

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The backbone's layers, for timm's layer-wise learning rates; pyramid and heads come after its last."""
        body = r"^backbone\.body\.model\."
        return {"stem": rf"{body}stem", "blocks": rf"{body}stages\.(\d+)" + ("" if coarse else r"\.(\d+)")}


class _Masks(_Trainee, MaskRCNN):
    """Mask R-CNN as a recipe trains it."""


class _Boxes(_Trainee, FasterRCNN):
    """Faster R-CNN as a recipe trains it."""


class _Scaling(GeneralizedRCNNTransform):
    """Normalises images, scales them in evaluation only, and scales boxes back; masks stay within their boxes."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        h, w = image.shape[-2:]
        if self.training or min(h, w) * self.max_size > max(h, w):
            return super().resize(image, target)
        # torchvision would leave nothing of the shorter side.
        size = (1, self.max_size) if h < w else (self.max_size, 1)
        return interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        for found, scaled, original in zip(result, image_shapes, original_image_sizes, strict=False):
            found["boxes"] = resize_boxes(found["boxes"], scaled, original)
            if "masks" in found:
                found["masks"] = found["masks"].flatten(0, 1)
        return result


class _ProposalHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [at_least_float32(t) for t in logits], [at_least_float32(t) for t in boxes]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = super().forward(x)
        return at_least_float32(logits), at_least_float32(boxes)


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(super().forward(x))


def _shared(
    backbone: str | nn.Module,
    num_classes: int,
    widths: Sequence[int],
    settings: Mapping[str, Any],
    *,
    image_px: int,
    in_chans: int,
    norm: Norm,
    norm_heads: bool,
) -> tuple[Pyramid, dict[str, Any]]:
    """The pyramid, and what both kinds of R-CNN are built with besides."""
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}, but a detector needs at least one kind of object")
    if norm not in get_args(Norm):
        raise UserError(f"norm is {norm!r}, but it should be {' or '.join(map(repr, get_args(Norm)))}")
    given = dict(settings)
    choices, drop_path = given.pop("choices", {}), given.pop("drop_path", 0.0)
    for name in given:
        # torchvision would pass over it in silence.
        if name not in SETTINGS:
            raise UserError(f"a detector has no setting {name!r}{nearest(name, SETTINGS)}")
    if isinstance(backbone, str):
        backbone = named_backbone(backbone, in_chans=in_chans, image_px=image_px, drop_path=drop_path, choices=choices)
    elif choices or drop_path:
        raise UserError("choices and drop_path are for a backbone that is built by its name")
    channels, box_width = widths[:2]
    pyramid = Pyramid(backbone, channels=channels, normed=norm_heads)
    if norm == "frozen":
        freeze_norms(pyramid.body)
    reductions = (*pyramid.reductions, 2 * pyramid.reductions[-1])
    sizes = tuple((ANCHOR_SIDE * reduction,) for reduction in reductions)
    levels = [str(level) for level in range(len(pyramid.reductions))]
    grey = in_chans != len(IMAGENET_MEAN)
    shared = {
        "rpn_anchor_generator": AnchorGenerator(sizes, (ASPECTS,) * len(sizes)),
        "rpn_head": _ProposalHead(channels, len(ASPECTS)),
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=BOX_CELLS, sampling_ratio=2),
        "box_head": TwoMLPHead(channels * BOX_CELLS**2, box_width),
        "box_predictor": _BoxPredictor(box_width, num_classes + 1),
        "image_mean": (0.5,) * in_chans if grey else IMAGENET_MEAN,
        "image_std": (0.5,) * in_chans if grey else IMAGENET_STD,
    }
    return pyramid, {**shared, **given}


def _finished(model: Any, image_px: int, pyramid: Pyramid) -> Any:
    theirs = model.transform
    model.transform = _Scaling(
        min_size=image_px,
        max_size=image_px,
        image_mean=list(theirs.image_mean),
        image_std=list(theirs.image_std),
        # Only so that every map is half as large as the one before; attention takes any size.
        size_divisible=pyramid.reductions[-1],
        _skip_resize=True,
    )
    return model
