"""How a network takes in the image."""

import torch.nn.functional as F
from torch import nn

from parhelion.layers.activations import ACTIVATIONS
from parhelion.layers.choices import STEMS, Activation, StemKind
from parhelion.shapes import Float, Tensor


class PatchConvolution(nn.Conv2d):
    """A convolution as wide as its stride; an image that it does not divide is rounded up with zeros."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e ph pw"]:
        """One pixel per patch, (B, out_channels, ceil(H/stride), ceil(W/stride))."""
        # What no whole patch needs of these zeros is left out, so how many are needed must not be known.
        return super().forward(F.pad(x, (0, self.stride[1] - 1, 0, self.stride[0] - 1)))


def stem_convolution(kind: StemKind, in_chans: int, width: int, act: Activation) -> nn.Sequential:
    """Convolution, batch normalisation and activation: (B, in_chans, H, W) to `width` channels."""
    kernel, stride, padding, _ = STEMS[kind]
    convolution = PatchConvolution if kernel == stride else nn.Conv2d
    return nn.Sequential(
        convolution(in_chans, width, kernel, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(width),
        ACTIVATIONS[act](inplace=True),
    )


def stem_pool(kind: StemKind) -> nn.Module:
    """The max-pool of stems that have one."""
    return nn.MaxPool2d(3, stride=2, padding=1) if STEMS[kind][3] else nn.Identity()
