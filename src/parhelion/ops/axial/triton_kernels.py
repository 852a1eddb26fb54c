"""Axial attention for GPUs, in Triton: one kernel forward, two or three backward.

Letters: b image, y query and i key along the axis, m and n rows of a tile of queries and of keys, d and e channels. A
row is a pixel of a line and head; where an axis is short, a tile holds several lines or heads. A tile of queries
consists of blocks a, of keys of as many, of `side` rows each.

Logits exist in registers only. Within a block, query y sees key i by the embedding of offset i - y: a skew. Modulo
`side` it is a rotation, which moves numbers within short rows only. So a block of queries is multiplied with embeddings
of two runs of offsets: the early ones, up to 0, where the key does not come after the query in its block, and the late
ones, from 1 on. Entry s of a row is wanted from one of the two, and rotating the row brings it to its key.

What lies outside the axis is zero in queries, values and gradients, so nothing else is masked but keys of other lines.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from parhelion.ops.axial.triton_plan import Inputs, Sizes, Table
from parhelion.ops.triton_numbers import plain


class Rows(NamedTuple):
    """Rows of a tile: the image, the line, the head and the pixel of each, and whether there is one."""

    b: Any
    line: Any
    head: Any
    pixel: Any
    here: Any


class Embeddings(NamedTuple):
    """Embeddings (a, n, d) that the queries of a block are multiplied with: those of early and of late offsets."""

    early: Any
    late: Any


@triton.jit
def _with_plain_sizes(inputs):
    """The inputs, their sizes as they are meant."""
    sizes = Sizes(plain(inputs.sizes.length), plain(inputs.sizes.lines), plain(inputs.sizes.heads))
    table = Table(inputs.table.start, inputs.table.row, plain(inputs.table.centre))
    return Inputs(inputs.q, inputs.v, table, sizes)


@triton.jit(do_not_specialize=["each", "units"])
def axial_forward(inputs, plus, out, each, units, PLAN: tl.constexpr):
    """The output of `each` tiles of queries."""
    inputs = _with_plain_sizes(inputs)
    tiles = _tiles(inputs, PLAN)
    embeddings = _embeddings(inputs, 0, out, PLAN)
    first = tl.program_id(0) * each
    for unit in range(first, tl.minimum(first + each, units)):
        query = unit % tiles
        rows = _rows(unit // tiles, query, inputs, PLAN)
        queries = _load(inputs.q, rows, PLAN.d, PLAN.padded_d, PLAN)
        acc = tl.full([PLAN.rows, PLAN.padded_e], 0.0, tl.float32)
        if PLAN.single:
            values = _load(inputs.v, rows, PLAN.e, PLAN.padded_e, PLAN)
            acc = tl.dot(_logits(queries, embeddings, PLAN), values, acc, input_precision=PLAN.precision)
        else:
            for key in range(0, tiles):
                values = _load(inputs.v, _rows(unit // tiles, key, inputs, PLAN), PLAN.e, PLAN.padded_e, PLAN)
                logits = _logits(queries, _embeddings(inputs, key - query, out, PLAN), PLAN)
                acc = tl.dot(logits, values, acc, input_precision=PLAN.precision)
        if PLAN.plus:
            acc += _load(plus, rows, PLAN.e, PLAN.padded_e, PLAN).to(tl.float32)
        _store(out, rows, acc, PLAN.e, PLAN.padded_e, PLAN)


@triton.jit(do_not_specialize=["each", "units"])
def axial_backward(inputs, grad_out, grad_q, grad_v, sums, each, units, PLAN: tl.constexpr):
    """Gradients of the queries and values of `each` tiles, and for the table their sums, where a tile holds an axis."""
    inputs = _with_plain_sizes(inputs)
    embeddings = _embeddings(inputs, 0, grad_out, PLAN)
    early = tl.full([PLAN.blocks, PLAN.rows, PLAN.padded_d], 0.0, tl.float32)
    late = tl.full([PLAN.blocks, PLAN.rows, PLAN.padded_d], 0.0, tl.float32)
    first = tl.program_id(0) * each
    for unit in range(first, tl.minimum(first + each, units)):
        rows = _rows(unit, 0, inputs, PLAN)
        grads = _load(grad_out, rows, PLAN.e, PLAN.padded_e, PLAN)
        queries = _load(inputs.q, rows, PLAN.d, PLAN.padded_d, PLAN)
        values = _load(inputs.v, rows, PLAN.e, PLAN.padded_e, PLAN)
        logits = _logits(queries, embeddings, PLAN)
        acc = tl.dot(tl.trans(logits), grads, input_precision=PLAN.precision)
        _store(grad_v, rows, acc, PLAN.e, PLAN.padded_e, PLAN)
        slopes = _slopes(grads, values, PLAN)
        acc = tl.full([PLAN.blocks, PLAN.side * PLAN.lines, PLAN.padded_d], 0.0, tl.float32)
        acc = _query_grads(acc, slopes, embeddings, PLAN)
        _store(grad_q, rows, tl.reshape(acc, [PLAN.rows, PLAN.padded_d]), PLAN.d, PLAN.padded_d, PLAN)
        early = _table_grads(early, slopes.early, queries, PLAN)
        late = _table_grads(late, slopes.late, queries, PLAN)
    own = _sums(sums, tl.program_id(0), PLAN)
    tl.store(own.early, early)
    tl.store(own.late, late)


@triton.jit(do_not_specialize=["each", "units"])
def axial_backward_queries(inputs, grad_out, grad_q, sums, each, units, PLAN: tl.constexpr):
    """Gradients of the queries of `each` tiles; adds to the sums (programs, distances of tiles, 2, a, n, d).

    Distances overlap in their offsets, and yet have sums each: so a tile of queries adds to each sum only once.
    """
    inputs = _with_plain_sizes(inputs)
    tiles = _tiles(inputs, PLAN)
    first = tl.program_id(0) * each
    for unit in range(first, tl.minimum(first + each, units)):
        query = unit % tiles
        rows = _rows(unit // tiles, query, inputs, PLAN)
        grads = _load(grad_out, rows, PLAN.e, PLAN.padded_e, PLAN)
        queries = _load(inputs.q, rows, PLAN.d, PLAN.padded_d, PLAN)
        acc = tl.full([PLAN.blocks, PLAN.side * PLAN.lines, PLAN.padded_d], 0.0, tl.float32)
        for key in range(0, tiles):
            values = _load(inputs.v, _rows(unit // tiles, key, inputs, PLAN), PLAN.e, PLAN.padded_e, PLAN)
            slopes = _slopes(grads, values, PLAN)
            acc = _query_grads(acc, slopes, _embeddings(inputs, key - query, grad_out, PLAN), PLAN)
            own = _sums(sums, tl.program_id(0) * (2 * tiles - 1) + key - query + tiles - 1, PLAN)
            tl.store(own.early, _table_grads(tl.load(own.early), slopes.early, queries, PLAN))
            tl.store(own.late, _table_grads(tl.load(own.late), slopes.late, queries, PLAN))
        _store(grad_q, rows, tl.reshape(acc, [PLAN.rows, PLAN.padded_d]), PLAN.d, PLAN.padded_d, PLAN)
        # A thread may read for the next tile what another has written for this one.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["each", "units"])
def axial_backward_values(inputs, grad_out, grad_v, each, units, PLAN: tl.constexpr):
    """Gradients of the values of `each` tiles of keys."""
    inputs = _with_plain_sizes(inputs)
    tiles = _tiles(inputs, PLAN)
    first = tl.program_id(0) * each
    for unit in range(first, tl.minimum(first + each, units)):
        key = unit % tiles
        acc = tl.full([PLAN.rows, PLAN.padded_e], 0.0, tl.float32)
        for query in range(0, tiles):
            rows = _rows(unit // tiles, query, inputs, PLAN)
            grads = _load(grad_out, rows, PLAN.e, PLAN.padded_e, PLAN)
            queries = _load(inputs.q, rows, PLAN.d, PLAN.padded_d, PLAN)
            logits = _logits(queries, _embeddings(inputs, key - query, grad_out, PLAN), PLAN)
            acc = tl.dot(tl.trans(logits), grads, acc, input_precision=PLAN.precision)
        _store(grad_v, _rows(unit // tiles, key, inputs, PLAN), acc, PLAN.e, PLAN.padded_e, PLAN)


@triton.jit(do_not_specialize=["distances"])
def axial_backward_table(sums, grad_table, distances, PLAN: tl.constexpr):
    """The gradient of one row of the table: the sums (distances, 2, a, n, d) for its offset, added up."""
    channels = tl.arange(0, PLAN.padded_d)
    offset = tl.program_id(0) - tl.num_programs(0) // 2
    acc = tl.full([PLAN.summed, PLAN.padded_d], 0.0, tl.float32)
    terms = distances * (2 * PLAN.blocks * PLAN.lines)
    for begin in range(0, terms, PLAN.summed):
        term = begin + tl.arange(0, PLAN.summed)
        a = term // PLAN.lines % PLAN.blocks
        late = term // (PLAN.lines * PLAN.blocks) % 2
        distance = term // (PLAN.lines * PLAN.blocks * 2) - distances // 2
        n = offset - distance * PLAN.slot + a * PLAN.side + PLAN.side - 1 - late * PLAN.side
        mask = (term < terms) & (n >= 0) & (n < PLAN.slot)
        places = term // PLAN.lines * PLAN.rows + term % PLAN.lines * PLAN.slot + n
        acc += tl.load(sums + places[:, None] * PLAN.padded_d + channels[None, :], mask=mask[:, None], other=0.0)
    row = grad_table + tl.program_id(0).to(tl.int64) * PLAN.d + channels
    tl.store(row, tl.sum(acc, 0).to(grad_table.dtype.element_ty), mask=channels < PLAN.d)


@triton.jit
def _tiles(inputs, PLAN: tl.constexpr):
    """Tiles that an axis is cut into."""
    return 1 if PLAN.single else tl.cdiv(inputs.sizes.length, PLAN.slot)


@triton.jit
def _rows(number, tile, inputs, PLAN: tl.constexpr):
    """The rows of a tile of an axis, by the number of its lines among all."""
    sizes = inputs.sizes
    m = tl.arange(0, PLAN.rows)
    in_image = tl.cdiv(sizes.lines * sizes.heads, PLAN.lines)
    pixel = tile * PLAN.slot + m % PLAN.slot
    here = pixel < sizes.length
    line = number % in_image
    if PLAN.lines > 1:
        line = line * PLAN.lines + m // PLAN.slot
        here = here & (line < sizes.lines * sizes.heads)
    return Rows((number // in_image).to(tl.int64), line // sizes.heads, line % sizes.heads, pixel, here)


@triton.jit
def _load(source, rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr):
    """The rows (m, channels) of a map; zeros where there is none."""
    pointers, mask = _pointers(source, rows, WIDTH, PADDED, PLAN)
    return tl.load(pointers, mask=mask, other=0.0)


@triton.jit
def _store(target, rows, values, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr):
    """Write the rows (m, channels) of a map, where there is one."""
    pointers, mask = _pointers(target, rows, WIDTH, PADDED, PLAN)
    tl.store(pointers, values.to(target.start.dtype.element_ty), mask=mask)


@triton.jit
def _pointers(source, rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLAN: tl.constexpr):
    """Where the channels of rows are, and whether there is one."""
    channels = tl.arange(0, PADDED)
    line, head, pixel = rows.line, rows.head, rows.pixel
    if PLAN.far:
        line, head, pixel = line.to(tl.int64), head.to(tl.int64), pixel.to(tl.int64)
    # Strides are counted in runs of channels: so the compiler sees how many numbers it may load at once.
    places = (line * plain(source.line) + head * plain(source.head) + pixel * plain(source.pixel)) * PLAN.run
    start = source.start + rows.b * plain(source.image) * PLAN.run
    return start + (places[:, None] + channels[None, :]), rows.here[:, None] & (channels < WIDTH)[None, :]


@triton.jit
def _embeddings(inputs, distance, like, PLAN: tl.constexpr):
    """The embeddings for a tile of keys that is `distance` tiles after one of queries, in the dtype of a map."""
    first = distance * PLAN.slot
    return Embeddings(
        _embeddings_from(inputs, first - (PLAN.side - 1), like, PLAN), _embeddings_from(inputs, first + 1, like, PLAN)
    )


@triton.jit
def _embeddings_from(inputs, first, like, PLAN: tl.constexpr):
    """The embeddings (a, n, d) of n offsets, for the first block from `first` on, zeros beyond the ends of the axis."""
    channels = tl.arange(0, PLAN.padded_d)
    a = tl.arange(0, PLAN.blocks)[:, None]
    offsets = first + (tl.arange(0, PLAN.rows) % PLAN.slot)[None, :] - a * PLAN.side
    inside = (offsets > -inputs.sizes.length) & (offsets < inputs.sizes.length)
    places = (inputs.table.centre + offsets) * inputs.table.row * PLAN.run
    mask = inside[:, :, None] & (channels < PLAN.d)[None, None, :]
    table = tl.load(inputs.table.start + (places[:, :, None] + channels[None, None, :]), mask=mask, other=0.0)
    return table.to(like.start.dtype.element_ty)


@triton.jit
def _logits(queries, embeddings, PLAN: tl.constexpr):
    """Products (m, n) of queries and embeddings, in the dtype of the queries; zeros between lines."""
    queries = tl.reshape(queries, [PLAN.blocks, PLAN.side * PLAN.lines, PLAN.padded_d])
    start = tl.full([PLAN.blocks, PLAN.side * PLAN.lines, PLAN.rows], 0.0, tl.float32)
    early = _times(queries, tl.permute(embeddings.early, [0, 2, 1]), start, PLAN)
    late = _times(queries, tl.permute(embeddings.late, [0, 2, 1]), start, PLAN)
    early = tl.reshape(early, [PLAN.rows, PLAN.rows])
    late = tl.reshape(late, [PLAN.rows, PLAN.rows])
    return _within_lines(_rotated(tl.where(_is_early(PLAN), early, late).to(queries.dtype), -1, PLAN), PLAN)


@triton.jit
def _slopes(grads, values, PLAN: tl.constexpr):
    """Gradients (a, m, n) of the products of queries and embeddings: `_logits` the other way round."""
    slopes = tl.dot(grads, tl.trans(values), input_precision=PLAN.precision).to(grads.dtype)
    slopes = _rotated(_within_lines(slopes, PLAN), 1, PLAN)
    early = tl.where(_is_early(PLAN), slopes, 0.0)
    late = tl.where(_is_early(PLAN), 0.0, slopes)
    early = tl.reshape(early, [PLAN.blocks, PLAN.side * PLAN.lines, PLAN.rows])
    return Embeddings(early, tl.reshape(late, [PLAN.blocks, PLAN.side * PLAN.lines, PLAN.rows]))


@triton.jit
def _query_grads(acc, slopes, embeddings, PLAN: tl.constexpr):
    """Add the gradients (a, m, d) of queries."""
    return _times(slopes.late, embeddings.late, _times(slopes.early, embeddings.early, acc, PLAN), PLAN)


@triton.jit
def _table_grads(acc, slopes, queries, PLAN: tl.constexpr):
    """Add the gradients (a, n, d) of embeddings."""
    queries = tl.reshape(queries, [PLAN.blocks, PLAN.side * PLAN.lines, PLAN.padded_d])
    return _times(tl.permute(slopes, [0, 2, 1]), queries, acc, PLAN)


@triton.jit
def _times(left, right, acc, PLAN: tl.constexpr):
    """Add products (a, m, n) of blocks."""
    if PLAN.blocks > 1:
        sums = tl.dot(left, right, acc, input_precision=PLAN.precision)
    else:
        left = tl.reshape(left, [left.shape[1], left.shape[2]])
        right = tl.reshape(right, [right.shape[1], right.shape[2]])
        sums = tl.dot(left, right, tl.reshape(acc, [acc.shape[1], acc.shape[2]]), input_precision=PLAN.precision)
    return tl.reshape(sums, acc.shape)


@triton.jit
def _is_early(PLAN: tl.constexpr):
    """Whether the entry (m, n), before it is rotated, is the product with an early offset."""
    y = tl.arange(0, PLAN.rows)[:, None] % PLAN.side
    s = tl.arange(0, PLAN.rows)[None, :] % PLAN.side
    return s + y >= PLAN.side - 1


@triton.jit
def _rotated(products, SIGN: tl.constexpr, PLAN: tl.constexpr):
    """Products (m, n), rotated within each block of n by y + 1: with SIGN -1 to their keys, with 1 back."""
    ROWS: tl.constexpr = PLAN.rows * PLAN.rows // PLAN.side
    y = tl.arange(0, ROWS)[:, None] // (PLAN.rows // PLAN.side) % PLAN.side
    s = tl.arange(0, PLAN.side)[None, :]
    # No number below zero is divided: there a remainder is another one in the interpreter.
    index = (s + PLAN.side + SIGN * (y + 1)) % PLAN.side
    rotated = tl.gather(tl.reshape(products, [ROWS, PLAN.side]), index, axis=1)
    return tl.reshape(rotated, [PLAN.rows, PLAN.rows])


@triton.jit
def _within_lines(products, PLAN: tl.constexpr):
    """Products (m, n), zeros where query and key are of different lines."""
    if PLAN.lines > 1:
        m = tl.arange(0, PLAN.rows)[:, None]
        n = tl.arange(0, PLAN.rows)[None, :]
        products = tl.where(m // PLAN.slot == n // PLAN.slot, products, 0.0)
    return products


@triton.jit
def _sums(sums, number, PLAN: tl.constexpr):
    """Where the sums (a, n, d) of a number are, of early and of late offsets."""
    a = tl.arange(0, PLAN.blocks)[:, None, None]
    n = tl.arange(0, PLAN.rows)[None, :, None]
    ENTRIES: tl.constexpr = PLAN.blocks * PLAN.rows * PLAN.padded_d
    places = (a * PLAN.rows + n) * PLAN.padded_d + tl.arange(0, PLAN.padded_d)[None, None, :]
    early = sums + number.to(tl.int64) * (2 * ENTRIES) + places
    return Embeddings(early, early + ENTRIES)
