"""How the Triton kernels of halo attention cut their work, chosen from the shapes alone."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from parhelion.ops.gpu import NARROWEST, SETTINGS, Layout, Map, common_run, fewest_groups, padded, unspecialised
from parhelion.ops.halo.contract import Geometry, Relative, table_rows, table_widths

# A tile of keys costs as many instructions as this many keys more: counted in the machine code for sm_90.
OVERHEAD_KEYS = 48
# A tile of queries costs as many instructions as this many queries more.
OVERHEAD_QUERIES = 16
# Numbers that a thread may hold by the estimate below, forward and backward: above, the code for sm_90 spills them.
MOST_FORWARD, MOST_BACKWARD = 200, 170


class Copies(NamedTuple):
    """Of what a program works with, how many copies it holds in shared memory at a time, at most."""

    queries: float
    """Tiles of queries, with their outputs or gradients."""
    keys: float
    """Tiles of keys and values, for each that is on its way."""
    products: float
    """Products of a tile of queries and a tile of keys, in float32."""
    tables: float
    sides: float
    """Ones and zeros of the rows and columns of the window, for the queries and keys of a tile."""


# fmt: off
# The least numbers that bound what Triton 3.6 and 3.8 allocate for sm_86 and sm_90, for some 500 kernels of the papers'
# and of random plans; a tenth more, since others may take more.
COPIES = {  # by kernel, and whether in float32
    ("forward",          False): Copies(queries=1.6, keys=0.5, products=0.4, tables=2.0, sides=0.0),
    ("forward",          True):  Copies(queries=1.8, keys=0.3, products=1.1, tables=0.3, sides=0.0),
    ("backward_queries", False): Copies(queries=2.6, keys=0.4, products=0.3, tables=2.0, sides=2.5),
    ("backward_queries", True):  Copies(queries=2.9, keys=0.3, products=0.3, tables=0.6, sides=2.3),
    ("backward_keys",    False): Copies(queries=3.0, keys=0.8, products=0.9, tables=2.4, sides=0.0),
    ("backward_keys",    True):  Copies(queries=1.8, keys=2.5, products=2.6, tables=4.6, sides=0.0),
}
# fmt: on


class Plan(NamedTuple):
    """What a kernel is compiled for: the shape of a head and its window, and the sides of the tiles.

    Fields only, since a kernel does not see properties.
    """

    d: int
    e: int
    padded_d: int
    padded_e: int
    block: int
    halo: int
    side: int
    """Pixels along one side of the window."""
    stride: int
    step: int
    masked: bool
    relative: bool
    width_h: int
    width_w: int
    first_w: int
    """First channel of a query that meets the table of columns."""
    run: int
    """Channels that the strides of the maps are counted in."""
    queries: int
    """Queries in a tile of one block, a power of two."""
    tiles: int
    """Tiles of queries in a block."""
    rows: int
    cols: int
    """Rows and columns of a tile of keys, powers of two."""
    tail_rows: int
    tail_cols: int
    """The same for the columns of the window beyond `cols`; 0 where there are none."""
    unroll: int
    """Tiles of keys that come one after the other without a loop, so that a loop around them can load ahead."""
    all_heads: bool
    """Whether a program of the forward pass takes all heads of a block."""
    key_side: int
    """Side of the tile of pixels that one program of the backward pass sums the gradients of keys and values for."""
    key_shift: int
    """How far these tiles begin before the image, so that few windows meet in one."""
    offsets: int
    """Rows of a table."""
    padded_offsets: int
    padded_side: int
    exact: bool
    """Whether roundings are avoided that float32 would show: of the softmax's level, and of weights times gradients."""
    precision: str


class Table(NamedTuple):
    """A table (offsets, channels) as a kernel takes it, without gaps."""

    start: Tensor


class Sizes(NamedTuple):
    """Pixels, queries and blocks along each axis, and heads; as a kernel takes them, they are `unspecialised`."""

    h: int
    w: int
    query_h: int
    query_w: int
    blocks_h: int
    blocks_w: int
    heads: int


class Scale(NamedTuple):
    """The scale of the logits, apart: the weight of a key is 2^(factor * (sign q)·(k + r)), before they sum to one."""

    factor: float
    sign: float


class Inputs(NamedTuple):
    """What all kernels read. Tuples only: beside a number, Triton 3.6 would lose the numbers in them that are 1."""

    q: Map
    k: Map
    v: Map
    table_h: Table
    table_w: Table
    sizes: Sizes
    scale: Scale


