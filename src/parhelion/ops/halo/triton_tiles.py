"""What the Triton kernels of halo attention share: tiles of queries, what they ask, and the keys that they meet.

The letters are those of `triton_kernels`.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from parhelion.ops.halo.triton_plan import Inputs, Sizes
from parhelion.ops.triton_numbers import plain

NOTHING = tl.constexpr(float("-inf"))


class Tile(NamedTuple):
    """Queries of one block and head: where the block is, where in it they stand, and whether there is one."""

    b: Any
    block_row: Any
    block_col: Any
    head: Any
    i: Any
    j: Any
    here: Any
    places: Any
    """Their place among all queries and heads, (b, qh, qw, n)."""


class Asked(NamedTuple):
    """What a tile asks of every key: its queries (m, d), times the sign, and their products with the tables."""

    queries: Any
    by_row: Any
    by_col: Any


@triton.jit
def with_plain_sizes(inputs):
    """The inputs, their sizes as they are meant."""
    given = inputs.sizes
    size = Sizes(
        plain(given.h),
        plain(given.w),
        plain(given.query_h),
        plain(given.query_w),
        plain(given.blocks_h),
        plain(given.blocks_w),
        plain(given.heads),
    )
    return Inputs(inputs.q, inputs.k, inputs.v, inputs.table_h, inputs.table_w, size, inputs.scale)


@triton.jit
def tile_at(b, block_row, block_col, head, number, inputs, PLAN: tl.constexpr):
    """A tile of the queries of a block."""
    QUERIES: tl.constexpr = PLAN.block // PLAN.stride
    sizes = inputs.sizes
    m = number * PLAN.queries + tl.arange(0, PLAN.queries)
    i = m // QUERIES
    j = m % QUERIES
    row = block_row * QUERIES + i
    col = block_col * QUERIES + j
    here = (i < QUERIES) & (row < sizes.query_h) & (col < sizes.query_w)
    places = ((b * sizes.query_h + row) * sizes.query_w + col) * sizes.heads + head
    return Tile(b, block_row, block_col, head, i, j, here, places)


@triton.jit
def asked_by(tile, inputs, PLAN: tl.constexpr):
    """What a tile asks; zeros where there is no query."""
    QUERIES: tl.constexpr = PLAN.block // PLAN.stride
    row = tile.block_row * QUERIES + tile.i
    col = tile.block_col * QUERIES + tile.j
    queries = pixels_at(inputs.q, tile.b, tile.head, row, col, tile.here, PLAN.d, PLAN.padded_d, PLAN)
    queries = (queries.to(tl.float32) * inputs.scale.sign).to(queries.dtype)
    if PLAN.relative:
        embeddings_h = embeddings_of(inputs.table_h, 0, PLAN.width_h, queries.dtype, PLAN)
        embeddings_w = embeddings_of(inputs.table_w, PLAN.first_w, PLAN.width_w, queries.dtype, PLAN)
        by_row = tl.dot(queries, tl.trans(embeddings_h), input_precision=PLAN.precision)
        by_col = tl.dot(queries, tl.trans(embeddings_w), input_precision=PLAN.precision)
    else:
        by_row = tl.full([PLAN.queries, 1], 0.0, tl.float32)
        by_col = by_row
    return Asked(queries, by_row, by_col)


@triton.jit
def windows_over(first, blocks, PLAN: tl.constexpr):
    """The first and the last block of an axis whose windows reach a tile of pixels that begins at `first`."""
    last = (first + PLAN.key_side - 1 + PLAN.halo) // PLAN.block
    return tl.maximum(first - PLAN.halo, 0) // PLAN.block, tl.minimum(last, blocks - 1)


@triton.jit
def met(
    tile, asked, inputs, a, bias_w, FIRST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PLAN: tl.constexpr
):
    """What queries meet from row `a` and column FIRST of their window on: keys (n, d), values (n, e), logits (m, n)."""
    keys = _of_window(inputs.k, tile, inputs, a, FIRST, ROWS, COLS, PLAN.d, PLAN.padded_d, PLAN)
    values = _of_window(inputs.v, tile, inputs, a, FIRST, ROWS, COLS, PLAN.e, PLAN.padded_e, PLAN)
    logits = logits_of(asked, keys, bias_of_rows(tile, asked, inputs, a, ROWS, PLAN), bias_w, PLAN)
    return keys, values, logits


@triton.jit
def _of_window(
    source, tile, inputs, a, c,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """The pixels (n, channels) of a map from (a, c) of a tile's window on; zeros outside image and window."""
    n = tl.arange(0, ROWS * COLS)
    in_row = a + n // COLS
    in_col = c + n % COLS
    row = tile.block_row * PLAN.block - PLAN.halo + in_row
    col = tile.block_col * PLAN.block - PLAN.halo + in_col
    inside = (row >= 0) & (row < inputs.sizes.h) & (col >= 0) & (col < inputs.sizes.w)
    inside = inside & (in_row < PLAN.side) & (in_col < PLAN.side)
    return pixels_at(source, tile.b, tile.head, row, col, inside, WIDTH, PADDED, PLAN)


@triton.jit
def pixels_at(source, b, head, row, col, inside, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr):
    """The pixels (n, channels) of a map at (row, col); zeros where not inside."""
    channels = tl.arange(0, PADDED)
    start = source.start + (b * plain(source.image) + head * plain(source.head)) * PLAN.run
    places = (row.to(tl.int64) * plain(source.row) + col.to(tl.int64) * plain(source.col)) * PLAN.run
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(start + places[:, None] + channels[None, :], mask=mask, other=0.0)


