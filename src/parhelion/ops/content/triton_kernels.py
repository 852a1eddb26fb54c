"""Content attention for GPUs, in Triton: two kernels forward and two backward, or one each for images in one chunk.

Letters: b image, p pixel of a tile, d channel of queries and keys, e channel of values. A program works for a group of
heads, whose channels are treated as those of one head; what one head would read of another is zero in the summary. A
chunk is the pixels that one program sums over. Whoever reads the sums adds the chunks up in their order, so nothing is
added in an order that could change.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from parhelion.ops.content.triton_plan import Inputs, Sizes
from parhelion.ops.triton_numbers import plain

NOTHING = tl.constexpr(float("-inf"))
LOG2E = tl.constexpr(1.4426950408889634)
NARROWEST = tl.constexpr(16)  # columns of a product


class At(NamedTuple):
    """Where a program works: image, group, its slice of channels, chunk, and pixels from `first` to before `last`."""

    b: Any
    group: Any
    slice: Any
    chunk: Any
    first: Any
    last: Any


class Sums(NamedTuple):
    """Sums over pixels: the largest key (d), the weights (d) relative to it, and the weighted values (d, e)."""

    best: Any
    total: Any
    block: Any


class Softmax(NamedTuple):
    """What turns keys into weights, `share * 2^(key - best)`: both (d)."""

    best: Any
    share: Any


@triton.jit
def _with_plain_sizes(inputs):
    """The inputs, their sizes as they are meant."""
    given = inputs.sizes
    size = Sizes(plain(given.pixels), plain(given.w), plain(given.heads), plain(given.chunk), plain(given.chunks))
    return Inputs(inputs.q, inputs.k, inputs.v, size)


@triton.jit
def content_forward(inputs, summary, out, PLAN: tl.constexpr):
    """The output, the summary and the statistics of a group of heads of an image."""
    inputs = _with_plain_sizes(inputs)
    d = tl.arange(0, PLAN.padded_d)
    e = tl.arange(0, PLAN.padded_e)
    at = _at(inputs.sizes, 1, PLAN)
    sums = _summed(at, inputs, d, PLAN)
    values = tl.where(_own(d, e, PLAN), sums.block / sums.total[:, None], 0.0)
    _store_sums(summary, at.b, at, Sums(sums.best, sums.total, values), d, e, inputs.sizes, PLAN)
    _read(at, inputs, out, values.to(out.dtype.element_ty), e, PLAN)


@triton.jit
def content_summarise(inputs, partial, PLAN: tl.constexpr):
    """The sums of a slice of the keys' channels over a chunk."""
    inputs = _with_plain_sizes(inputs)
    at = _at(inputs.sizes, PLAN.slices_d, PLAN)
    d = at.slice * PLAN.slice_d + tl.arange(0, PLAN.slice_d)
    e = tl.arange(0, PLAN.padded_e)
    sums = _summed(at, inputs, d, PLAN)
    _store_sums(partial, at.b * inputs.sizes.chunks + at.chunk, at, sums, d, e, inputs.sizes, PLAN)


@triton.jit
def content_read(inputs, partial, summary, out, PLAN: tl.constexpr):
    """The output of a chunk, for a slice of the values' channels; also the summary and the statistics."""
    inputs = _with_plain_sizes(inputs)
    at = _at(inputs.sizes, PLAN.slices_e, PLAN)
    d = tl.arange(0, PLAN.padded_d)
    e = at.slice * PLAN.slice_e + tl.arange(0, PLAN.slice_e)
    sums = _combined(partial, at, d, e, inputs.sizes, PLAN)
    if at.chunk == 0:
        _store_sums(summary, at.b, at, sums, d, e, inputs.sizes, PLAN)
    _read(at, inputs, out, sums.block.to(out.dtype.element_ty), e, PLAN)


@triton.jit
def content_backward(inputs, summary, grad_out, grad_q, grad_k, grad_v, PLAN: tl.constexpr):
    """All gradients of a group of heads of an image."""
    inputs = _with_plain_sizes(inputs)
    d = tl.arange(0, PLAN.padded_d)
    e = tl.arange(0, PLAN.padded_e)
    at = _at(inputs.sizes, 1, PLAN)
    values = _load_block(summary.blocks, at.b, at, d, e, inputs.sizes, PLAN)
    slopes = _query_grads(at, inputs, values, grad_out, grad_q, d, PLAN)
    slopes = tl.where(_own(d, e, PLAN), slopes, 0.0).to(grad_k.dtype.element_ty)
    softmax = _softmax(summary, at, d, inputs.sizes, PLAN)
    _key_grads(at, inputs, values, slopes, slopes, softmax, softmax, grad_k, grad_v, d, d, e, PLAN)


