"""How the Triton kernels of content attention cut their work, chosen from the shapes alone."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from parhelion.ops.gpu import NARROWEST, SETTINGS, Layout, Map, common_run, fewest_groups, padded, unspecialised

# Warps that keep a GPU busy: sixteen for each of an H100's 132 multiprocessors, and as many on any other GPU, so that
# results do not depend on it. An image is cut into chunks where images and heads are fewer.
WARPS = 2112
# Every program that reads a summary adds the chunks up again.
MOST_CHUNKS = 16

# KiB of shared memory that Triton 3.6 and 3.8 allocate for sm_86 and sm_90, the most of all widths of keys and values:
# by the size of a number and the bytes of the wider head, padded; forward, backward.
MOST_KIB = {
    (2, 32): (13, 13), (2, 64): (13, 14), (2, 128): (35, 48), (2, 256): (32, 40), (2, 512): (64, 80),
    (4, 64): (20, 14), (4, 128): (36, 32), (4, 256): (40, 72), (4, 512): (80, 144),
}  # fmt: skip


class Plan(NamedTuple):
    """What a kernel is compiled for: the shape of a head, the heads of a group, the memory, the tiles.

    Fields only, since a kernel does not see properties.
    """

    d: int
    e: int
    group: int
    """Heads that are treated as one."""
    padded_d: int
    """Channels of a group, a power of two."""
    padded_e: int
    slice_d: int
    """Channels of a group's keys, or of their gradients, that one program makes."""
    slice_e: int
    slices_d: int
    """Programs that share the channels of a group's keys."""
    slices_e: int
    tile: int
    """Pixels in a tile, a power of two."""
    packed: bool
    """Whether the channels of the heads lie side by side in all maps."""
    flat: bool
    """Whether the rows of pixels follow each other in all maps."""
    run: int
    """Channels that the strides of the maps are counted in."""
    precision: str


class Sizes(NamedTuple):
    """Pixels, pixels in a row, heads, pixels in a chunk (whole tiles), and chunks.

    As a kernel takes them, they are `unspecialised`.
    """

    pixels: int
    w: int
    heads: int
    chunk: int
    chunks: int


class Inputs(NamedTuple):
    """What all kernels read."""

    q: Map
    k: Map
    v: Map
    sizes: Sizes


class Summary(NamedTuple):
    """Every head's summary (b, n, d, e), and of its softmax (b, 2, n, d): the largest key, and the sum over pixels."""

    blocks: Tensor
    statistics: Tensor


class Setting(NamedTuple):
    """How the kernels of a call are launched: all but the tensors."""

    cut: Plan
    sizes: Sizes
    images: int
    num_warps: int
    num_stages: int
    numbers: Sizes
    """The sizes as kernels take them."""

    @property
    def whole(self) -> bool:
        """Whether one program takes a group of heads of an image from beginning to end."""
        return self.sizes.chunks == self.cut.slices_d == self.cut.slices_e == 1


@functools.lru_cache(SETTINGS)
def setting(q: Layout, k: Layout, v: Layout, dtype: torch.dtype, precision: str) -> Setting:
    """The setting for maps of these layouts; kept, since a network asks for the same ones at every step."""
    cut = plan(q, k, v, dtype, precision)
    effort = effort_for(max(cut.padded_d, cut.padded_e) * dtype.itemsize)
    num_warps = fewest_groups(effort.warps, cut.tile, cut.slice_d)
    sizes = sizes_of(q, cut, num_warps)
    return Setting(cut, sizes, q.shape[0], num_warps, effort.stages, Sizes(*map(unspecialised, sizes)))


def plan(q: Layout, k: Layout, v: Layout, dtype: torch.dtype, precision: str) -> Plan:
    """The plan for maps of these layouts."""
    heads, d, e = q.shape[3], q.shape[4], v.shape[4]
    maps = (q, k, v)
    packed = heads == 1 or all(one.strides[3] == one.shape[4] for one in maps)
    group = heads_per_group(heads, max(d, e))
    padded_d, padded_e = padded(group * d), padded(group * e)
    effort = effort_for(max(padded_d, padded_e) * dtype.itemsize)
    slice_d, slice_e = (min(width, effort.slice) for width in (padded_d, padded_e))
    return Plan(
        d=d,
        e=e,
        group=group,
        padded_d=padded_d,
        padded_e=padded_e,
        slice_d=slice_d,
        slice_e=slice_e,
        slices_d=-(-group * d // slice_d),
        slices_e=-(-group * e // slice_e),
        tile=min(effort.tile, padded(q.shape[1] * q.shape[2])),
        packed=packed,
        flat=all(rows_follow(one) for one in maps),
        run=common_run(*maps),
        precision=precision,
    )


def shared_bytes(d: int, e: int, dtype: torch.dtype, *, backward: bool) -> int:
    """Bytes of shared memory that a program takes at most: of the forward pass, and of the backward one if wanted."""
    forward, gradients = MOST_KIB[dtype.itemsize, max(padded(d), padded(e)) * dtype.itemsize]
    # A tenth more, since other versions of Triton may take more.
    return 1024 * (max(forward, gradients) if backward else forward) * 11 // 10


class Effort(NamedTuple):
    """What a program takes on: pixels of a tile, channels of the result; with how many warps, and tiles under way."""

    tile: int
    slice: int
    warps: int
    stages: int


def effort_for(pixel_bytes: int) -> Effort:
    """What a program takes on where a group's channels at one pixel take so many bytes.

    Chosen by the machine code for sm_90: few instructions in the loops, and next to no spills up to 64 channels.
    """
    if pixel_bytes <= 64:
        return Effort(128 if pixel_bytes <= 32 else 64, 64, 2, 2)
    if pixel_bytes <= 128:
        return Effort(64, 64, 4, 2)
    return Effort(32, 64, 8, 1) if pixel_bytes <= 512 else Effort(16, 32, 8, 1)


def heads_per_group(heads: int, width: int) -> int:
    """Heads that fill the narrowest block: as many as divide all heads."""
    return next(group for group in range(max(1, NARROWEST // width), 0, -1) if heads % group == 0)


def rows_follow(one: Layout) -> bool:
    """Whether each row of a map begins where the one above ends."""
    return one.shape[1] <= 1 or one.strides[1] == one.shape[2] * one.strides[2]


def sizes_of(q: Layout, cut: Plan, num_warps: int) -> Sizes:
    """The image and its chunks: one where images and heads are many, else so many that the programs are."""
    batch, h, w, heads, _ = q.shape
    tiles = -(-h * w // cut.tile)
    warps = max(1, batch * (heads // cut.group) * num_warps)
    chunks = min(-(-WARPS // warps), MOST_CHUNKS, -(-tiles // 2))
    chunk = -(-tiles // chunks) * cut.tile
    return Sizes(h * w, w, heads, chunk, -(-h * w // chunk))
