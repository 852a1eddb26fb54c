"""HaloNets: the H family, its hybrids, and residual networks with halo attention (arXiv 2103.12731).

Letters of the paper: b `block`, h `halo`, r_v `value_ratio`, r_b `bottleneck`, l_3 the third number of `blocks`, s
`image_px`, d_f `head_width`. Stages count from 1.
"""

from dataclasses import dataclass

from parhelion.layers.choices import Activation, StemKind, TableRows
from parhelion.layers.operators import Convolution, Halo, Operator
from parhelion.models.network import Network, Stage
from parhelion.models.rows import TINY_BLOCKS, TINY_WIDTHS, WIDTHS, Row, check_stages, per_stage
from parhelion.ops.halo.contract import Border, Relative


@dataclass(frozen=True, kw_only=True)
class HaloNet(Row):
    """A HaloNet. Where the paper is silent: logits without a scale, zeros beyond the border, squeeze and excitation
    only in convolutional stages unless `se_ratio_halo` says otherwise, convolutions not widened by `value_ratio`.
    """

    block: int
    halo: int
    value_ratio: float = 1.0
    qk_ratio: float = 1.0  # widens queries and keys, as value_ratio widens values; 1 in every published model
    bottleneck: float
    blocks: tuple[int, ...]
    heads: tuple[int, ...] = (4, 8, 8, 8)
    widths: tuple[int, ...] = WIDTHS
    head_width: int | None = None
    conv_stages: tuple[int, ...] = ()
    se_ratio: float = 0.0  # of convolutional stages
    se_ratio_halo: float = 0.0  # of attention stages
    act: Activation = "silu"
    stem: StemKind = "conv7"
    stem_width: int = 64
    zero_init_last: bool = True
    border: Border = "zero"
    scale: float | None = 1.0
    relative: Relative = "halves"
    rows: TableRows = "window"

    def network(self) -> Network:
        """The description that the skeleton builds."""
        check_stages("conv_stages", self.conv_stages, len(self.blocks))
        stages = tuple(
            Stage(
                operator=self._operator(number, heads),
                blocks=blocks,
                width=width,
                dim_out=round(width * self.bottleneck),
                stride=stride,
                se_ratio=self.se_ratio if number in self.conv_stages else self.se_ratio_halo,
            )
            for number, (blocks, width, heads, stride) in enumerate(
                per_stage(blocks=self.blocks, widths=self.widths, heads=self.heads), start=1
            )
        )
        return Network(
            stem=self.stem,
            stem_width=self.stem_width,
            stages=stages,
            act=self.act,
            head_width=self.head_width,
            zero_init_last=self.zero_init_last,
        )

    def _operator(self, stage: int, heads: int) -> Operator:
        if stage in self.conv_stages:
            return Convolution()
        return Halo(
            heads=heads,
            block=self.block,
            halo=self.halo,
            value_ratio=self.value_ratio,
            qk_ratio=self.qk_ratio,
            border=self.border,
            scale=self.scale,
            relative=self.relative,
            rows=self.rows,
        )


FAMILY = "arXiv 2103.12731, Table A2"
STUDY = "arXiv 2103.12731, HaloNet-50 studies"
LARGE = "arXiv 2103.12731, ImageNet-21k transfer"
HYBRID = "arXiv 2103.12731, H7 hybrids"
DETECTION = "arXiv 2103.12731, COCO detection"


def _h7(conv_stages: tuple[int, ...], params: int, multiply_adds: int) -> HaloNet:
    return HaloNet(
        block=10,
        halo=3,
        value_ratio=4.0,
        bottleneck=3.5,
        blocks=(3, 3, 26, 3),
        head_width=2048,
        conv_stages=conv_stages,
        se_ratio=1 / 8,
        image_px=600,
        params=params,
        multiply_adds=multiply_adds,
        source=HYBRID,
    )


def _h4_base128(
    params: int,
    multiply_adds: int,
    *,
    published: float,
    stem: StemKind = "conv7",
    conv_stages: tuple[int, ...] = (),
) -> HaloNet:
    """Widths doubled, pre-trained at 256 pixels with b = 8, h = 2; `resize` leads to 384 (12, 2) and 512 (16, 1)."""
    return HaloNet(
        block=8,
        halo=2,
        bottleneck=4.0,
        blocks=(3, 4, 12, 3),
        widths=tuple(2 * width for width in WIDTHS),
        stem=stem,
        conv_stages=conv_stages,
        image_px=256,
        params=params,
        multiply_adds=multiply_adds,
        published_params=published,
        source=LARGE,
    )


