"""Halo attention for GPUs, in Triton: one kernel forward, two backward.

Letters: b image, y and x block, (i, j) query in its block, m query of a tile, (a, c) key in its window, n key of a
tile, d and e channels. Logits here are `(sign q)·(k + r)`, weights 2^(factor * logit); `sign` is that of the scale, or
0.

Scores exist in registers only. A relative logit is a part by row plus a part by column. Both are products of the
queries with a whole table, (m, offsets), from which `gather` takes what each query sees. Their sum is where the product
of queries and keys starts from, and it is minus infinity where there is no key, so masks cost nothing.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))


class Tile(NamedTuple):
    """Queries of one block and head: where the block is, where in it they stand, and whether there is one."""

    b: Any
    y: Any
    x: Any
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
def forward(inputs, out, statistics, PLAN: tl.constexpr):
    """The output of a tile of queries, and of each its highest logit, before `factor`, and the sum of its weights."""
    place = tl.program_id(0) // PLAN.tiles
    head = place % inputs.sizes.heads
    x = place // inputs.sizes.heads
    b = tl.program_id(2).to(tl.int64)
    tile = _tile(b, tl.program_id(1), x, head, tl.program_id(0) % PLAN.tiles, inputs, PLAN)
    asked = _asked(tile, inputs, PLAN)
    best = tl.full([PLAN.queries], NOTHING, tl.float32)
    total = tl.full([PLAN.queries], 0.0, tl.float32)
    acc = tl.full([PLAN.queries, PLAN.padded_e], 0.0, tl.float32)
    best, total, acc = _attend(best, total, acc, tile, asked, inputs, 0, PLAN.rows, PLAN.cols, PLAN)
    if PLAN.tail_cols > 0:
        best, total, acc = _attend(
            best, total, acc, tile, asked, inputs, PLAN.cols, PLAN.tail_rows, PLAN.tail_cols, PLAN
        )
    _store(out, tile.places, tile.here, acc / total[:, None], PLAN.e, PLAN.padded_e)
    tl.store(statistics + 2 * tile.places, best, mask=tile.here)
    tl.store(statistics + 2 * tile.places + 1, total, mask=tile.here)


@triton.jit
def _attend(
    best,
    total,
    acc,
    tile,
    asked,
    inputs,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PLAN: tl.constexpr,
):
    """Go on with the softmax and the weighted sum over the columns of the window from FIRST on."""
    bias_w = _bias_w(tile, asked, inputs, FIRST, COLS, PLAN)
    for a in range(0, PLAN.side, ROWS):
        keys = _of_window(inputs.k, tile, inputs, a, FIRST, ROWS, COLS, PLAN.d, PLAN.padded_d, PLAN)
        values = _of_window(inputs.v, tile, inputs, a, FIRST, ROWS, COLS, PLAN.e, PLAN.padded_e, PLAN)
        logits = _logits(asked, keys, _bias_h(tile, asked, inputs, a, ROWS, PLAN), bias_w, PLAN)
        highest = tl.maximum(best, tl.max(logits, 1))
        # A tile may hold no key at all: then the highest is minus infinity, and differences would be no numbers.
        level = tl.where(highest == NOTHING, 0.0, highest)
        weights = _weights(logits, level, inputs, PLAN)
        fade = tl.exp2((best - level) * inputs.factor)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision=PLAN.precision)
        best = highest
    return best, total, acc


@triton.jit
def backward_queries(inputs, out, statistics, grad_out, delta, grad_q, grad_tables, gain, units, PLAN: tl.constexpr):
    """Gradients of the queries, of the tables by program, and `delta`, each query's sum of weights times gradients.

    A program takes one tile of queries after the other, so that few partial sums of the tables are left to add.
    """
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        place = unit // PLAN.tiles
        head = place % inputs.sizes.heads
        place = place // inputs.sizes.heads
        x = place % inputs.sizes.blocks_w
        place = place // inputs.sizes.blocks_w
        y = place % inputs.sizes.blocks_h
        b = (place // inputs.sizes.blocks_h).to(tl.int64)
        tile = _tile(b, y, x, head, unit % PLAN.tiles, inputs, PLAN)
        asked = _asked(tile, inputs, PLAN)
        grads = _load(grad_out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
        level, share = _softmax(statistics, tile, inputs, PLAN)
        if PLAN.exact:
            sums = tl.full([PLAN.queries], 0.0, tl.float32)
            sums = _weighted_grads(sums, tile, asked, grads, level, inputs, 0, PLAN.rows, PLAN.cols, PLAN)
            if PLAN.tail_cols > 0:
                sums = _weighted_grads(
                    sums, tile, asked, grads, level, inputs, PLAN.cols, PLAN.tail_rows, PLAN.tail_cols, PLAN
                )
            sums *= share
        else:
            outs = _load(out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
            sums = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), 1)
        tl.store(delta + tile.places, sums, mask=tile.here)
        acc = tl.full([PLAN.queries, PLAN.padded_d], 0.0, tl.float32)
        rows = tl.full([PLAN.queries, PLAN.padded_side], 0.0, tl.float32)
        cols = tl.full([PLAN.queries, PLAN.padded_side], 0.0, tl.float32)
        acc, rows, cols = _query_grads(
            acc, rows, cols, tile, asked, grads, level, sums, inputs, 0, PLAN.rows, PLAN.cols, PLAN
        )
        if PLAN.tail_cols > 0:
            acc, rows, cols = _query_grads(
                acc, rows, cols, tile, asked, grads, level, sums, inputs,
                PLAN.cols, PLAN.tail_rows, PLAN.tail_cols, PLAN,
            )  # fmt: skip
        acc *= share[:, None]
        if PLAN.relative:
            rows = _by_offset_again(rows * share[:, None], tile.i, PLAN).to(grads.dtype)
            cols = _by_offset_again(cols * share[:, None], tile.j, PLAN).to(grads.dtype)
            _add_table_grads(grad_tables, 0, rows, asked, gain, PLAN)
            _add_table_grads(grad_tables, 1, cols, asked, gain, PLAN)
            embeddings_h = _embeddings(inputs.table_h, 0, PLAN.width_h, grads.dtype, PLAN)
            acc = tl.dot(rows, embeddings_h, acc, input_precision=PLAN.precision)
            embeddings_w = _embeddings(inputs.table_w, PLAN.first_w, PLAN.width_w, grads.dtype, PLAN)
            acc = tl.dot(cols, embeddings_w, acc, input_precision=PLAN.precision)
        _store(grad_q, tile.places, tile.here, acc * (gain * inputs.sign), PLAN.d, PLAN.padded_d)


@triton.jit
def _weighted_grads(
    sums,
    tile,
    asked,
    grads,
    level,
    inputs,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PLAN: tl.constexpr,
):
    """Add each query's weights times their gradients, over the columns of the window from FIRST on."""
    bias_w = _bias_w(tile, asked, inputs, FIRST, COLS, PLAN)
    for a in range(0, PLAN.side, ROWS):
        keys = _of_window(inputs.k, tile, inputs, a, FIRST, ROWS, COLS, PLAN.d, PLAN.padded_d, PLAN)
        values = _of_window(inputs.v, tile, inputs, a, FIRST, ROWS, COLS, PLAN.e, PLAN.padded_e, PLAN)
        logits = _logits(asked, keys, _bias_h(tile, asked, inputs, a, ROWS, PLAN), bias_w, PLAN)
        weights = _weights(logits, level, inputs, PLAN)
        sums += tl.sum(weights * tl.dot(grads, tl.trans(values), input_precision=PLAN.precision), 1)
    return sums