class Choices(NamedTuple):
    """What of a call, besides the layouts of its maps, its kernels are launched by."""

    geometry: Geometry
    scale: float
    relative: bool
    """Whether there are tables."""
    backward: bool
    dtype: torch.dtype
    precision: str


class Setting(NamedTuple):
    """How the kernels of a call are launched: all but the tensors."""

    cut: Plan
    sizes: Sizes
    images: int
    num_warps: int
    num_warps_of_keys: int
    """Those of the kernel that sums gradients of keys and values."""
    num_stages: int
    numbers: Sizes
    """The sizes as kernels take them."""
    scale: Scale
    gain: float
    """Factor on the gradients of queries (times the sign), keys and tables."""

    @property
    def units(self) -> int:
        """Tiles of queries in all."""
        return self.images * self.sizes.blocks_h * self.sizes.blocks_w * self.sizes.heads * self.cut.tiles


@functools.lru_cache(SETTINGS)
def setting(q: Layout, k: Layout, v: Layout, choices: Choices) -> Setting:
    """The setting for maps of these layouts; kept, since a network asks for the same ones at every step."""
    cut = plan(q.shape[-1], v.shape[-1], choices, run=common_run(q, k, v))
    (h, w), (query_h, query_w) = k.shape[1:3], q.shape[1:3]
    block, scale = cut.block, choices.scale
    sizes = Sizes(h, w, query_h, query_w, -(-h // block), -(-w // block), q.shape[3])
    many = warps(cut, backward=choices.backward)
    # A scale of zero zeroes the queries instead, so that minus infinity stays what it is.
    powers = Scale((abs(scale) or 1.0) * math.log2(math.e), math.copysign(1.0, scale) if scale else 0.0)
    return Setting(
        cut=cut,
        sizes=sizes,
        images=q.shape[0],
        num_warps=fewest_groups(many, cut.queries, *([cut.padded_offsets] if choices.backward else [])),
        num_warps_of_keys=fewest_groups(many, cut.queries, cut.key_side**2),
        num_stages=stages(cut),
        numbers=Sizes(*map(unspecialised, sizes)),
        scale=powers,
        gain=abs(scale),
    )


def plan(d: int, e: int, choices: Choices, *, run: int = 1) -> Plan:
    """The plan for heads of so many channels of keys and values."""
    window, backward, size = choices.geometry, choices.backward, choices.dtype.itemsize
    summed: Relative = "summed" if window.summed else "halves"
    width_h, width_w = table_widths(d, summed)
    offsets = table_rows(window.block, window.halo)
    width, padded_offsets = padded(max(d, e)) * size, padded(offsets)
    queries = query_tile(
        window.queries**2, most=16 if width > 256 else 32 if many_numbers(padded_offsets, size) else 64
    )
    (rows, cols), (tail_rows, tail_cols) = key_tiles(window.side, most=most_keys(width, size, backward=backward))
    key_side = min(4 if width > 128 else 8, 1 << (window.block.bit_length() - 1))
    return Plan(
        d=d,
        e=e,
        padded_d=padded(d),
        padded_e=padded(e),
        block=window.block,
        halo=window.halo,
        side=window.side,
        stride=window.stride,
        step=window.step,
        masked=bool(window.masked),
        relative=choices.relative,
        width_h=width_h,
        width_w=width_w,
        first_w=0 if window.summed else width_h,
        run=run,
        queries=queries,
        tiles=-(-(window.queries**2) // queries),
        rows=rows,
        cols=cols,
        tail_rows=tail_rows,
        tail_cols=tail_cols,
        unroll=1,
        all_heads=False,
        key_side=key_side,
        key_shift=key_shift(window.block, window.halo, key_side),
        offsets=offsets,
        padded_offsets=padded_offsets,
        padded_side=padded(window.side),
        exact=size == 4,
        precision=choices.precision,
    )


def why_not_window(d: int, e: int, choices: Choices) -> str | None:
    """Why there is no plan for windows of this size, or None if there is one."""
    size, side = choices.dtype.itemsize, choices.geometry.side
    # The backward pass takes no more keys at a time than the forward pass.
    widest = 2 * most_keys(padded(max(d, e)) * size, size, backward=choices.backward) - 1
    if side <= widest:
        return None
    return f"the kernel takes windows of up to {widest} pixels a side for these heads, and this one has {side}"


def most_keys(width: int, size: int, *, backward: bool) -> int:
    """Keys in a tile, at most, for heads of so many bytes and numbers of `size` bytes."""
    return 32 if width > 256 else 64 if backward or width > 128 or size > 2 else 128


def many_numbers(offsets: int, size: int) -> bool:
    """Whether products with a table, or numbers of 4 bytes, which come apart into two, take most of the registers."""
    return offsets > 64 or size > 2


def query_tile(queries: int, *, most: int) -> int:
    """Queries in a tile, 16 to `most`: those of a block in as few tiles as go without much left over."""
    tiles = [tile for tile in (16, 32, 64) if tile <= most]
    return min(tiles, key=lambda tile: (-(-queries // tile) * (tile + OVERHEAD_QUERIES), -tile))


def key_tiles(side: int, *, most: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(rows, cols) of the tiles of a window, and of those for its last columns, (0, 0) where the first cover all.

    The window has fewer than 2 `most` pixels a side.
    Sides are powers of two, which a window's is not, so a window of 18 columns is cut into 16 and 2.
    """
    begin = 1 << (side.bit_length() - 1)
    cuts = [(padded(side, 4), 0)] if padded(side, 4) <= most else []
    if begin >= 4 and begin not in (side, padded(side, 4)):
        cuts.append((begin, padded(side - begin, 4)))
    choices = [(_panel(side, first, most), _panel(side, rest, most) if rest else (0, 0)) for first, rest in cuts]
    return min(choices, key=lambda tiles: sum(_cost(side, *tile) for tile in tiles if tile[1]))


def key_shift(block: int, halo: int, side: int) -> int:
    """0, or half a tile if fewer windows then meet in a tile of `side` pixels; these are cut to half, so to speak."""
    return min((0, side // 2), key=lambda shift: windows_met(block, halo, side, shift))


def windows_met(block: int, halo: int, side: int, shift: int) -> int:
    """Windows along an axis that a tile of `side` pixels meets, over all places it can have in a block."""
    starts = range(-shift, block * side - shift, side)
    return sum((start + side - 1 + halo) // block - -((block + halo - 1 - start) // block) + 1 for start in starts)


def warps(cut: Plan, *, backward: bool) -> int:
    """Warps that a program wants: one for 16 queries, or more if a thread had to hold too many numbers."""
    few = cut.queries // 16
    if max(cut.padded_d, cut.padded_e) * (4 if cut.exact else 2) > 256:
        return 8 * few
    if many_numbers(cut.padded_offsets, 4 if cut.exact else 2):
        return 4 * few
    of_query = 2 * cut.padded_offsets + 2 * cut.rows * cut.cols + cut.padded_d + cut.padded_e
    if backward:
        of_query += cut.rows * cut.cols + 2 * cut.padded_side + cut.padded_d
    # A warp has 32 threads for its 16 queries.
    return few if of_query / 2 <= (MOST_BACKWARD if backward else MOST_FORWARD) else 2 * few


def stages(cut: Plan) -> int:
    """How many tiles of keys are on their way at a time: two, or one where registers serve better than being early."""
    return 2 if cut.side > 2 * cut.rows and not cut.exact else 1


@functools.lru_cache(SETTINGS)
def shared_bytes(d: int, e: int, choices: Choices) -> int:
    """Bytes of shared memory that a program takes at most: of the forward pass, and of the backward one if wanted."""
    forward = plan(d, e, choices._replace(backward=False))
    needed = [_shared_bytes("forward", forward)]
    if choices.backward:
        backward = plan(d, e, choices)
        needed += [_shared_bytes(kernel, backward) for kernel in ("backward_queries", "backward_keys")]
    return max(needed)


def _shared_bytes(kernel: str, cut: Plan) -> int:
    size, copies = 4 if cut.exact else 2, COPIES[kernel, cut.exact]
    width = (cut.padded_d + cut.padded_e) * size
    if kernel == "backward_keys":
        keys, under_way = max(NARROWEST, cut.key_side**2), 1
    else:
        keys, under_way = max(cut.rows * cut.cols, cut.tail_rows * cut.tail_cols), stages(cut)
    needed = copies.queries * cut.queries * width + copies.keys * keys * width * under_way
    needed += copies.products * cut.queries * keys * 4
    if cut.relative:
        needed += copies.tables * cut.padded_offsets * cut.padded_d * size
        needed += copies.sides * cut.padded_side * (cut.queries + keys) * size
    return math.ceil(needed)


def _panel(side: int, cols: int, most: int) -> tuple[int, int]:
    """(rows, cols) of a tile with so many columns that costs least over the rows of the window."""
    choices = [rows for rows in (1 << power for power in range(8)) if 16 <= rows * cols <= most]
    return min(((rows, cols) for rows in choices), key=lambda tile: _cost(side, *tile))


def _cost(side: int, rows: int, cols: int) -> int:
    return -(-side // rows) * (rows * cols + OVERHEAD_KEYS)