@triton.jit
def content_backward_queries(inputs, summary, grad_out, grad_q, partial, PLAN: tl.constexpr):
    """Gradients of a slice of the queries' channels in a chunk, and the chunk's part of those of the summary."""
    inputs = _with_plain_sizes(inputs)
    at = _at(inputs.sizes, PLAN.slices_d, PLAN)
    d = at.slice * PLAN.slice_d + tl.arange(0, PLAN.slice_d)
    e = tl.arange(0, PLAN.padded_e)
    values = _load_block(summary.blocks, at.b, at, d, e, inputs.sizes, PLAN)
    slopes = _query_grads(at, inputs, values, grad_out, grad_q, d, PLAN)
    _store_block(partial, at.b * inputs.sizes.chunks + at.chunk, at, slopes, d, e, inputs.sizes, PLAN)


@triton.jit
def content_backward_keys(inputs, summary, partial, grad_k, grad_v, PLAN: tl.constexpr):
    """Gradients of a slice of the channels of keys, and of values, in a chunk."""
    inputs = _with_plain_sizes(inputs)
    SLICES: tl.constexpr = max(PLAN.slices_d, PLAN.slices_e)
    at = _at(inputs.sizes, SLICES, PLAN)
    every_d = tl.arange(0, PLAN.padded_d)
    every_e = tl.arange(0, PLAN.padded_e)
    d = at.slice * PLAN.slice_d + tl.arange(0, PLAN.slice_d)
    e = at.slice * PLAN.slice_e + tl.arange(0, PLAN.slice_e)
    values = _load_block(summary.blocks, at.b, at, d, every_e, inputs.sizes, PLAN)
    slopes = _added(partial, at, d, every_e, inputs.sizes, PLAN).to(grad_k.dtype.element_ty)
    softmax = _softmax(summary, at, d, inputs.sizes, PLAN)
    every_slope = slopes
    every_softmax = softmax
    if SLICES > 1:
        every_slope = _added(partial, at, every_d, e, inputs.sizes, PLAN).to(grad_k.dtype.element_ty)
        every_softmax = _softmax(summary, at, every_d, inputs.sizes, PLAN)
    _key_grads(
        at, inputs, values, slopes, every_slope, softmax, every_softmax, grad_k, grad_v, d, every_d, e, PLAN
    )  # fmt: skip


@triton.jit
def _summed(at, inputs, d, PLAN: tl.constexpr):
    """The sums of channels d of the keys, in one pass; what is summed so far fades when a larger key turns up."""
    best = tl.full([d.shape[0]], NOTHING, tl.float32)
    total = tl.full([d.shape[0], NARROWEST], 0.0, tl.float32)
    acc = tl.full([d.shape[0], PLAN.padded_e], 0.0, tl.float32)
    e = tl.arange(0, PLAN.padded_e)
    ones = tl.full([PLAN.tile, NARROWEST], 1.0, inputs.v.start.dtype.element_ty)
    for first in range(at.first, at.last, PLAN.tile):
        keys = _pixels(inputs.k, at, first, d, NOTHING, PLAN.d, inputs.sizes, PLAN).to(tl.float32)
        values = _pixels(inputs.v, at, first, e, 0.0, PLAN.e, inputs.sizes, PLAN)
        highest = tl.maximum(best, tl.max(keys, 0))
        level = _level(highest)
        weights = tl.trans(tl.exp2((keys - level[None, :]) * LOG2E).to(values.dtype))
        fade = tl.exp2((best - level) * LOG2E)
        # A product with ones sums over pixels in the matrix unit, where it costs next to nothing.
        total = tl.dot(weights, ones, total * fade[:, None], input_precision=PLAN.precision)
        acc = tl.dot(weights, values, acc * fade[:, None], input_precision=PLAN.precision)
        best = highest
    return Sums(best, tl.sum(total, 1) / NARROWEST, acc)


