"""What may stand in the middle of a bottleneck: frozen descriptions that build the spatial operator of a stage.

The descriptions need no torch; what they build brings it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from parhelion.layers.choices import TableRows
from parhelion.ops.halo.contract import Border, Relative

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A 3x3 convolution without bias; a stride stands on it, as in ResNet "v1.5"."""

    def width_out(self, dim: int) -> int:
        """Channels after the operator."""
        return dim

    def build(self, dim: int, *, stride: int, size: int) -> "torch.nn.Module":
        """The module for `dim` channels; `size` (the longest axis of its map) does not matter here."""
        from torch import nn

        return nn.Conv2d(dim, dim, 3, stride=stride, padding=1, bias=False)


@dataclass(frozen=True, kw_only=True)
class Gsa:
    """A `GlobalSelfAttention`; a stride averages its output."""

    heads: int = 8
    content: bool = True
    position: bool = True
    normalize_queries: bool = False

    def width_out(self, dim: int) -> int:
        """Channels after the operator."""
        return dim

    def build(self, dim: int, *, stride: int, size: int) -> "torch.nn.Module":
        """The module for `dim` channels on maps whose longest axis has `size` pixels."""
        from parhelion.layers.gsa import GlobalSelfAttention

        return GlobalSelfAttention(
            dim,
            heads=self.heads,
            size=size,
            stride=stride,
            content=self.content,
            position=self.position,
            normalize_queries=self.normalize_queries,
        )


@dataclass(frozen=True, kw_only=True)
class Halo:
    """A `HaloAttention`; a stride stands on its queries."""

    heads: int
    block: int
    halo: int
    value_ratio: float = 1.0  # r_v
    qk_ratio: float = 1.0  # the same for queries and keys
    border: Border = "zero"
    scale: float | None = 1.0
    relative: Relative = "halves"
    rows: TableRows = "offsets"

    def width_out(self, dim: int) -> int:
        """Channels after the operator: r_v widens the values."""
        return round(dim * self.value_ratio)

    def build(self, dim: int, *, stride: int, size: int) -> "torch.nn.Module":
        """The module for `dim` channels; `size` (the longest axis of its map) does not matter here."""
        from parhelion.layers.halo import HaloAttention

        return HaloAttention(
            dim,
            self.width_out(dim),
            heads=self.heads,
            block=self.block,
            halo=self.halo,
            stride=stride,
            border=self.border,
            scale=self.scale,
            relative=self.relative,
            rows=self.rows,
            dim_qk=round(dim * self.qk_ratio),
        )


Operator = Convolution | Gsa | Halo
