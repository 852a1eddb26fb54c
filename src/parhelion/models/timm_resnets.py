"""timm's plain ResNets in the words of our skeleton: the same networks under other names."""

from typing import Any

from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import nn

from parhelion.layers.operators import Convolution
from parhelion.models.network import Network, Stage
from parhelion.models.resnet import ResNet
from parhelion.models.rows import STRIDES, WIDTHS

STAGES = {f"layer{number}": str(number - 1) for number in range(1, 5)}
PARTS = {
    "conv1": "reduce",
    "bn1": "norm1",
    "conv2": "operator",
    "bn2": "norm2",
    "conv3": "expand",
    "bn3": "norm3",
    "se": "se",
    "downsample": "shortcut",
}
OUTSIDE_STAGES = {"conv1": ("stem", "0"), "bn1": ("stem", "1"), "fc": ("head", "fc")}
# Parts that timm's plain ResNets, and ours, compute with besides their weights.
WITHOUT_WEIGHTS = {"ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "Flatten", "Identity", "Sigmoid", "Dropout"}


def our_name(name: str) -> str:
    """Our name of a module or tensor of timm's ResNets; a name that none of ours has stays as it is."""
    match name.split("."):
        case [layer, block, part, *rest] if layer in STAGES and part in PARTS:
            return ".".join(["stages", STAGES[layer], block, PARTS[part], *rest])
        case [first, *rest] if first in OUTSIDE_STAGES:
            return ".".join([*OUTSIDE_STAGES[first], *rest])
    return name


def plain_resnet(model: nn.Module) -> ResNet | str:
    """The network of ours, on the same device, that computes what `model` of timm does; a clause why none does.

    Weights do not matter, so both may be on the meta device.
    """
    if isinstance(model, ResNet):
        return "it is Parhelion's own"
    if type(model) is not TimmResNet:
        return f"it is a {type(model).__name__}, not a ResNet: other blocks, heads and activations"
    for module in model.modules():
        kind = type(module).__name__
        is_leaf, has_weights = not list(module.children()), bool(list(module.parameters(recurse=False)))
        if is_leaf and not has_weights and kind not in WITHOUT_WEIGHTS:
            return f"it computes with {kind}"
    resnet: Any = model
    groups = [list(getattr(resnet, layer)) for layer in STAGES]
    if any(type(block) is not Bottleneck for blocks in groups for block in blocks):
        return "its blocks are no bottlenecks"
    ours = ResNet(_network(groups), num_classes=resnet.num_classes, in_chans=resnet.in_chans)
    found, wanted = ({our_name(name): words for name, words in _parts(net).items()} for net in (model, ours))
    differing = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    return f"{len(differing)} layers differ from a plain ResNet's (first: {differing[0]})" if differing else ours


def _network(groups: list[list[Any]]) -> Network:
    stages = []
    for blocks, width, stride in zip(groups, WIDTHS, STRIDES, strict=True):
        se, expand = blocks[0].se, blocks[0].conv3
        ratio = se.fc1.out_channels / se.fc1.in_channels if se is not None else 0.0
        stages.append(
            Stage(
                operator=Convolution(),
                blocks=len(blocks),
                width=width,
                dim_out=expand.out_channels,
                stride=stride,
                se_ratio=ratio,
            )
        )
    return Network(stem="conv7", stem_width=64, stages=tuple(stages), act="relu")


def _parts(model: nn.Module) -> dict[str, str]:
    """Every module that holds weights, in words: kind, channels, kernel, stride, groups."""
    return {
        name: repr(module)
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False)) and not list(module.children())
    }
