"""The residual block of every network here: 1x1, spatial operator, 1x1."""

from timm.layers import DropPath, SEModule
from torch import nn

from parhelion.layers.activations import ACTIVATIONS
from parhelion.layers.choices import Activation
from parhelion.layers.operators import Operator
from parhelion.shapes import Float, Tensor


class Bottleneck(nn.Module):
    """A post-activation ResNet block: `act(shortcut(x) + bn(1x1(act(bn(operator(act(bn(1x1(x)))))))))`.

    The shortcut is a strided 1x1 convolution with batch normalisation where channels or resolution change.
    Squeeze and excitation, where asked for, weighs the block's output before the sum, as in SE-ResNet.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        dim_out: int,
        operator: Operator,
        *,
        stride: int,
        size: int,
        act: Activation,
        se_ratio: float = 0.0,
    ) -> None:
        """Build the block from `dim` through `width` to `dim_out` channels, for maps at most `size` pixels long."""
        super().__init__()
        inner = operator.width_out(width)
        self.reduce = nn.Conv2d(dim, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.operator = operator.build(width, stride=stride, size=size)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, dim_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(dim_out)
        self.se = SEModule(dim_out, rd_ratio=se_ratio) if se_ratio else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if dim != dim_out or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(dim, dim_out, 1, stride=stride, bias=False), nn.BatchNorm2d(dim_out)
            )
        self.act = ACTIVATIONS[act](inplace=True)
        self.drop_path: nn.Module = nn.Identity()

    def set_drop_path(self, rate: float) -> None:
        """Drop the residual branch of a share `rate` of the training images."""
        self.drop_path = DropPath(rate) if rate else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e qh qw"]:
        """The block's output, (B, dim_out, ceil(H/stride), ceil(W/stride))."""
        residual = self.act(self.norm1(self.reduce(x)))
        residual = self.act(self.norm2(self.operator(residual)))
        residual = self.se(self.norm3(self.expand(residual)))
        return self.act(self.shortcut(x) + self.drop_path(residual))
