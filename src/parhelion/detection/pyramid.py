"""A backbone under a feature pyramid: which of its maps are used, and what of it is frozen."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import timm
import torch
from timm.layers import Format, freeze_batch_norm_2d
from torch import nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from parhelion.errors import UserError, nearest
from parhelion.models import create_model
from parhelion.models.catalog import check_choices
from parhelion.models.create import feature_maps
from parhelion.models.resnet import ResNet, network_in
from parhelion.models.timm_features import FeatureMaps
from parhelion.runs.places import TIMM
from parhelion.shapes import Float, Tensor

FIRST_REDUCTION, LAST_REDUCTION = 4, 32
# Size (h, w) of the image that shows whether a backbone takes any size: 5 and 7 pixels of the coarsest map.
PROBE_PX = 160, 224
Norm = Literal["batch", "frozen"]


class Pyramid(nn.Module):
    """A backbone and a feature pyramid network (arXiv 1612.03144) on its maps: images to maps of equal width.

    The keys are those of torchvision's detectors: "0" for the finest map, and "pool", half as fine as the coarsest.
    Maps are at least float32 whatever autocast makes of the backbone, so that box arithmetic on them is exact.
    """

    def __init__(self, body: nn.Module, *, channels: int = 256, normed: bool = False) -> None:
        """body: A backbone that returns a list of maps, made with `features_only=True`; channels: of every map;
        normed: with batch norms after the pyramid's convolutions.
        """
        super().__init__()
        self.body, self.out_channels = body, channels
        info: Any = body.feature_info
        self.reductions: tuple[int, ...] = tuple(info.reduction())
        _check_reductions(self.reductions)
        self.fpn = FeaturePyramidNetwork(
            info.channels(), channels, extra_blocks=LastLevelMaxPool(), norm_layer=nn.BatchNorm2d if normed else None
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        """Images, each side a multiple of the last reduction, to their maps."""
        # As convolutions are fastest on, and attention reads maps without a copy.
        maps = self.body(images.contiguous(memory_format=torch.channels_last))
        if getattr(self.body, "output_fmt", Format.NCHW) == Format.NHWC:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        pyramid = self.fpn({str(level): features for level, features in enumerate(maps)})
        return {name: at_least_float32(features) for name, features in pyramid.items()}

    @property
    def network(self) -> ResNet | None:
        """The Parhelion network whose maps these are; None for another backbone."""
        return network_in(self.body)

    @property
    def parts(self) -> list[nn.Module]:
        """What can be frozen, in order: the layers before the first stage, then each stage.

        Empty if the order of the backbone's layers is unknown.
        """
        if self.network is not None:
            return self.network.parts
        ends = set(getattr(self.body, "return_layers", ()))
        if not ends:
            return []
        parts: list[list[nn.Module]] = [[]]
        for name, module in self.body.named_children():
            if name in ends and len(parts) == 1:
                parts.append([])
            parts[-1].append(module)
            if name in ends:
                parts.append([])
        return [nn.ModuleList(part) for part in parts if part]

    @property
    def bottlenecks(self) -> list[nn.Module]:
        """The residual blocks of a Parhelion backbone; of another one, its children."""
        if self.network is not None:
            return list(self.network.bottlenecks)
        return [module for module in self.body.children() if any(True for _ in module.parameters())]

    def has_tables_for(self, image_size: tuple[int, int]) -> bool:
        """Whether the backbone's tables of global attention, if it has any, are made for `image_size` (h, w)."""
        return self.network is None or self.network.has_tables_for(image_size)

    def resize(self, *, image_size: tuple[int, int]) -> None:
        """Interpolate the backbone's tables of global attention, if it has any, for images of `image_size` (h, w)."""
        if self.network is not None:
            self.network.resize(image_size=image_size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backbone keep less for the backward pass. Raises UserError if it cannot."""
        body: Any = self.body.model if isinstance(self.body, FeatureMaps) else self.body
        if enable or hasattr(body, "set_grad_checkpointing"):
            if not hasattr(body, "set_grad_checkpointing"):
                raise UserError(f"recompute is set, but {type(body).__name__} cannot compute its blocks again")
            body.set_grad_checkpointing(enable)


def named_backbone(
    name: str, *, in_chans: int, image_px: int, drop_path: float, choices: Mapping[str, Any]
) -> nn.Module:
    """The maps of a model by name: one of `parhelion.list_models()`, or `timm:NAME` for one of timm's.

    Maps finer than 1/4 and coarser than 1/32 of the image are left out; of two maps of one size the later stays. Raises
    UserError for an unknown name or choice, and for a model without such maps.
    """
    if name.startswith(TIMM):
        return _timm_backbone(name.removeprefix(TIMM), in_chans=in_chans, drop_path=drop_path, choices=choices)
    check_choices(name, choices)
    arguments = {"in_chans": in_chans, "image_size": image_px, "drop_path": drop_path, **choices}
    whole = cast("ResNet", create_model(name, num_classes=0, **arguments))
    indices = _indices(name, [info["reduction"] for info in whole.feature_info])
    # Not by `features_only`: which maps there are is known once the model is built.
    return feature_maps(whole, indices)


def _timm_backbone(name: str, *, in_chans: int, drop_path: float, choices: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(name):
        offer = nearest(name, timm.list_models()) or "; timm.list_models() lists them all"
        raise UserError(f"timm has no model {name!r}{offer}")
    arguments = {"features_only": True, "in_chans": in_chans, **choices}
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    try:
        info: Any = timm.create_model(name, **arguments).feature_info
        # Again, since timm cuts a model as it builds it.
        indices = _indices(f"{TIMM}{name}", info.reduction())
        body = timm.create_model(name, out_indices=indices, **arguments)
    except (AttributeError, NotImplementedError, TypeError, RuntimeError) as error:
        raise UserError(f"{TIMM}{name} cannot serve as a backbone: {' '.join(str(error).split())}") from error
    _check_any_size(f"{TIMM}{name}", body, in_chans)
    return body


def _check_any_size(name: str, body: nn.Module, in_chans: int) -> None:
    """Raise UserError unless `body` takes images of any size."""
    h, w = PROBE_PX
    try:
        with torch.no_grad():
            body.eval()(torch.zeros(1, in_chans, h, w))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} does not take images of all sizes, such as {h} x {w} pixels: {reason}") from error
    body.train()


def _indices(name: str, reductions: Sequence[int]) -> list[int]:
    """Which of a model's maps, by their reductions, a pyramid takes."""
    latest = {reduction: index for index, reduction in enumerate(reductions)}
    chosen = [index for reduction, index in latest.items() if FIRST_REDUCTION <= reduction <= LAST_REDUCTION]
    if not chosen:
        raise UserError(
            f"{name} has maps of 1/{', 1/'.join(map(str, reductions))} of the image, but a pyramid needs one of "
            f"1/{FIRST_REDUCTION} to 1/{LAST_REDUCTION}"
        )
    return chosen


def _check_reductions(reductions: Sequence[int]) -> None:
    expected = [reductions[0] * 2**level for level in range(len(reductions))] if reductions else []
    if list(reductions) != expected or not expected:
        raise UserError(
            f"the backbone's maps are 1/{', 1/'.join(map(str, reductions)) or '?'} of the image, but those of a "
            "pyramid halve from one to the next"
        )


def freeze_norms(model: nn.Module) -> None:
    """Turn the batch norms of `model` in place into fixed scales and shifts, for batches too small for statistics."""
    for name, child in model.named_children():
        setattr(model, name, freeze_batch_norm_2d(child))


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32 where it is of half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
