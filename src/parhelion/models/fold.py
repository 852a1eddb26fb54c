"""A trained network made ready for inference: what only training needs is folded away."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from parhelion.errors import UserError
from parhelion.layers import HaloAttention
from parhelion.layers.bottleneck import Bottleneck


def fold(model: nn.Module) -> nn.Module:
    """A copy of a network for inference: fewer passes over the maps, the same numbers up to rounding.

    Batch normalisations go into the convolutions before them, the logits' scale of halo attention into its query
    projection, and weights are laid out channels-last. Normalisations inside or right after an attention stay: a shift
    of the values is no shift of the output where keys outside the image take part in the softmax. The copy is in eval
    mode and needs no gradients; the model is left as it is.

    Raises:
        UserError: there is nothing to fold: the model is not one of ours, or was folded before.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    ours = any(isinstance(module, Bottleneck) for module in folded.modules())
    if not ours or not sum(_fold_children(module) for module in list(folded.modules())):
        raise UserError(
            f"there is nothing to fold in this {type(model).__name__}: fold takes a Parhelion network that was not "
            "folded before"
        )
    return folded.to(memory_format=torch.channels_last)


def _fold_children(module: nn.Module) -> int:
    """Fold the children of `module`; return the number of foldings."""
    if isinstance(module, HaloAttention):
        return _fold_scale(module)
    if isinstance(module, Bottleneck):
        pairs = [("reduce", "norm1"), ("operator", "norm2"), ("expand", "norm3")]
    elif isinstance(module, nn.Sequential):
        pairs = list(pairwise(module._modules))
    else:
        return 0
    return sum(_fold_pair(module, convolution, norm) for convolution, norm in pairs)


def _fold_pair(parent: nn.Module, convolution: str, norm: str) -> int:
    """Fold the child `norm` into the child `convolution`, if that is what they are."""
    first, second = parent.get_submodule(convolution), parent.get_submodule(norm)
    if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.BatchNorm2d):
        return 0
    setattr(parent, convolution, fuse_conv_bn_eval(first, second).requires_grad_(False))
    setattr(parent, norm, nn.Identity())
    return 1


def _fold_scale(layer: HaloAttention) -> int:
    if layer.scale == 1.0:
        return 0
    layer.q.weight.mul_(layer.scale)
    if layer.q.bias is not None:
        layer.q.bias.mul_(layer.scale)
    layer.scale = 1.0
    return 1
