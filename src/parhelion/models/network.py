"""A network as a description: what `parhelion.models.resnet.ResNet`, the one skeleton, is built from."""

from dataclasses import dataclass

from parhelion.layers.choices import Activation, StemKind, stem_reduction
from parhelion.layers.operators import Operator


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of bottlenecks at one resolution."""

    operator: Operator
    blocks: int
    width: int  # w, inside the bottleneck
    dim_out: int
    stride: int = 2  # of the first block
    se_ratio: float = 0.0  # squeeze and excitation: hidden channels over channels; 0 is none


@dataclass(frozen=True, kw_only=True)
class Network:
    """Everything that the skeleton needs to know."""

    stem: StemKind
    stem_width: int
    stages: tuple[Stage, ...]
    act: Activation
    head_width: int | None = None  # d_f: a last 1x1 convolution before the pooling
    zero_init_last: bool = True  # each block starts as its shortcut

    @property
    def reduction(self) -> int:
        """Pixels of the image per pixel of the last map, along one axis."""
        reduction = stem_reduction(self.stem)
        for stage in self.stages:
            reduction *= stage.stride
        return reduction

    def sizes(self, image_size: tuple[int, int]) -> list[list[int]]:
        """The longest axis, in pixels, of the map that enters each block of each stage."""
        size = -(-max(image_size) // stem_reduction(self.stem))
        sizes = []
        for stage in self.stages:
            after = -(-size // stage.stride)
            sizes.append([size] + [after] * (stage.blocks - 1))
            size = after
        return sizes