@triton.jit
def _combined(partial, at, d, e, sizes, PLAN: tl.constexpr):
    """The sums of all chunks, the values divided by the weights."""
    best = tl.full([d.shape[0]], NOTHING, tl.float32)
    total = tl.full([d.shape[0]], 0.0, tl.float32)
    acc = tl.full([d.shape[0], e.shape[0]], 0.0, tl.float32)
    for chunk in range(0, sizes.chunks):
        image = at.b * sizes.chunks + chunk
        chunk_best = _load_statistic(partial, image, 0, at, d, NOTHING, sizes, PLAN)
        chunk_total = _load_statistic(partial, image, 1, at, d, 0.0, sizes, PLAN)
        highest = tl.maximum(best, chunk_best)
        level = _level(highest)
        fade = tl.exp2((best - level) * LOG2E)
        factor = tl.exp2((chunk_best - level) * LOG2E)
        total = total * fade + chunk_total * factor
        values = _load_block(partial.blocks, image, at, d, e, sizes, PLAN)
        acc = acc * fade[:, None] + values * factor[:, None]
        best = highest
    return Sums(best, total, tl.where(_own(d, e, PLAN), acc / total[:, None], 0.0))


@triton.jit
def _level(highest):
    """What to subtract from keys: the highest, unless all are minus infinity; the difference would be no number."""
    return tl.where(highest == NOTHING, 0.0, highest)


@triton.jit
def _read(at, inputs, out, values, e, PLAN: tl.constexpr):
    """Write what the queries read of the summary's channels e."""
    d = tl.arange(0, PLAN.padded_d)
    spoilt = tl.full([PLAN.tile, e.shape[0]], 0.0, tl.float32)
    for first in range(at.first, at.last, PLAN.tile):
        queries = _pixels(inputs.q, at, first, d, 0.0, PLAN.d, inputs.sizes, PLAN)
        found = tl.dot(queries, values, input_precision=PLAN.precision)
        if PLAN.group > 1:
            spoilt += found * 0.0
        _store_pixels(out, at, first, found, e, PLAN.e, inputs.sizes, PLAN)
    if PLAN.group > 1:  # noqa: SIM102  the first condition is known to the compiler
        # Zero times what is not finite is no number, and is what a head reads of another.
        if tl.sum(spoilt) != 0.0:
            _read_apart(at, inputs, out, values, d, e, PLAN)


