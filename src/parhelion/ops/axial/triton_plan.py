"""How the Triton kernels of axial attention cut their work, chosen from the shapes alone."""

from typing import NamedTuple

from torch import Tensor

from parhelion.ops.gpu import padded, precision

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
    """A map as lines of pixels along the axis: where it begins, and its strides. Channels lie side by side."""

    start: Tensor
    image: int
    line: int
    pixel: int
    head: int


class Table(NamedTuple):
    """The embeddings of the offsets that the axis has, channels side by side; `centre` is the row of offset 0."""

    start: Tensor
    row: int
    centre: int


class Sizes(NamedTuple):
    """Pixels of the axis, lines and heads, as a kernel takes them."""

    length: int
    lines: int
    heads: int


class Inputs(NamedTuple):
    """What all kernels read."""

    q: Lines
    v: Lines
    table: Table
    sizes: Sizes


def plan(q: Tensor, v: Tensor, length: int, *, plus: bool, run: int, far: bool, backward: bool) -> Plan:
    """The plan for maps of these widths and this dtype, and an axis of this length."""
    d, e = q.shape[-1], v.shape[-1]
    wide_d, wide_e = (padded(width) * q.element_size() // 2 for width in (d, e))
    most = most_rows(wide_d, wide_e, length, backward=backward)
    slot = padded(length, 1) if length <= BLOCK else tile(length, most)
    return Plan(
        d=d,
        e=e,
        padded_d=padded(d),
        padded_e=padded(e),
        run=run,
        far=far,
        slot=slot,
        lines=max(1, BLOCK // slot),
        rows=max(BLOCK, slot),
        side=min(BLOCK, slot),
        blocks=max(1, slot // BLOCK),
        single=length <= slot,
        plus=plus,
        summed=SUMMED,
        precision=precision(q.dtype),
    )


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
