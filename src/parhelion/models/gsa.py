"""GSA networks: ResNets whose 3x3 convolutions are GSA modules (arXiv 2010.03019).

What stands here of the paper's body (which layers are replaced, where maps shrink, heads, the numbers of blocks)
is recalled, not quoted; counts of the layout that follow from it agree with the recalled ones. The module itself is in
`parhelion.layers.gsa`.
"""

from dataclasses import dataclass

from parhelion.layers.choices import Activation, StemKind
from parhelion.layers.operators import Convolution, Gsa
from parhelion.models.network import Network, Stage
from parhelion.models.rows import TINY_BLOCKS, TINY_WIDTHS, WIDTHS, Row, check_stages, per_stage


@dataclass(frozen=True, kw_only=True)
class GsaNet(Row):
    """A GSA-ResNet: blocks per group, and the groups (counted from 1) that attend."""

    blocks: tuple[int, ...]
    groups: tuple[int, ...] = (1, 2, 3, 4)
    widths: tuple[int, ...] = WIDTHS
    bottleneck: float = 4.0
    heads: int = 8
    content: bool = True
    position: bool = True
    normalize_queries: bool = False
    act: Activation = "relu"
    stem: StemKind = "conv7"
    stem_width: int = 64
    zero_init_last: bool = True

    def network(self) -> Network:
        """The description that the skeleton builds."""
        check_stages("groups", self.groups, len(self.blocks))
        gsa = Gsa(
            heads=self.heads,
            content=self.content,
            position=self.position,
            normalize_queries=self.normalize_queries,
        )
        stages = (
            Stage(
                operator=gsa if group in self.groups else Convolution(),
                blocks=blocks,
                width=width,
                dim_out=round(width * self.bottleneck),
                stride=stride,
            )
            for group, (blocks, width, stride) in enumerate(per_stage(blocks=self.blocks, widths=self.widths), start=1)
        )
        return Network(
            stem=self.stem,
            stem_width=self.stem_width,
            stages=tuple(stages),
            act=self.act,
            zero_init_last=self.zero_init_last,
        )


GSA = "arXiv 2010.03019, layout recalled"

# fmt: off
GSA_NETS = {  # the paper's own counts are recalled, so no row gives them as published
    "gsa_resnet26": GsaNet(
        blocks=(1, 2, 4, 1), image_px=224, params=10_352_600, multiply_adds=2_309_742_592, source=GSA),
    "gsa_resnet38": GsaNet(
        blocks=(2, 3, 5, 2), image_px=224, params=14_202_728, multiply_adds=2_947_479_552, source=GSA),
    "gsa_resnet50": GsaNet(
        blocks=(3, 4, 6, 3), image_px=224, params=18_052_856, multiply_adds=3_585_216_512, source=GSA),
    "gsa_resnet50_groups234": GsaNet(
        blocks=(3, 4, 6, 3), groups=(2, 3, 4), image_px=224,
        params=18_120_872, multiply_adds=3_671_920_640, source=GSA),
    "gsa_resnet101": GsaNet(
        blocks=(3, 4, 23, 3), image_px=224, params=30_398_392, multiply_adds=6_089_601_024, source=GSA),
    "gsa_tiny": GsaNet(
        blocks=TINY_BLOCKS, groups=(1, 2, 3), widths=TINY_WIDTHS, bottleneck=2.0, heads=4,
        stem="conv3", stem_width=32, zero_init_last=False, image_px=32,
        params=435_544, multiply_adds=16_074_752, source="ours: small images"),
}
# fmt: on
