"""How a network takes in the image."""

from typing import Literal

from torch import nn

from parhelion.layers.operators import ACTIVATIONS, Activation

StemKind = Literal["conv7", "conv3", "patch4"]
# kernel, stride, padding of the convolution, and whether a 3x3 max-pool of stride 2 follows
STEMS: dict[StemKind, tuple[int, int, int, bool]] = {
    "conv7": (7, 2, 3, True),
    "conv3": (3, 2, 1, False),
    "patch4": (4, 4, 0, False),
}


def stem_convolution(kind: StemKind, in_chans: int, width: int, act: Activation) -> nn.Sequential:
    """Convolution, batch normalisation and activation: (B, in_chans, H, W) to `width` channels."""
    kernel, stride, padding, _ = STEMS[kind]
    return nn.Sequential(
        nn.Conv2d(in_chans, width, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(width),
        ACTIVATIONS[act](inplace=True),
    )


def stem_pool(kind: StemKind) -> nn.Module:
    """The max-pool of stems that have one."""
    return nn.MaxPool2d(3, stride=2, padding=1) if STEMS[kind][3] else nn.Identity()


def stem_reduction(kind: StemKind) -> int:
    """Pixels of the image per pixel of the first stage's map, along one axis."""
    _, stride, _, pooled = STEMS[kind]
    return 2 * stride if pooled else stride
