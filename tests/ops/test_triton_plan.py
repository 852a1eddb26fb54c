"""How the Triton kernels of halo attention cut their work: every key and query in a tile, and not much else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parhelion.ops.gpu import padded
from parhelion.ops.halo import Window
from parhelion.ops.halo.triton_plan import key_shift, key_tiles, plan, query_tile, stages, warps, windows_met

sides = st.integers(1, 64)


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


@pytest.mark.usefixtures("tf32_setting")
def test_float32_is_never_rounded_to_tf32_unasked():
    maps = torch.empty(1, 8, 8, 2, 16)
    window = Window(8, 3, 1, "zero", 1.0, "halves")
    for allowed, precision in ((False, "tf32x3"), (True, "tf32")):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        assert plan(maps, maps, window, relative=True, backward=False).precision == precision
        assert plan(maps.half(), maps.half(), window, relative=True, backward=False).precision == "ieee"


def test_wide_heads_and_large_tables_get_more_warps():
    def cut(d: int, block: int):
        maps = torch.empty(1, 4, 4, 1, d, dtype=torch.bfloat16)
        return plan(maps, maps, Window(block, 3, 1, "zero", 1.0, "halves"), relative=True, backward=True)

    assert [warps(cut(d, block), backward=True) for d, block in ((16, 8), (64, 8), (64, 32))] == [4, 8, 8]


def test_short_loops_are_not_pipelined():
    maps = torch.empty(1, 4, 4, 1, 16, dtype=torch.bfloat16)
    cuts = [
        plan(maps, maps, Window(block, 3, 1, "zero", 1.0, "halves"), relative=True, backward=False) for block in (8, 32)
    ]
    assert [stages(cut) for cut in cuts] == [1, 2]