@triton.jit
def _read_apart(at, inputs, out, values, d, e, PLAN: tl.constexpr):
    """Write again what the queries read of the summary's channels e, one head after the other."""
    # Of two threads that write a number, the one that writes it here must be the last.
    tl.debug_barrier()
    for first in range(at.first, at.last, PLAN.tile):
        queries = _pixels(inputs.q, at, first, d, 0.0, PLAN.d, inputs.sizes, PLAN)
        found = tl.full([PLAN.tile, e.shape[0]], 0.0, tl.float32)
        for head in range(0, PLAN.group):
            own = tl.where((d // PLAN.d == head)[None, :], queries, 0.0).to(queries.dtype)
            more = tl.dot(own, values, input_precision=PLAN.precision)
            found = tl.where((e // PLAN.e == head)[None, :], more, found)
        _store_pixels(out, at, first, found, e, PLAN.e, inputs.sizes, PLAN)


@triton.jit
def _query_grads(at, inputs, values, grad_out, grad_q, d, PLAN: tl.constexpr):
    """The gradients (d, e) of the summary, summed over pixels; writes those of the queries."""
    acc = tl.full([d.shape[0], PLAN.padded_e], 0.0, tl.float32)
    e = tl.arange(0, PLAN.padded_e)
    turned = tl.trans(values.to(grad_q.dtype.element_ty))
    for first in range(at.first, at.last, PLAN.tile):
        queries = _pixels(inputs.q, at, first, d, 0.0, PLAN.d, inputs.sizes, PLAN)
        grads = _load_pixels(grad_out, at, first, e, PLAN.e, inputs.sizes, PLAN)
        acc = tl.dot(tl.trans(queries), grads, acc, input_precision=PLAN.precision)
        found = tl.dot(grads, turned, input_precision=PLAN.precision)
        _store_pixels(grad_q, at, first, found, d, PLAN.d, inputs.sizes, PLAN)
    return acc


@triton.jit
def _key_grads(
    at, inputs, values, slopes, every_slope, softmax, every_softmax, grad_k, grad_v, d, every_d, e, PLAN: tl.constexpr
):
    """Write the gradients of channels d of the keys, from `slopes` (d, all) and the summary's `values` (d, all), and
    those of channels e of the values, from `every_slope` (all, e).
    """
    every_e = tl.arange(0, PLAN.padded_e)
    # Of the slopes as they are multiplied: over one pixel, the difference below is zero.
    delta = tl.sum(values * slopes.to(tl.float32), 1)
    turned = tl.trans(slopes)
    for first in range(at.first, at.last, PLAN.tile):
        weights = _weights(at, inputs, first, d, softmax, PLAN)
        every_value = _pixels(inputs.v, at, first, every_e, 0.0, PLAN.e, inputs.sizes, PLAN)
        found = tl.dot(every_value, turned, input_precision=PLAN.precision)
        _store_pixels(grad_k, at, first, weights * (found - delta[None, :]), d, PLAN.d, inputs.sizes, PLAN)
        if PLAN.slice_d < PLAN.padded_d or PLAN.slice_e < PLAN.padded_e:
            weights = _weights(at, inputs, first, every_d, every_softmax, PLAN)
        found = tl.dot(weights.to(every_value.dtype), every_slope, input_precision=PLAN.precision)
        _store_pixels(grad_v, at, first, found, e, PLAN.e, inputs.sizes, PLAN)


@triton.jit
def _weights(at, inputs, first, d, softmax, PLAN: tl.constexpr):
    """The weights (p, d) of a tile; zeros outside."""
    keys = _pixels(inputs.k, at, first, d, NOTHING, PLAN.d, inputs.sizes, PLAN).to(tl.float32)
    return tl.exp2((keys - softmax.best[None, :]) * LOG2E) * softmax.share[None, :]


@triton.jit
def _softmax(summary, at, d, sizes, PLAN: tl.constexpr):
    """What turns keys into weights."""
    best = _load_statistic(summary, at.b, 0, at, d, 0.0, sizes, PLAN)
    total = _load_statistic(summary, at.b, 1, at, d, 1.0, sizes, PLAN)
    return Softmax(best, 1.0 / total)


@triton.jit
def _added(partial, at, d, e, sizes, PLAN: tl.constexpr):
    """The blocks (d, e) of all chunks, added up."""
    acc = tl.full([d.shape[0], e.shape[0]], 0.0, tl.float32)
    for chunk in range(0, sizes.chunks):
        acc += _load_block(partial, at.b * sizes.chunks + chunk, at, d, e, sizes, PLAN)
    return acc


@triton.jit
def _at(sizes, SLICES: tl.constexpr, PLAN: tl.constexpr):
    """Where this program works; the slices of a group follow each other, since they read the same."""
    first = tl.program_id(1) * sizes.chunk
    last = tl.minimum(first + sizes.chunk, sizes.pixels)
    place = tl.program_id(0)
    return At(tl.program_id(2).to(tl.int64), place // SLICES, place % SLICES, tl.program_id(1), first, last)


@triton.jit
def _pixels(source, at, first, channels, nothing, WIDTH: tl.constexpr, sizes, PLAN: tl.constexpr):
    """A tile (p, channels) of a map from pixel `first` on; `nothing` outside. `WIDTH`: channels of a head."""
    pixels = first + tl.arange(0, PLAN.tile)
    if PLAN.flat:
        places = pixels.to(tl.int64) * plain(source.col)
    else:
        row = (pixels // sizes.w).to(tl.int64)
        places = row * plain(source.row) + (pixels % sizes.w).to(tl.int64) * plain(source.col)
    # Strides are counted in runs of channels: so the compiler sees how many numbers it may load at once.
    places *= PLAN.run
    if PLAN.packed:
        # A stride that the compiler knows tells it how the channels are aligned.
        of_channels = at.group * (PLAN.group * WIDTH) + channels
    else:
        heads = (at.group * PLAN.group + channels // WIDTH).to(tl.int64) * plain(source.head)
        of_channels = heads * PLAN.run + channels % WIDTH
    start = source.start + at.b * plain(source.image) * PLAN.run
    mask = (pixels < at.last)[:, None] & (channels < PLAN.group * WIDTH)[None, :]
    return tl.load(start + places[:, None] + of_channels[None, :], mask=mask, other=nothing)


@triton.jit
def _places(at, first, WIDTH: tl.constexpr, sizes, PLAN: tl.constexpr):
    """Where the pixels of a tile begin in a map whose memory is without gaps."""
    pixels = first + tl.arange(0, PLAN.tile)
    return ((at.b * sizes.pixels + pixels) * (sizes.heads // PLAN.group) + at.group) * (PLAN.group * WIDTH)


@triton.jit
def _load_pixels(source, at, first, channels, WIDTH: tl.constexpr, sizes, PLAN: tl.constexpr):
    """A tile (p, channels) of a map whose memory is without gaps; zeros outside."""
    places = _places(at, first, WIDTH, sizes, PLAN)
    mask = (first + tl.arange(0, PLAN.tile) < at.last)[:, None] & (channels < PLAN.group * WIDTH)[None, :]
    return tl.load(source + places[:, None] + channels[None, :], mask=mask, other=0.0)


@triton.jit
def _store_pixels(target, at, first, numbers, channels, WIDTH: tl.constexpr, sizes, PLAN: tl.constexpr):
    """Write a tile (p, channels) into a map whose memory is without gaps."""
    places = _places(at, first, WIDTH, sizes, PLAN)
    mask = (first + tl.arange(0, PLAN.tile) < at.last)[:, None] & (channels < PLAN.group * WIDTH)[None, :]
    tl.store(target + places[:, None] + channels[None, :], numbers.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _own(d, e, PLAN: tl.constexpr):
    """Which channels (d, e) of a group are there and of the same head."""
    there = (d < PLAN.group * PLAN.d)[:, None] & (e < PLAN.group * PLAN.e)[None, :]
    return there & ((d // PLAN.d)[:, None] == (e // PLAN.e)[None, :])


@triton.jit
def _block_places(image, at, d, e, sizes, PLAN: tl.constexpr):
    """Where channels (d, e) of a group lie among blocks (images, n, d, e)."""
    rows = (image * sizes.heads + at.group * PLAN.group) * PLAN.d + d
    return rows[:, None] * PLAN.e + (e % PLAN.e)[None, :]


@triton.jit
def _load_block(source, image, at, d, e, sizes, PLAN: tl.constexpr):
    """Channels (d, e) of a group, zeros where they belong to different heads; from blocks (images, n, d, e)."""
    return tl.load(source + _block_places(image, at, d, e, sizes, PLAN), mask=_own(d, e, PLAN), other=0.0)


@triton.jit
def _store_block(target, image, at, numbers, d, e, sizes, PLAN: tl.constexpr):
    """Write channels (d, e) of a group into blocks (images, n, d, e)."""
    tl.store(target + _block_places(image, at, d, e, sizes, PLAN), numbers, mask=_own(d, e, PLAN))


@triton.jit
def _store_sums(target, image, at, sums, d, e, sizes, PLAN: tl.constexpr):
    """Write sums as the summary and statistics of an image or a chunk."""
    _store_block(target.blocks, image, at, sums.block, d, e, sizes, PLAN)
    there = d < PLAN.group * PLAN.d
    tl.store(target.statistics + _statistic_places(image, 0, at, d, sizes, PLAN), sums.best, mask=there)
    tl.store(target.statistics + _statistic_places(image, 1, at, d, sizes, PLAN), sums.total, mask=there)


@triton.jit
def _load_statistic(source, image, WHICH: tl.constexpr, at, d, nothing, sizes, PLAN: tl.constexpr):
    """The largest keys (0) or the sums of weights (1) of channels d of a group; `nothing` where there are none."""
    places = _statistic_places(image, WHICH, at, d, sizes, PLAN)
    return tl.load(source.statistics + places, mask=d < PLAN.group * PLAN.d, other=nothing)


@triton.jit
def _statistic_places(image, WHICH: tl.constexpr, at, d, sizes, PLAN: tl.constexpr):
    """Where channels d of a group lie among statistics (images, 2, n, d)."""
    return ((image * 2 + WHICH) * sizes.heads + at.group * PLAN.group) * PLAN.d + d
