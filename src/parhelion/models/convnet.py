"""The convolutional twins: the residual networks that the papers compare with, built by the same skeleton.

ResNet "v1.5" (the stride stands on the 3x3 convolution). Squeeze and excitation reduces to 1/8, the only ratio that
arXiv 2103.12731 prints (COCO recipe). The paper does not say where it stands; we put it before the residual sum.
"""

from dataclasses import dataclass

from parhelion.layers.choices import Activation, StemKind
from parhelion.layers.operators import Convolution
from parhelion.models.network import Network, Stage
from parhelion.models.rows import TINY_BLOCKS, TINY_WIDTHS, WIDTHS, Row, per_stage


@dataclass(frozen=True, kw_only=True)
class ConvNet(Row):
    """A ResNet: blocks per stage, widths, and what surrounds them."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = WIDTHS
    bottleneck: float = 4.0
    se_ratio: float = 0.0
    act: Activation = "relu"
    stem: StemKind = "conv7"
    stem_width: int = 64
    zero_init_last: bool = True

    def network(self) -> Network:
        """The description that the skeleton builds."""
        stages = (
            Stage(
                operator=Convolution(),
                blocks=blocks,
                width=width,
                dim_out=round(width * self.bottleneck),
                stride=stride,
                se_ratio=self.se_ratio,
            )
            for blocks, width, stride in per_stage(blocks=self.blocks, widths=self.widths)
        )
        return Network(
            stem=self.stem,
            stem_width=self.stem_width,
            stages=tuple(stages),
            act=self.act,
            zero_init_last=self.zero_init_last,
        )


RESNET, SE_RESNET = "arXiv 1512.03385, stride on the 3x3", "arXiv 2103.12731, COCO detection"

# fmt: off
CONVNETS = {
    "resnet26": ConvNet(
        blocks=(1, 2, 4, 1), image_px=224, params=13_696_552, multiply_adds=2_342_256_640, source=RESNET),
    "resnet38": ConvNet(
        blocks=(2, 3, 5, 2), image_px=224, params=19_626_792, multiply_adds=3_215_720_448, source=RESNET),
    "resnet50": ConvNet(
        blocks=(3, 4, 6, 3), image_px=224, params=25_557_032, multiply_adds=4_089_184_256, source=RESNET),
    "resnet101": ConvNet(
        blocks=(3, 4, 23, 3), image_px=224, params=44_549_160, multiply_adds=7_801_405_440, source=RESNET),
    "resnet50_se": ConvNet(
        blocks=(3, 4, 6, 3), se_ratio=1 / 8, image_px=512,
        params=30_603_912, multiply_adds=21_360_279_552, source=SE_RESNET),
    "resnet101_se": ConvNet(
        blocks=(3, 4, 23, 3), se_ratio=1 / 8, image_px=512,
        params=54_072_072, multiply_adds=40_759_197_696, source=SE_RESNET),
    "resnet_tiny": ConvNet(
        blocks=TINY_BLOCKS, widths=TINY_WIDTHS, bottleneck=2.0, stem="conv3", stem_width=32, zero_init_last=False,
        image_px=32, params=561_672, multiply_adds=13_060_096, source="ours: small images"),
}
# fmt: on