def _se_resnet(blocks: tuple[int, ...], params: int, multiply_adds: int) -> HaloNet:
    """Attention in the last stage only, `block` 8 or 32. The paper contradicts itself on heads: 8, as in H."""
    return HaloNet(
        block=8,
        halo=3,
        bottleneck=4.0,
        blocks=blocks,
        conv_stages=(1, 2, 3),
        se_ratio=1 / 8,
        se_ratio_halo=1 / 8,
        act="relu",
        rows="offsets",
        image_px=512,
        params=params,
        multiply_adds=multiply_adds,
        source=DETECTION,
    )


# fmt: off
HALONETS = {  # b, h, r_v, r_b, l_3 and d_f, s, published parameters; below them our counts
    "halonet_h0": HaloNet(
        block= 8, halo=3, value_ratio=1.0, bottleneck=0.5 , blocks=(3, 3,  7, 3), head_width=None, image_px=256,
        published_params= 5.5e6, params=5_488_424, multiply_adds=2_283_464_704, source=FAMILY),
    "halonet_h1": HaloNet(
        block= 8, halo=3, value_ratio=1.0, bottleneck=1.0 , blocks=(3, 3, 10, 3), head_width=None, image_px=256,
        published_params= 8.1e6, params=8_084_936, multiply_adds=2_910_900_224, source=FAMILY),
    "halonet_h2": HaloNet(
        block= 8, halo=3, value_ratio=1.0, bottleneck=1.25, blocks=(3, 3, 11, 3), head_width=None, image_px=256,
        published_params= 9.4e6, params=9_388_328, multiply_adds=3_232_809_984, source=FAMILY),
    "halonet_h3": HaloNet(
        block=10, halo=3, value_ratio=1.0, bottleneck=1.5 , blocks=(3, 3, 12, 3), head_width=1024, image_px=320,
        published_params=12.3e6, params=11_821_960, multiply_adds=6_031_155_200, source=FAMILY),
    "halonet_h4": HaloNet(
        block=12, halo=2, value_ratio=1.0, bottleneck=3.0 , blocks=(3, 3, 12, 3), head_width=1280, image_px=384,
        published_params=19.1e6, params=19_082_632, multiply_adds=11_784_783_872, source=FAMILY),
    "halonet_h5": HaloNet(
        block=14, halo=2, value_ratio=2.5, bottleneck=2.0 , blocks=(3, 3, 23, 3), head_width=1536, image_px=448,
        published_params=30.7e6, params=30_683_112, multiply_adds=31_802_683_392, source=FAMILY),
    "halonet_h6": HaloNet(
        block= 8, halo=4, value_ratio=3.0, bottleneck=2.75, blocks=(3, 3, 24, 3), head_width=1536, image_px=512,
        published_params=43.4e6, params=43_425_544, multiply_adds=52_262_563_840, source=FAMILY),
    "halonet_h7": HaloNet(
        block=10, halo=3, value_ratio=4.0, bottleneck=3.5 , blocks=(3, 3, 26, 3), head_width=2048, image_px=600,
        published_params=67.0e6, params=67_400_008, multiply_adds=109_870_140_416, source=FAMILY),
    "halonet_50": HaloNet(
        block= 8, halo=3, value_ratio=1.0, bottleneck=4.0 , blocks=(3, 4,  6, 3), heads=(4, 8, 16, 32), act="relu",
        image_px=256, published_params=18.0e6, params=18_019_112, multiply_adds=4_763_435_008, source=STUDY),
    "halonet_h4_base128": _h4_base128(85_144_264, 21_239_070_720, published=85e6),
    "halonet_h4_base128_patch": _h4_base128(85_137_928, 21_097_512_960, published=85e6, stem="patch4"),
    "halonet_h4_base128_conv12": _h4_base128(87_006_888, 22_868_557_824, published=87e6, conv_stages=(1, 2)),
    "halonet_h7_conv1": _h7((1,), 67_348_984, 102_197_863_424),
    "halonet_h7_conv12": _h7((1, 2), 67_128_592, 95_685_527_552),
    "halonet_h7_conv123": _h7((1, 2, 3), 59_527_856, 62_065_207_296),
    "halo_resnet50_se": _se_resnet((3, 4, 6, 3), 25_889_352, 20_714_618_880),
    "halo_resnet101_se": _se_resnet((3, 4, 23, 3), 49_357_512, 40_113_537_024),
    "halonet_tiny": HaloNet(
        block=4, halo=1, bottleneck=2.0, blocks=TINY_BLOCKS, widths=TINY_WIDTHS, heads=(2, 4, 8), act="relu",
        stem="conv3", stem_width=32, zero_init_last=False, rows="offsets", image_px=32,
        params=433_080, multiply_adds=12_605_440, source="ours: small images"),
}
# fmt: on
