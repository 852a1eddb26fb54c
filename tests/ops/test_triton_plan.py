"""How the Triton kernels of halo attention cut their work: every key and query in a tile, and not much else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parhelion.ops import gpu
from parhelion.ops.axial import triton as axial_triton
from parhelion.ops.content import triton as content_triton
from parhelion.ops.gpu import padded
from parhelion.ops.halo import triton as halo_triton
from parhelion.ops.halo.contract import Geometry
from parhelion.ops.halo.triton_plan import (
    Choices,
    Plan,
    key_shift,
    key_tiles,
    plan,
    query_tile,
    stages,
    warps,
    windows_met,
)

sides = st.integers(1, 127)


def covered(side: int, most: int) -> int:
    """Keys that the tiles of a window have room for."""
    tiles = [(rows, cols) for rows, cols in key_tiles(side, most=most) if cols]
    return sum(-(-side // rows) * rows * cols for rows, cols in tiles)


@given(sides, st.sampled_from([64, 128]))
def test_tiles_cover_the_window_and_are_powers_of_two(side: int, most: int):
    tiles = [tile for tile in key_tiles(side, most=most) if tile[1]]
    assert sum(cols for _, cols in tiles) >= side
    for rows, cols in tiles:
        assert rows == padded(rows, 1)
        assert cols == padded(cols, 1)
        assert 16 <= rows * cols <= most


@pytest.mark.parametrize(("block", "halo", "spare"), [(8, 3, 1.31), (10, 3, 1.0), (12, 2, 1.0), (32, 3, 1.16)])
def test_the_papers_windows_leave_little_room(block: int, halo: int, spare: float):
    side = block + 2 * halo
    assert covered(side, 128) <= spare * side**2


@pytest.mark.parametrize(("queries", "tile"), [(1, 16), (16, 16), (64, 64), (100, 64), (144, 64), (1024, 64)])
def test_queries_come_in_tiles_of_16_to_64(queries: int, tile: int):
    assert query_tile(queries, most=64) == tile


@pytest.mark.parametrize(("block", "halo", "met"), [(8, 3, 2), (8, 4, 2), (4, 1, 2), (8, 0, 1), (8, 8, 3)])
def test_few_windows_meet_in_a_tile_of_pixels(block: int, halo: int, met: int):
    assert windows_met(block, halo, block, key_shift(block, halo, block)) == met * block


def windows_counted(block: int, halo: int, side: int, shift: int) -> int:
    """`windows_met` by trying every block."""
    starts = range(-shift, block * side - shift, side)
    reach = range(-halo - side, block * (side + 2) + halo + side)
    blocks = range(min(reach) // block - 2, max(reach) // block + 2)
    overlap = [
        max(start, y * block - halo) < min(start + side, (y + 1) * block + halo) for start in starts for y in blocks
    ]
    return sum(overlap)


@given(st.integers(1, 16), st.integers(0, 16), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_the_windows_that_meet_are_counted_right(block: int, halo: int, side: int, shifted: bool):
    shift = side // 2 if shifted else 0
    assert windows_met(block, halo, side, shift) == windows_counted(block, halo, side, shift)


def cut(d: int, block: int, *, backward: bool) -> Plan:
    """The plan for heads of d channels in bfloat16, with a halo of 3 and tables."""
    geometry = Geometry(block, 3, stride=1, step=1, masked=0, summed=0)
    choices = Choices(geometry, 1.0, relative=True, backward=backward, dtype=torch.bfloat16, precision="ieee")
    return plan(d, d, choices)


def test_wide_heads_and_large_tables_get_more_warps():
    cuts = [cut(d, block, backward=True) for d, block in ((16, 8), (64, 8), (64, 32))]
    assert [warps(one, backward=True) for one in cuts] == [4, 8, 8]


def test_short_loops_are_not_pipelined():
    assert [stages(cut(16, block, backward=False)) for block in (8, 32)] == [1, 2]


# What is made once for all calls of the same shapes

NEW_CALLS = {
    "halo": lambda q, k, v: halo_triton.new_call(q, k, v, (None, None), [4, 1, 1, 1, 0, 0], 1.0, backward=False),
    "content": content_triton.new_call,
    "axial": lambda q, k, v: axial_triton.new_call(q, v, k[0, 0, :3, 0], vertical=False, plus=False, backward=False),
}
new_calls = pytest.mark.parametrize("new_call", NEW_CALLS.values(), ids=NEW_CALLS.keys())


def maps(h: int, w: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries, keys and values (1, h, w, 3, 8)."""
    return [torch.empty(1, h, w, 3, 8, dtype=dtype) for _ in "qkv"]


@new_calls
def test_a_call_of_the_same_shapes_is_planned_once(new_call: Callable[..., Any]):
    assert new_call(*maps(5, 2)).setting is new_call(*maps(5, 2)).setting


@new_calls
def test_other_shapes_strides_and_dtypes_are_planned_anew(new_call: Callable[..., Any]):
    turned = [tensor.transpose(1, 2) for tensor in maps(2, 5)]
    found = [
        new_call(*maps(5, 2)),
        new_call(*maps(6, 2)),
        new_call(*maps(5, 2, torch.float16)),
        new_call(*(tensor[:, :, :2] for tensor in maps(5, 7))),
        new_call(*turned),
    ]
    numbers = [(call.setting, call.inputs.q[1:], call.inputs.sizes) for call in found]
    assert all(one != other for place, one in enumerate(numbers) for other in numbers[:place])
    row, col = (gpu.unspecialised(stride // 8) for stride in turned[0].stride()[1:3])
    assert {row, col} <= set(found[-1].inputs.q[1:])


@new_calls
@pytest.mark.usefixtures("tf32_setting")
def test_float32_is_never_rounded_to_tf32_unasked(new_call: Callable[..., Any]):
    for allowed, precision in ((False, "tf32x3"), (True, "tf32"), (False, "tf32x3")):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        assert new_call(*maps(5, 2)).setting.cut.precision == precision
        assert new_call(*maps(5, 2, torch.float16)).setting.cut.precision == "ieee"


def test_what_is_kept_is_bounded():
    for kept in (halo_triton.setting, content_triton.setting, axial_triton.setting, gpu.map_strides):
        assert kept.cache_info().maxsize == gpu.SETTINGS
