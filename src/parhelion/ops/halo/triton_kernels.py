"""Halo attention for GPUs, in Triton: one kernel forward, two backward.

Letters: b image, (i, j) query in its block, m query of a tile, (a, c) key in its window, n key of a tile, d and e
channels. Logits here are `(sign q)·(k + r)`, weights 2^(factor * logit); `sign` is that of the scale, or 0.

Scores exist in registers only. A relative logit is a part by row plus a part by column. Both are products of the
queries with a whole table, (m, offsets), from which `gather` takes what each query sees. Their sum is where the product
of queries and keys starts from, and it is minus infinity where there is no key, so masks cost nothing.
"""

import triton
import triton.language as tl

from parhelion.ops.halo.triton_tiles import (
    NOTHING,
    asked_by,
    bias_of_cols,
    bias_of_rows,
    by_offset_again,
    embeddings_of,
    load_rows,
    logits_of,
    met,
    pixels_at,
    softmax_of,
    store_rows,
    store_softmax,
    tile_at,
    weights_of,
    windows_over,
    with_plain_sizes,
)


@triton.jit
def halo_forward(inputs, out, statistics, PLAN: tl.constexpr):
    """The output of a tile of queries and, unless `statistics` is None, what the backward pass reads of its softmax.

    With `PLAN.all_heads` a program takes all heads one after the other; keys of the next are on their way meanwhile.
    """
    inputs = with_plain_sizes(inputs)
    number = tl.program_id(0) % PLAN.tiles
    place = tl.program_id(0) // PLAN.tiles
    b = tl.program_id(2).to(tl.int64)
    if PLAN.all_heads:
        for head in range(0, inputs.sizes.heads):
            tile = tile_at(b, tl.program_id(1), place, head, number, inputs, PLAN)
            _output(out, statistics, tile, inputs, PLAN)
    else:
        head = place % inputs.sizes.heads
        tile = tile_at(b, tl.program_id(1), place // inputs.sizes.heads, head, number, inputs, PLAN)
        _output(out, statistics, tile, inputs, PLAN)


@triton.jit
def _output(out, statistics, tile, inputs, PLAN: tl.constexpr):
    """Write the output of a tile of queries, and its statistics."""
    asked = asked_by(tile, inputs, PLAN)
    best = tl.full([PLAN.queries], NOTHING, tl.float32)
    total = tl.full([PLAN.queries], 0.0, tl.float32)
    acc = tl.full([PLAN.queries, PLAN.padded_e], 0.0, tl.float32)
    best, total, acc = _attend(best, total, acc, tile, asked, inputs, 0, PLAN.rows, PLAN.cols, PLAN)
    if PLAN.tail_cols > 0:
        best, total, acc = _attend(
            best, total, acc, tile, asked, inputs, PLAN.cols, PLAN.tail_rows, PLAN.tail_cols, PLAN
        )
    store_rows(out, tile.places, tile.here, acc / total[:, None], PLAN.e, PLAN.padded_e)
    if statistics is not None:
        store_softmax(statistics, best, total, tile, inputs, PLAN)


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
    bias_w = bias_of_cols(tile, asked, inputs, FIRST, COLS, PLAN)
    for a in tl.range(0, PLAN.side, ROWS, loop_unroll_factor=PLAN.unroll):
        _, values, logits = met(tile, asked, inputs, a, bias_w, FIRST, ROWS, COLS, PLAN)
        highest = tl.maximum(best, tl.max(logits, 1))
        # A tile may hold no key at all: then the highest is minus infinity, and differences would be no numbers.
        level = tl.where(highest == NOTHING, 0.0, highest)
        weights = weights_of(logits, level, inputs, PLAN)
        fade = tl.exp2((best - level) * inputs.scale.factor)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None], input_precision=PLAN.precision)
        best = highest
    return best, total, acc