@triton.jit
def _query_grads(
    acc, rows, cols, tile, asked, grads, level, sums, inputs,
    FIRST: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the logits times the keys, and their sums by row and by column of the window."""
    n = tl.arange(0, ROWS * COLS)
    sides = tl.arange(0, PLAN.padded_side)
    bias_w = _bias_w(tile, asked, inputs, FIRST, COLS, PLAN)
    of_col = ((FIRST + n % COLS)[:, None] == sides[None, :]).to(grads.dtype)
    for a in range(0, PLAN.side, ROWS):
        keys = _of_window(inputs.k, tile, inputs, a, FIRST, ROWS, COLS, PLAN.d, PLAN.padded_d, PLAN)
        values = _of_window(inputs.v, tile, inputs, a, FIRST, ROWS, COLS, PLAN.e, PLAN.padded_e, PLAN)
        logits = _logits(asked, keys, _bias_h(tile, asked, inputs, a, ROWS, PLAN), bias_w, PLAN)
        weights = _weights(logits, level, inputs, PLAN)
        slopes = tl.dot(grads, tl.trans(values), input_precision=PLAN.precision)
        slopes = (weights * (slopes - sums[:, None])).to(keys.dtype)
        acc = tl.dot(slopes, keys, acc, input_precision=PLAN.precision)
        if PLAN.relative:
            # Sums by row and by column are products with ones and zeros: the matrix unit has time to spare.
            of_row = ((a + n // COLS)[:, None] == sides[None, :]).to(keys.dtype)
            rows = tl.dot(slopes, of_row, rows, input_precision=PLAN.precision)
            cols = tl.dot(slopes, of_col, cols, input_precision=PLAN.precision)
    return acc, rows, cols


@triton.jit
def _add_table_grads(grad_tables, WHICH: tl.constexpr, by_offset, asked, gain, PLAN: tl.constexpr):
    """Add to a program's own sum (offsets, d) of a table's gradients what a tile of queries gives."""
    entries = PLAN.padded_offsets * PLAN.padded_d
    own = grad_tables + (tl.program_id(0).to(tl.int64) * 2 + WHICH) * entries
    own += tl.arange(0, PLAN.padded_offsets)[:, None] * PLAN.padded_d + tl.arange(0, PLAN.padded_d)[None, :]
    more = tl.dot(tl.trans(by_offset), asked.queries, input_precision=PLAN.precision)
    tl.store(own, tl.load(own) + more * gain)


@triton.jit
def backward_keys(inputs, statistics, delta, grad_out, grad_k, grad_v, gain, PLAN: tl.constexpr):
    """Gradients of the keys and values of a tile of pixels, summed over the windows that it lies in.

    A window overlaps others, but a pixel belongs to one tile: nothing is added by two programs, nothing in an order
    that could change.
    """
    SIDE: tl.constexpr = PLAN.key_side
    sizes = inputs.sizes
    head = tl.program_id(0) % sizes.heads
    row0 = tl.program_id(1) * SIDE - PLAN.key_shift
    col0 = tl.program_id(0) // sizes.heads * SIDE - PLAN.key_shift
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, SIDE * SIDE)
    row = row0 + n // SIDE
    col = col0 + n % SIDE
    inside = (row >= 0) & (row < sizes.h) & (col >= 0) & (col < sizes.w)
    keys = _pixels(inputs.k, b, head, row, col, inside, PLAN.d, PLAN.padded_d, PLAN)
    values = _pixels(inputs.v, b, head, row, col, inside, PLAN.e, PLAN.padded_e, PLAN)
    first_y, last_y = _windows_of(row0, sizes.blocks_h, PLAN)
    first_x, last_x = _windows_of(col0, sizes.blocks_w, PLAN)
    blocks_x = last_x - first_x + 1
    acc_k = tl.full([SIDE * SIDE, PLAN.padded_d], 0.0, tl.float32)
    acc_v = tl.full([SIDE * SIDE, PLAN.padded_e], 0.0, tl.float32)
    for step in range(0, (last_y - first_y + 1) * blocks_x * PLAN.tiles):
        y = first_y + step // PLAN.tiles // blocks_x
        x = first_x + step // PLAN.tiles % blocks_x
        tile = _tile(b, y, x, head, step % PLAN.tiles, inputs, PLAN)
        asked = _asked(tile, inputs, PLAN)
        grads = _load(grad_out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
        level, share = _softmax(statistics, tile, inputs, PLAN)
        sums = tl.load(delta + tile.places, mask=tile.here, other=0.0)
        bias_h = _bias_h(tile, asked, inputs, row0 - (y * PLAN.block - PLAN.halo), SIDE, PLAN)
        bias_w = _bias_w(tile, asked, inputs, col0 - (x * PLAN.block - PLAN.halo), SIDE, PLAN)
        weights = _weights(_logits(asked, keys, bias_h, bias_w, PLAN), level, inputs, PLAN)
        if PLAN.exact:
            weights *= share[:, None]
        acc_v = tl.dot(tl.trans(weights.to(grads.dtype)), grads, acc_v, input_precision=PLAN.precision)
        slopes = tl.dot(grads, tl.trans(values), input_precision=PLAN.precision)
        slopes = (weights * (slopes - sums[:, None])).to(keys.dtype)
        acc_k = tl.dot(tl.trans(slopes), asked.queries, acc_k, input_precision=PLAN.precision)
    places = ((b * sizes.h + row) * sizes.w + col) * sizes.heads + head
    _store(grad_k, places, inside, acc_k * gain, PLAN.d, PLAN.padded_d)
    _store(grad_v, places, inside, acc_v, PLAN.e, PLAN.padded_e)


@triton.jit
def _tile(b, y, x, head, number, inputs, PLAN: tl.constexpr):
    """A tile of the queries of a block."""
    QUERIES: tl.constexpr = PLAN.block // PLAN.stride
    sizes = inputs.sizes
    m = number * PLAN.queries + tl.arange(0, PLAN.queries)
    i = m // QUERIES
    j = m % QUERIES
    row = y * QUERIES + i
    col = x * QUERIES + j
    here = (i < QUERIES) & (row < sizes.query_h) & (col < sizes.query_w)
    places = ((b * sizes.query_h + row) * sizes.query_w + col) * sizes.heads + head
    return Tile(b, y, x, head, i, j, here, places)


@triton.jit
def _asked(tile, inputs, PLAN: tl.constexpr):
    """What a tile asks; zeros where there is no query."""
    QUERIES: tl.constexpr = PLAN.block // PLAN.stride
    row = tile.y * QUERIES + tile.i
    col = tile.x * QUERIES + tile.j
    queries = _pixels(inputs.q, tile.b, tile.head, row, col, tile.here, PLAN.d, PLAN.padded_d, PLAN)
    queries = (queries.to(tl.float32) * inputs.sign).to(queries.dtype)
    if PLAN.relative:
        embeddings_h = _embeddings(inputs.table_h, 0, PLAN.width_h, queries.dtype, PLAN)
        embeddings_w = _embeddings(inputs.table_w, PLAN.first_w, PLAN.width_w, queries.dtype, PLAN)
        by_row = tl.dot(queries, tl.trans(embeddings_h), input_precision=PLAN.precision)
        by_col = tl.dot(queries, tl.trans(embeddings_w), input_precision=PLAN.precision)
    else:
        by_row = tl.full([PLAN.queries, 1], 0.0, tl.float32)
        by_col = by_row
    return Asked(queries, by_row, by_col)


@triton.jit
def _windows_of(first, blocks, PLAN: tl.constexpr):
    """The first and the last block of an axis whose windows reach a tile of pixels that begins at `first`."""
    last = (first + PLAN.key_side - 1 + PLAN.halo) // PLAN.block
    return tl.maximum(first - PLAN.halo, 0) // PLAN.block, tl.minimum(last, blocks - 1)


@triton.jit
def _of_window(
    source, tile, inputs, a, c,
    ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr,
):  # fmt: skip
    """The pixels (n, channels) of a map from (a, c) of a tile's window on; zeros outside image and window."""
    n = tl.arange(0, ROWS * COLS)
    in_row = a + n // COLS
    in_col = c + n % COLS
    row = tile.y * PLAN.block - PLAN.halo + in_row
    col = tile.x * PLAN.block - PLAN.halo + in_col
    inside = (row >= 0) & (row < inputs.sizes.h) & (col >= 0) & (col < inputs.sizes.w)
    inside = inside & (in_row < PLAN.side) & (in_col < PLAN.side)
    return _pixels(source, tile.b, tile.head, row, col, inside, WIDTH, PADDED, PLAN)


@triton.jit
def _pixels(source, b, head, row, col, inside, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr):
    """The pixels (n, channels) of a map at (row, col); zeros where not inside."""
    channels = tl.arange(0, PADDED)
    start = source.start + (b * source.image + head * source.head) * PLAN.run
    places = (row.to(tl.int64) * source.row + col.to(tl.int64) * source.col) * PLAN.run
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(start + places[:, None] + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _load(source, places, inside, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """The rows (m, channels) of a map whose memory is without gaps; zeros where not inside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    return tl.load(source + places[:, None] * WIDTH + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _store(target, places, inside, values, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Write rows (m, channels) into a map whose memory is without gaps, where they are inside."""
    channels = tl.arange(0, PADDED)
    mask = inside[:, None] & (channels < WIDTH)[None, :]
    tl.store(target + places[:, None] * WIDTH + channels[None, :], values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _embeddings(table, FIRST: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr, PLAN: tl.constexpr):
    """A table (offsets, d): zeros at the channels of a query that it does not meet."""
    offsets = tl.arange(0, PLAN.padded_offsets)
    d = tl.arange(0, PLAN.padded_d) - FIRST
    inside = (offsets < 2 * PLAN.block + 2 * PLAN.halo - 1)[:, None] & ((d >= 0) & (d < WIDTH))[None, :]
    return tl.load(table.start + offsets[:, None] * table.row + d[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _bias_h(tile, asked, inputs, a, ROWS: tl.constexpr, PLAN: tl.constexpr):
    """Relative logits (m, rows) of the window's rows from `a` on."""
    top = tile.y * PLAN.block - PLAN.halo
    return _bias(asked.by_row, a + tl.arange(0, ROWS), tile.i, top, inputs.sizes.h, PLAN)


@triton.jit
def _bias_w(tile, asked, inputs, c, COLS: tl.constexpr, PLAN: tl.constexpr):
    """Relative logits (m, columns) of the window's columns from `c` on."""
    left = tile.x * PLAN.block - PLAN.halo
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
def _by_offset_again(by_place, queries, PLAN: tl.constexpr):
    """From sums (m, places in the window) sums (m, offsets): `_bias` the other way round."""
    places = tl.arange(0, PLAN.padded_offsets)[None, :] + (queries * PLAN.step)[:, None] - (PLAN.block - 1)
    inside = (places >= 0) & (places < PLAN.side)
    places = tl.minimum(tl.maximum(places, 0), PLAN.padded_side - 1)
    return tl.where(inside, tl.gather(by_place, places, axis=1), 0.0)


@triton.jit
def _logits(asked, keys, bias_h, bias_w, PLAN: tl.constexpr):
    """Products (m, n) of queries and keys, started from the relative logits of rows and columns."""
    bias = bias_h[:, :, None] + bias_w[:, None, :]
    bias = tl.reshape(bias, [PLAN.queries, bias.shape[1] * bias.shape[2]])
    return tl.dot(asked.queries, tl.trans(keys), bias, input_precision=PLAN.precision)


@triton.jit
def _softmax(statistics, tile, inputs, PLAN: tl.constexpr):
    """The level that each query's logits are taken from, and its factor on the weights.

    The level is infinite, so that all weights are zero, where there is no query. In float32 one number for both, the
    level at which the weights add up to one, would be rounded too much.
    """
    level = tl.load(statistics + 2 * tile.places, mask=tile.here, other=float("inf"))
    total = tl.load(statistics + 2 * tile.places + 1, mask=tile.here, other=1.0)
    if PLAN.exact:
        share = 1 / total
    else:
        level += tl.log2(total) / inputs.factor
        share = tl.full([PLAN.queries], 1.0, tl.float32)
    return level, share


@triton.jit
def _weights(logits, level, inputs, PLAN: tl.constexpr):
    """2^(factor * (logits - level)), (m, n)."""
    if PLAN.exact:
        return tl.exp2((logits - level[:, None]) * inputs.factor)
    # One instruction less for each of them.
    return tl.exp2(logits * inputs.factor - (level * inputs.factor)[:, None])
