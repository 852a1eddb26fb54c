"""How the Triton kernels of axial attention cut their work, chosen from the shapes alone."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from parhelion.ops.gpu import SETTINGS, Layout, common_run, padded, unspecialised

# Rows in a tile: no more than a block has, which is what a matrix unit takes, or a power of two of blocks.
BLOCK = 16
TILES = (16, 32, 64)
# A tile costs about as much as one that has so many rows more.
OVERHEAD = 16
# Programs of the forward pass from which on one takes several tiles, and how many at most.
MANY_PROGRAMS, MOST_EACH = 2048, 8
# Warps that share the work of the backward pass: eight for each of an H100's 132 multiprocessors, and as many on any
# other GPU, so that the table's gradient is summed in one order; fewer where their sums took more than 128 MB.
WARPS = 1056
MOST_SUMS = 2**25
SUMMED = 8

# KiB of shared memory that Triton 3.6 and 3.8 allocate for sm_86 and sm_90, the most of all lengths of the axis and
# widths of queries and values, in either pass: by the size of a number and the bytes of the wider head, padded.
MOST_KIB = {
    (2, 32): 56, (2, 64): 64, (2, 128): 80, (2, 256): 36, (2, 512): 72,
    (4, 64): 46, (4, 128): 52, (4, 256): 48, (4, 512): 96,
}  # fmt: skip


class Plan(NamedTuple):
    """What a kernel is compiled for: the width of a head and the sides of the tiles.

    Fields only, since a kernel does not see properties.
    """

    d: int
    e: int
    padded_d: int
    padded_e: int
    run: int
    """Channels that strides are counted in."""
    far: bool
    """Whether offsets within an image need 64 bits."""
    slot: int
    """Pixels of an axis in a tile, a power of two."""
    lines: int
    """Short axes side by side in a tile, of different lines or heads."""
    rows: int
    """Rows of a tile, `slot * lines`."""
    side: int
    """Pixels of an axis in a block: all that a matrix unit takes, or of a shorter slot all that it has."""
    blocks: int
    """Blocks of a tile."""
    single: bool
    """Whether the axis fits into one tile."""
    plus: bool
    summed: int
    """Sums for a row of the table that are added at a time."""
    precision: str


class Lines(NamedTuple):
    """A map as lines of pixels along the axis: where it begins, and its strides, in runs of channels.

    Channels lie side by side. Strides are `unspecialised`.
    """

    start: Tensor
    image: int
    line: int
    pixel: int
    head: int


class Table(NamedTuple):
    """The embeddings of the offsets that the axis has, channels side by side; `centre` is the row of offset 0.

    The stride of its rows is the same for all maps of a layer; `centre` is `unspecialised`.
    """

    start: Tensor
    row: int
    centre: int


class Sizes(NamedTuple):
    """Pixels of the axis, lines and heads; as a kernel takes them, they are `unspecialised`."""

    length: int
    lines: int
    heads: int


class Inputs(NamedTuple):
    """What all kernels read."""

    q: Lines
    v: Lines
    table: Table
    sizes: Sizes


class Choices(NamedTuple):
    """What of a call, besides the layouts of its tensors, its kernels are launched by."""

    vertical: bool
    plus: bool
    backward: bool
    dtype: torch.dtype
    precision: str


class Setting(NamedTuple):
    """How the kernels of a call are launched: all but the tensors."""

    cut: Plan
    sizes: Sizes
    images: int
    vertical: bool
    num_warps: int
    numbers: Sizes
    """The sizes as kernels take them."""

    @property
    def tiles(self) -> int:
        """Tiles that an axis is cut into."""
        return -(-self.sizes.length // self.cut.slot)

    @property
    def units(self) -> int:
        """Tiles of queries in all, and as many of keys."""
        return self.images * -(-self.sizes.lines * self.sizes.heads // self.cut.lines) * self.tiles

    @property
    def sums(self) -> tuple[int, ...]:
        """Shape of the sums for the table: programs, distances of two tiles, early or late, blocks, rows, channels."""
        shape = (2 * self.tiles - 1, 2, self.cut.blocks, self.cut.rows, self.cut.padded_d)
        each = each_backward(self.units, math.prod(shape), self.num_warps)
        return -(-self.units // each), *shape


@functools.lru_cache(SETTINGS)
def setting(layouts: tuple[Layout, ...], choices: Choices) -> Setting:
    """The setting for q, v, the table and what maps are read besides; kept, since a network asks again and again."""
    q = layouts[0]
    along, across = (1, 2) if choices.vertical else (2, 1)
    sizes = Sizes(q.shape[along], q.shape[across], q.shape[3])
    cut = plan(layouts, sizes.length, choices)
    numbers = Sizes(*map(unspecialised, sizes))
    return Setting(cut, sizes, q.shape[0], choices.vertical, warps(cut), numbers)


@functools.lru_cache(SETTINGS)
def line_strides(strides: tuple[int, ...], run: int, *, vertical: bool) -> tuple[int, int, int, int]:
    """The strides of `Lines`, for a map of such strides."""
    image, row, col, head = (unspecialised(stride // run) for stride in strides[:4])
    return (image, col, row, head) if vertical else (image, row, col, head)


def plan(layouts: Sequence[Layout], length: int, choices: Choices) -> Plan:
    """The plan for q, v and other tensors of these layouts, and an axis of this length."""
    d, e = (one.shape[-1] for one in layouts[:2])
    wide_d, wide_e = (padded(width) * choices.dtype.itemsize // 2 for width in (d, e))
    most = most_rows(wide_d, wide_e, length, backward=choices.backward)
    slot = padded(length, 1) if length <= BLOCK else tile(length, most)
    return Plan(
        d=d,
        e=e,
        padded_d=padded(d),
        padded_e=padded(e),
        # Kernels write maps without gaps, whose strides are multiples of the channels.
        run=math.gcd(common_run(*layouts), d, e),
        far=any(span(one) >= 2**31 for one in layouts),
        slot=slot,
        lines=max(1, BLOCK // slot),
        rows=max(BLOCK, slot),
        side=min(BLOCK, slot),
        blocks=max(1, slot // BLOCK),
        single=length <= slot,
        plus=choices.plus,
        summed=SUMMED,
        precision=choices.precision,
    )


def shared_bytes(d: int, e: int, dtype: torch.dtype) -> int:
    """Bytes of shared memory that a program takes at most, in either pass and for an axis of any length."""
    # A tenth more, since other versions of Triton may take more.
    return 1024 * MOST_KIB[dtype.itemsize, max(padded(d), padded(e)) * dtype.itemsize] * 11 // 10


def span(one: Layout) -> int:
    """Numbers between the first and the last of an image, or of a table."""
    axes = range(1, 5) if len(one.shape) == 5 else range(2)
    return sum((one.shape[axis] - 1) * one.strides[axis] for axis in axes)


def most_rows(wide_d: int, wide_e: int, length: int, *, backward: bool) -> int:
    """Rows of the largest tile whose code for sm_90 does not spill; widths are padded, and twice as large in float32.

    A row has two embeddings for each block of its tile, and the backward pass a sum in float32 for each of them.
    """
    # Where an axis is cut, the backward pass adds to its sums in memory, which takes registers, too.
    if wide_d <= 16 and wide_e <= 64 and not (backward and length > TILES[-1]):
        return 64
    return 32 if wide_d <= (32 if backward else 64) and wide_e <= 64 else 16


def tile(length: int, most: int) -> int:
    """Pixels in a tile: those of an axis in as few tiles as go without much left over."""
    choices = [side for side in TILES if side <= most]
    return min(choices, key=lambda side: (-(-length // side) * (side + OVERHEAD), -side))


def warps(cut: Plan) -> int:
    """Warps of a program: one for 16 rows of up to 64 channels, or 32 in float32, two for 128 and four for 256."""
    wide = max(cut.padded_d, cut.padded_e) * (1 if cut.precision == "ieee" else 2)
    return cut.rows // 16 * max(1, min(4, wide // 64))


def each_forward(units: int) -> int:
    """Tiles that a program of the forward pass takes one after the other, so that it reads the table once for all."""
    return max(1, min(MOST_EACH, units // MANY_PROGRAMS))


def each_backward(units: int, sums: int, num_warps: int) -> int:
    """The same for the backward pass, where a program has so many warps and numbers summed for the table."""
    return max(1, -(-units // max(1, min(WARPS // num_warps, MOST_SUMS // sums))))