@triton.jit(do_not_specialize=["units"])
def halo_backward_queries(
    inputs, out, statistics, grad_out, delta, grad_q, grad_tables, gain, units, PLAN: tl.constexpr
):
    """Gradients of the queries, of the tables by program, and `delta`, each query's sum of weights times gradients.

    A program takes one tile of queries after the other, so that few partial sums of the tables are left to add.
    """
    inputs = with_plain_sizes(inputs)
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        place = unit // PLAN.tiles
        head = place % inputs.sizes.heads
        place = place // inputs.sizes.heads
        block_col = place % inputs.sizes.blocks_w
        place = place // inputs.sizes.blocks_w
        block_row = place % inputs.sizes.blocks_h
        b = (place // inputs.sizes.blocks_h).to(tl.int64)
        tile = tile_at(b, block_row, block_col, head, unit % PLAN.tiles, inputs, PLAN)
        asked = asked_by(tile, inputs, PLAN)
        grads = load_rows(grad_out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
        level, share = softmax_of(statistics, tile, PLAN)
        if PLAN.exact:
            sums = tl.full([PLAN.queries], 0.0, tl.float32)
            sums = _weighted_grads(sums, tile, asked, grads, level, inputs, 0, PLAN.rows, PLAN.cols, PLAN)
            if PLAN.tail_cols > 0:
                sums = _weighted_grads(
                    sums, tile, asked, grads, level, inputs, PLAN.cols, PLAN.tail_rows, PLAN.tail_cols, PLAN
                )
            sums *= share
        else:
            outs = load_rows(out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
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
            rows = by_offset_again(rows * share[:, None], tile.i, PLAN).to(grads.dtype)
            cols = by_offset_again(cols * share[:, None], tile.j, PLAN).to(grads.dtype)
            _add_table_grads(grad_tables, 0, rows, asked, gain, PLAN)
            _add_table_grads(grad_tables, 1, cols, asked, gain, PLAN)
            # A thread may read for the next tile what another has written for this one.
            tl.debug_barrier()
            embeddings_h = embeddings_of(inputs.table_h, 0, PLAN.width_h, grads.dtype, PLAN)
            acc = tl.dot(rows, embeddings_h, acc, input_precision=PLAN.precision)
            embeddings_w = embeddings_of(inputs.table_w, PLAN.first_w, PLAN.width_w, grads.dtype, PLAN)
            acc = tl.dot(cols, embeddings_w, acc, input_precision=PLAN.precision)
        store_rows(grad_q, tile.places, tile.here, acc * (gain * inputs.scale.sign), PLAN.d, PLAN.padded_d)


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
    bias_w = bias_of_cols(tile, asked, inputs, FIRST, COLS, PLAN)
    for a in tl.range(0, PLAN.side, ROWS, loop_unroll_factor=PLAN.unroll):
        _, values, logits = met(tile, asked, inputs, a, bias_w, FIRST, ROWS, COLS, PLAN)
        weights = weights_of(logits, level, inputs, PLAN)
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
    bias_w = bias_of_cols(tile, asked, inputs, FIRST, COLS, PLAN)
    of_col = ((FIRST + n % COLS)[:, None] == sides[None, :]).to(grads.dtype)
    for a in tl.range(0, PLAN.side, ROWS, loop_unroll_factor=PLAN.unroll):
        keys, values, logits = met(tile, asked, inputs, a, bias_w, FIRST, ROWS, COLS, PLAN)
        weights = weights_of(logits, level, inputs, PLAN)
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
def halo_backward_keys(inputs, statistics, delta, grad_out, grad_k, grad_v, gain, PLAN: tl.constexpr):
    """Gradients of the keys and values of a tile of pixels, summed over the windows that it lies in.

    A window overlaps others, but a pixel belongs to one tile: nothing is added by two programs, nothing in an order
    that could change.
    """
    SIDE: tl.constexpr = PLAN.key_side
    inputs = with_plain_sizes(inputs)
    sizes = inputs.sizes
    head = tl.program_id(0) % sizes.heads
    row0 = tl.program_id(1) * SIDE - PLAN.key_shift
    col0 = tl.program_id(0) // sizes.heads * SIDE - PLAN.key_shift
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, SIDE * SIDE)
    row = row0 + n // SIDE
    col = col0 + n % SIDE
    inside = (row >= 0) & (row < sizes.h) & (col >= 0) & (col < sizes.w)
    keys = pixels_at(inputs.k, b, head, row, col, inside, PLAN.d, PLAN.padded_d, PLAN)
    values = pixels_at(inputs.v, b, head, row, col, inside, PLAN.e, PLAN.padded_e, PLAN)
    first_row, last_row = windows_over(row0, sizes.blocks_h, PLAN)
    first_col, last_col = windows_over(col0, sizes.blocks_w, PLAN)
    across = last_col - first_col + 1
    acc_k = tl.full([SIDE * SIDE, PLAN.padded_d], 0.0, tl.float32)
    acc_v = tl.full([SIDE * SIDE, PLAN.padded_e], 0.0, tl.float32)
    for step in range(0, (last_row - first_row + 1) * across * PLAN.tiles):
        block_row = first_row + step // PLAN.tiles // across
        block_col = first_col + step // PLAN.tiles % across
        tile = tile_at(b, block_row, block_col, head, step % PLAN.tiles, inputs, PLAN)
        asked = asked_by(tile, inputs, PLAN)
        grads = load_rows(grad_out, tile.places, tile.here, PLAN.e, PLAN.padded_e)
        level, share = softmax_of(statistics, tile, PLAN)
        sums = tl.load(delta + tile.places, mask=tile.here, other=0.0)
        bias_h = bias_of_rows(tile, asked, inputs, row0 - (block_row * PLAN.block - PLAN.halo), SIDE, PLAN)
        bias_w = bias_of_cols(tile, asked, inputs, col0 - (block_col * PLAN.block - PLAN.halo), SIDE, PLAN)
        weights = weights_of(logits_of(asked, keys, bias_h, bias_w, PLAN), level, inputs, PLAN)
        if PLAN.exact:
            weights *= share[:, None]
        acc_v = tl.dot(tl.trans(weights.to(grads.dtype)), grads, acc_v, input_precision=PLAN.precision)
        slopes = tl.dot(grads, tl.trans(values), input_precision=PLAN.precision)
        slopes = (weights * (slopes - sums[:, None])).to(keys.dtype)
        acc_k = tl.dot(tl.trans(slopes), asked.queries, acc_k, input_precision=PLAN.precision)
    places = ((b * sizes.h + row) * sizes.w + col) * sizes.heads + head
    store_rows(grad_k, places, inside, acc_k * gain, PLAN.d, PLAN.padded_d)
    store_rows(grad_v, places, inside, acc_v, PLAN.e, PLAN.padded_e)