@triton.jit
def load_rows(source, places, inside, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The rows (m, channels) of a map whose memory is without gaps; zeros where not inside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(source + places[:, None] * WIDTH + channels[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(target, places, inside, values, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write rows (m, channels) into a map whose memory is without gaps, where they are inside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(target + places[:, None] * WIDTH + channels[None, :], values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def embeddings_of(table, FIRST: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr, PLAN: tl.constexpr):
    """A table (offsets, d) without gaps: zeros at the channels of a query that it does not meet."""
    offsets = tl.arange(0, PLAN.padded_offsets)
    d = tl.arange(0, PLAN.padded_d) - FIRST
    inside = (offsets < PLAN.offsets)[:, None] & ((d >= 0) & (d < WIDTH))[None, :]
    # The compiler knows the width of a table, so it knows how many numbers it may load at once.
    return tl.load(table.start + offsets[:, None] * WIDTH + d[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def bias_of_rows(tile, asked, inputs, a, ROWS: tl.constexpr, PLAN: tl.constexpr):
    """Relative logits (m, rows) of the window's rows from `a` on."""
    top = tile.block_row * PLAN.block - PLAN.halo
    return _bias(asked.by_row, a + tl.arange(0, ROWS), tile.i, top, inputs.sizes.h, PLAN)


@triton.jit
def bias_of_cols(tile, asked, inputs, c, COLS: tl.constexpr, PLAN: tl.constexpr):
    """Relative logits (m, columns) of the window's columns from `c` on."""
    left = tile.block_col * PLAN.block - PLAN.halo
    return _bias(asked.by_col, c + tl.arange(0, COLS), tile.j, left, inputs.sizes.w, PLAN)


@triton.jit
def _bias(by_offset, keys, queries, begin, size, PLAN: tl.constexpr):
    """Relative logits (m, keys) of an axis; minus infinity where the window, or with a masked border the image, ends.

    `keys` and `queries` are places in window and block, `begin` is the window's first pixel.
    """
    there = (keys >= 0) & (keys < PLAN.side)
    if PLAN.masked:
        there = there & (begin + keys >= 0) & (begin + keys < size)
    if PLAN.relative:
        offsets = keys[None, :] - (queries * PLAN.step)[:, None] + (PLAN.block - 1)
        offsets = tl.minimum(tl.maximum(offsets, 0), PLAN.padded_offsets - 1)
        found = tl.gather(by_offset, offsets, axis=1)
    else:
        found = by_offset
    return tl.where(there[None, :], found, NOTHING)


@triton.jit
def by_offset_again(by_place, queries, PLAN: tl.constexpr):
    """From sums (m, places in the window) sums (m, offsets): `_bias` the other way round."""
    places = tl.arange(0, PLAN.padded_offsets)[None, :] + (queries * PLAN.step)[:, None] - (PLAN.block - 1)
    inside = (places >= 0) & (places < PLAN.side)
    places = tl.minimum(tl.maximum(places, 0), PLAN.padded_side - 1)
    return tl.where(inside, tl.gather(by_place, places, axis=1), 0.0)


@triton.jit
def logits_of(asked, keys, bias_h, bias_w, PLAN: tl.constexpr):
    """Products (m, n) of queries and keys, started from the relative logits of rows and columns."""
    bias = bias_h[:, :, None] + bias_w[:, None, :]
    bias = tl.reshape(bias, [PLAN.queries, bias.shape[1] * bias.shape[2]])
    return tl.dot(asked.queries, tl.trans(keys), bias, input_precision=PLAN.precision)


@triton.jit
def store_softmax(statistics, best, total, tile, inputs, PLAN: tl.constexpr):
    """Write what `softmax_of` reads, from each query's highest logit and the sum of its weights.

    One number for both, the level at which the weights add up to one, would be rounded too much in float32.
    """
    if PLAN.exact:
        tl.store(statistics + 2 * tile.places, best, mask=tile.here)
        tl.store(statistics + 2 * tile.places + 1, total, mask=tile.here)
    else:
        tl.store(statistics + tile.places, best + tl.log2(total) / inputs.scale.factor, mask=tile.here)


@triton.jit
def softmax_of(statistics, tile, PLAN: tl.constexpr):
    """The level that each query's logits are taken from, and its factor on the weights.

    The level is infinite, so that all weights are zero, where there is no query.
    """
    if PLAN.exact:
        level = tl.load(statistics + 2 * tile.places, mask=tile.here, other=float("inf"))
        share = 1 / tl.load(statistics + 2 * tile.places + 1, mask=tile.here, other=1.0)
    else:
        level = tl.load(statistics + tile.places, mask=tile.here, other=float("inf"))
        share = tl.full([PLAN.queries], 1.0, tl.float32)
    return level, share


@triton.jit
def weights_of(logits, level, inputs, PLAN: tl.constexpr):
    """2^(factor * (logits - level)), (m, n)."""
    if PLAN.exact:
        return tl.exp2((logits - level[:, None]) * inputs.scale.factor)
    # One instruction less for each of them.
    return tl.exp2(logits * inputs.scale.factor - (level * inputs.scale.factor)[:, None])
