"""Halo attention: the equation, the border, offsets, the window, dtypes and memory layouts."""

import pytest
import torch
import torch.nn.functional as F
from error_budget import assert_as_exact_as
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.halo import halo_oracle
from simulated_rounding import simulated, step_by_step
from torch import Tensor, nn
from torch.testing import assert_close

from parhelion.ops import halo_attention
from parhelion.ops.halo import table_rows, table_widths

BORDERS = ("zero", "masked")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# fmt: off
WINDOWS = {  # h, w, block, halo, stride
    "whole blocks":                  (6, 10,  2, 1, 1),
    "halo 0":                        (6, 10,  2, 0, 1),
    "halo larger than the block":    (4,  6,  2, 3, 1),
    "one block larger than the map": (3,  5,  6, 1, 1),
    "block 1":                       (6, 10,  1, 2, 1),
    "block 1 without halo":          (6, 10,  1, 0, 1),
    "neither side divides":          (5,  7,  4, 1, 1),
    "only the height divides":       (6, 10,  3, 1, 1),
    "only the width divides":        (4,  9,  3, 2, 1),
    "a map of one row":              (1,  9,  4, 1, 1),
    "a map of one column":           (9,  1,  4, 1, 1),
    "one pixel":                     (1,  1,  3, 2, 1),
    "stride 2":                      (8, 12,  4, 1, 2),
    "stride 2, odd sizes":           (7, 11,  4, 1, 2),
    "stride equals the block":       (6, 10,  2, 1, 2),
    "stride equals an odd block":    (7, 11,  3, 2, 3),
    "stride 2, one row left over":   (5,  9,  4, 3, 2),
}
# fmt: on


def inputs(
    h: int,
    w: int,
    block: int,
    halo: int,
    stride: int = 1,
    tables: str | None = "halves",
    *,
    batch: int = 2,
    head_dim: int = 5,
) -> list[Tensor]:
    """q, k, v and, unless `tables` is None, both tables; random, float64, with 3 heads and 7 channels of v."""
    q = torch.randn(batch, -(-h // stride), -(-w // stride), 3, head_dim)
    k, v = torch.randn(batch, h, w, 3, head_dim), torch.randn(batch, h, w, 3, 7)
    widths = table_widths(head_dim, tables) if tables else ()
    embeddings = [torch.randn(table_rows(block, halo), width) for width in widths]
    return [tensor.double() for tensor in (q, k, v, *embeddings)]


def relative_of(tables: str | None) -> str:
    return tables or "halves"


# The equation


@pytest.mark.parametrize("tables", [None, "halves", "summed"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("sizes", WINDOWS.values(), ids=WINDOWS.keys())
def test_equals_the_oracle(sizes: tuple[int, ...], border: str, tables: str | None):
    _, _, block, halo, stride = sizes
    options = {"block": block, "halo": halo, "stride": stride, "border": border, "relative": relative_of(tables)}
    tensors = inputs(*sizes, tables)
    assert_close(halo_attention(*tensors, **options), halo_oracle(*tensors, **options))


@pytest.mark.parametrize("sizes", [(8, 12, 4, 1, 2), (7, 11, 6, 2, 3)], ids=["stride 2", "stride 3, odd sizes"])
def test_offsets_may_be_counted_from_the_index_of_the_query(sizes: tuple[int, ...]):
    _, _, block, halo, stride = sizes
    options = {"block": block, "halo": halo, "stride": stride, "offsets": "queries"}
    tensors = inputs(*sizes)
    out = halo_attention(*tensors, **options)
    assert_close(out, halo_oracle(*tensors, **options))
    assert not torch.allclose(out, halo_oracle(*tensors, block=block, halo=halo, stride=stride))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_equals_the_oracle_at_any_size(data: st.DataObject):
    h, w = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)), label="h, w")
    block, halo = data.draw(st.tuples(st.integers(1, 5), st.integers(0, 4)), label="block, halo")
    stride = data.draw(st.sampled_from([s for s in range(1, block + 1) if block % s == 0]), label="stride")
    border, relative = data.draw(st.tuples(st.sampled_from(BORDERS), st.sampled_from(["halves", "summed"])))
    head_dim = data.draw(st.integers(2, 4), label="head_dim")
    tensors = inputs(h, w, block, halo, stride, relative, batch=1, head_dim=head_dim)
    options = {"block": block, "halo": halo, "stride": stride, "border": border, "relative": relative, "scale": 0.7}
    assert_close(halo_attention(*tensors, **options), halo_oracle(*tensors, **options))


@pytest.mark.parametrize("tables", [None, "halves", "summed"])
@pytest.mark.parametrize("border", BORDERS)
def test_scale_multiplies_content_and_relative_logits(border: str, tables: str | None):
    options = {"block": 2, "halo": 1, "scale": 5**-0.5, "border": border, "relative": relative_of(tables)}
    tensors = inputs(6, 10, 2, 1, tables=tables)
    assert_close(halo_attention(*tensors, **options), halo_oracle(*tensors, **options))
    assert not torch.allclose(halo_attention(*tensors, **options), halo_attention(*tensors, **options | {"scale": 1.0}))


@pytest.mark.parametrize("head_dim", [1, 4, 5])
@pytest.mark.parametrize("relative", ["halves", "summed"])
def test_head_dim_may_be_odd_even_or_one(head_dim: int, relative: str):
    tensors = inputs(4, 6, 2, 1, tables=relative, head_dim=head_dim)
    options = {"block": 2, "halo": 1, "relative": relative}
    assert_close(halo_attention(*tensors, **options), halo_oracle(*tensors, **options))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_batch_may_be_one_or_odd(batch: int):
    tensors = inputs(4, 6, 2, 1, batch=batch)
    assert_close(halo_attention(*tensors, block=2, halo=1), halo_oracle(*tensors, block=2, halo=1))


def test_one_masked_block_over_the_map_is_global_attention():
    q, k, v = inputs(6, 10, 12, 2, tables=None)
    flat = [tensor.flatten(1, 2).transpose(1, 2) for tensor in (q, k, v)]
    expected = F.scaled_dot_product_attention(*flat).transpose(1, 2).unflatten(1, (6, 10))
    assert_close(halo_attention(q, k, v, block=12, halo=2, border="masked", scale=5**-0.5), expected)


@pytest.mark.parametrize("relative", ["halves", "summed"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_equal_finite_differences(stride: int, border: str, relative: str):
    tensors = [tensor.requires_grad_() for tensor in inputs(5, 7, 4, 1, stride, relative)]

    def attend(*tensors: Tensor) -> Tensor:
        return halo_attention(*tensors, block=4, halo=1, stride=stride, border=border, relative=relative, scale=0.8)

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)


# The border


@pytest.mark.parametrize("sizes", WINDOWS.values(), ids=WINDOWS.keys())
def test_constant_values_stay_constant_where_the_border_is_masked(sizes: tuple[int, ...]):
    _, _, block, halo, stride = sizes
    q, k, v, *tables = inputs(*sizes)
    out = halo_attention(q, k, torch.full_like(v, 3.0), *tables, block=block, halo=halo, stride=stride, border="masked")
    assert_close(out, torch.full_like(out, 3.0))


def test_padding_takes_weight_from_constant_values_at_a_zero_border_only():
    q, k, v, *tables = inputs(9, 12, 3, 2)
    out = halo_attention(q, k, torch.full_like(v, 3.0), *tables, block=3, halo=2, border="zero")
    interior = out[:, 3:6, 3:9].clone()
    assert_close(interior, torch.full_like(interior, 3.0))
    out[:, 3:6, 3:9] = 0
    assert (out < 3.0 - 1e-6).all()


def test_padding_at_a_zero_border_has_relative_logits():
    q, k, v, table_h, table_w = inputs(3, 4, 3, 1)
    towards_padding = table_h.clone()
    towards_padding[0] += 1  # offset -3: only from the last row of the block to the padding above it
    before, after = (halo_attention(q, k, v, table, table_w, block=3, halo=1) for table in (table_h, towards_padding))
    assert_close(after[:, :2], before[:, :2])
    assert not torch.isclose(after[:, 2], before[:, 2]).any()


@pytest.mark.parametrize("border", BORDERS)
def test_interior_queries_are_no_mean_of_the_values(border: str):
    # An inverted mask turns every interior block into the mean of its window.
    q, k, v, *tables = inputs(9, 12, 3, 1)
    interior = halo_attention(q, k, v, *tables, block=3, halo=1, border=border)[:, 3:6, 3:6]
    mean = v[:, 2:7, 2:7].mean((1, 2), keepdim=True)
    assert not torch.isclose(interior, mean, rtol=1e-3).all(dim=-1).any()


@pytest.mark.parametrize("border", BORDERS)
def test_interior_queries_find_the_key_that_they_match(border: str):
    q, k, v = inputs(9, 12, 3, 1, tables=None)
    q[..., 0], k[..., 0] = 30, -30
    k[:, 2, 6, :, 0] = 30
    interior = halo_attention(q, k, v, block=3, halo=1, border=border)[:, 3:6, 3:6]
    assert_close(interior, v[:, 2:3, 6:7].expand_as(interior))


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("size", [1e5, -1e5])
def test_huge_logits_neither_overflow_nor_pass_for_a_mask(size: float, border: str):
    q, k, v, *tables = inputs(5, 7, 3, 1)
    q[..., 0], k[..., 0] = 1, size
    options = {"block": 3, "halo": 1, "border": border}
    assert_close(halo_attention(q, k, v, *tables, **options), halo_oracle(q, k, v, *tables, **options))


# The window and its offsets


def test_nothing_outside_the_window_is_read():
    q, k, v, *tables = inputs(9, 12, 3, 1)
    expected = halo_attention(q, k, v, *tables, block=3, halo=1)[:, 3:6, 3:6]
    window = torch.zeros(9, 12, dtype=torch.bool)
    window[2:7, 2:7] = True
    for tensor in (k, v):
        tensor[:, ~window] = float("nan")
    assert_close(halo_attention(q, k, v, *tables, block=3, halo=1)[:, 3:6, 3:6], expected)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("axis", [1, 2])
def test_commutes_with_shifts_by_whole_blocks_only(axis: int, border: str):
    q, k, v, *tables = inputs(18, 15, 3, 2)
    still = halo_attention(q, k, v, *tables, block=3, halo=2, border=border)

    def agrees(shift: int) -> bool:
        shifted = halo_attention(
            *(tensor.roll(shift, axis) for tensor in (q, k, v)), *tables, block=3, halo=2, border=border
        )
        return torch.allclose(still.roll(shift, axis)[:, 6:12, 6:12], shifted[:, 6:12, 6:12])

    assert agrees(3)
    assert not agrees(1)
    assert not agrees(2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("tables", [None, "halves", "summed"])
def test_exchanging_the_axes_of_input_and_tables_exchanges_those_of_the_output(
    tables: str | None, border: str, stride: int
):
    q, k, v, *embeddings = inputs(7, 10, 4, 1, stride, tables, head_dim=4)
    options = {"block": 4, "halo": 1, "stride": stride, "border": border, "relative": relative_of(tables)}
    out = halo_attention(q, k, v, *embeddings, **options)
    turned_q, turned_k, turned_v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if tables == "halves":  # the channels that met the height now come second
        turned_q, turned_k = turned_q.roll(2, -1), turned_k.roll(2, -1)
    turned = halo_attention(turned_q, turned_k, turned_v, *embeddings[::-1], **options)
    assert_close(turned.transpose(1, 2), out)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("sizes", [(8, 12, 4, 1, 2), (7, 11, 4, 3, 2), (7, 11, 3, 2, 3), (9, 13, 6, 1, 3)])
def test_stride_keeps_every_nth_query_and_changes_nothing_else(sizes: tuple[int, ...], border: str):
    h, w, block, halo, stride = sizes
    q, k, v, *tables = inputs(h, w, block, halo)
    every = halo_attention(q, k, v, *tables, block=block, halo=halo, border=border)
    kept = halo_attention(q[:, ::stride, ::stride], k, v, *tables, block=block, halo=halo, stride=stride, border=border)
    assert_close(kept, every[:, ::stride, ::stride])


def rows_with_gradient(h: int, w: int, block: int, halo: int, stride: int, border: str) -> list[list[bool]]:
    q, k, v, *tables = inputs(h, w, block, halo, stride)
    tables = [table.requires_grad_() for table in tables]
    out = halo_attention(q, k, v, *tables, block=block, halo=halo, stride=stride, border=border)
    out.square().sum().backward()
    return [(table.grad != 0).any(dim=1).tolist() for table in tables]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("block", "halo"), [(2, 1), (3, 2), (2, 3), (1, 2), (4, 0)])
def test_every_row_of_the_tables_is_trained(block: int, halo: int, border: str):
    blocks = 3 if halo <= block else 5  # so that some window lies inside the map
    trained = rows_with_gradient(blocks * block, (blocks + 2) * block, block, halo, 1, border)
    assert trained == [[True] * (2 * block + 2 * halo - 1)] * 2


@pytest.mark.parametrize(("block", "halo", "stride"), [(4, 1, 2), (2, 1, 2), (6, 2, 3)])
def test_strided_queries_train_exactly_the_rows_of_their_true_offsets(block: int, halo: int, stride: int):
    # The last query of a block stands stride - 1 pixels before its end, so the lowest offsets do not occur.
    occurring = {key - query for query in range(0, block, stride) for key in range(-halo, block + halo)}
    expected = [offset in occurring for offset in range(-(block - 1) - halo, block + halo)]
    assert expected.count(False) == stride - 1
    assert rows_with_gradient(3 * block, 5 * block, block, halo, stride, "masked") == [expected] * 2


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_table_row_draws_the_query_to_the_key_at_that_offset(axis: int, stride: int):
    block, halo, offset = 4, 2, 3  # keys minus queries, in pixels of k
    q, k, v, *tables = inputs(12, 16, block, halo, stride, head_dim=2)
    q, k = torch.ones_like(q), torch.zeros_like(k)
    places = torch.arange(k.shape[axis]).double()
    v = places.reshape([-1 if i == axis else 1 for i in range(5)]).expand_as(v)
    for i, table in enumerate(tables, start=1):
        table.zero_()
        if i == axis:
            table[block - 1 + halo + offset] = 100
    out = halo_attention(q, k, v, *tables, block=block, halo=halo, stride=stride, border="masked")
    for place in range(4, 8 + halo - offset, stride):  # the queries of the second block whose window holds that key
        found = out.select(axis, place // stride)
        assert_close(found, torch.full_like(found, place + offset))


# Dtypes and memory


@pytest.mark.parametrize("tables", [None, "halves", "summed"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_exact_as_the_plain_equation_in_that_dtype(
    dtype: torch.dtype, border: str, tables: str | None
):
    options = {"block": 3, "halo": 1, "border": border, "scale": 5**-0.5, "relative": relative_of(tables)}
    rounded = [tensor.to(dtype) for tensor in inputs(5, 7, 3, 1, tables=tables)]
    actual = halo_attention(*rounded, **options)
    assert actual.dtype == dtype
    exact = [tensor.double() for tensor in rounded]
    (likely,) = simulated(lambda: [halo_attention(*exact, **options)], step_by_step(dtype), dtype)
    assert_as_exact_as(actual, likely, halo_attention(*exact, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("border", BORDERS)
def test_gradients_in_half_precision_stay_within_the_error_budget(border: str, dtype: torch.dtype):
    options = {"block": 2, "halo": 1, "border": border, "scale": 5**-0.5}
    rounded = [tensor.to(dtype) for tensor in inputs(3, 5, 2, 1, batch=1)]
    towards = torch.randn(1, 3, 5, 3, 7).to(dtype)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in rounded]
        return torch.autograd.grad(halo_attention(*leaves, **options), leaves, towards.to(dtype))

    likely = simulated(lambda: gradients(torch.float64), step_by_step(dtype), dtype)
    for triple in zip(gradients(dtype), likely, gradients(torch.float64), strict=True):
        assert_as_exact_as(*triple)


def test_tables_are_cast_to_the_dtype_of_the_queries():
    q, k, v, *tables = inputs(6, 10, 2, 1)
    maps = [tensor.bfloat16() for tensor in (q, k, v)]
    actual = halo_attention(*maps, *(table.float() for table in tables), block=2, halo=1)
    assert actual.dtype == torch.bfloat16
    assert_close(actual, halo_attention(*maps, *(table.bfloat16() for table in tables), block=2, halo=1))


@pytest.mark.parametrize("maps_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("border", BORDERS)
def test_autocast_keeps_the_dtype_of_the_values_and_stays_close(border: str, maps_dtype: torch.dtype):
    *maps, table_h, table_w = (tensor.float() for tensor in inputs(5, 7, 3, 1))
    leaves = [*(tensor.to(maps_dtype) for tensor in maps), table_h, table_w]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    options = {"block": 3, "halo": 1, "border": border, "scale": 0.5}
    with torch.autocast("cpu", torch.bfloat16):
        actual = halo_attention(*leaves, **options)
    assert actual.dtype == maps_dtype
    truth = halo_attention(*(tensor.double() for tensor in leaves), **options)
    rounded = [tensor.bfloat16().double() for tensor in leaves]
    (likely,) = simulated(lambda: [halo_attention(*rounded, **options)], step_by_step(torch.bfloat16), torch.bfloat16)
    assert_as_exact_as(actual, likely, truth)
    actual.float().square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.dtype == leaf.dtype
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_views_of_a_channels_last_convolution_need_no_copy(stride: int):
    images = torch.randn(3, 4, 6, 10).to(memory_format=torch.channels_last)
    project = nn.Conv2d(4, 3 * (5 + 5 + 7), 1).to(memory_format=torch.channels_last)
    packed = project(images).permute(0, 2, 3, 1).unflatten(-1, (3, 17))
    assert packed.is_contiguous(), "the convolution left channels-last memory"
    q, k, v = packed.split((5, 5, 7), dim=-1)
    q = q[:, ::stride, ::stride]
    assert not any(tensor.is_contiguous() for tensor in (q, k, v))
    actual = halo_attention(q, k, v, block=4, halo=1, stride=stride)
    expected = halo_attention(*(tensor.contiguous() for tensor in (q, k, v)), block=4, halo=1, stride=stride)
    assert_close(actual, expected)


def test_memory_may_be_in_any_order():
    tensors = inputs(7, 10, 4, 1)
    expected = halo_attention(*tensors, block=4, halo=1)
    channels_first = [tensor.movedim(-1, 1).contiguous().movedim(1, -1) for tensor in tensors]
    assert_close(halo_attention(*channels_first, block=4, halo=1), expected)
    every_other = [tensor.repeat_interleave(2, dim=-1)[..., ::2] for tensor in tensors]
    assert_close(halo_attention(*every_other, block=4, halo=1), expected)


def test_one_image_may_be_expanded_to_a_batch():
    q, k, v, *tables = inputs(7, 10, 4, 1, batch=1)
    out = halo_attention(*(tensor.expand(3, -1, -1, -1, -1) for tensor in (q, k, v)), *tables, block=4, halo=1)
    assert_close(out, halo_attention(q, k, v, *tables, block=4, halo=1).expand(3, -1, -1, -1, -1))


def test_inputs_are_left_as_they_were():
    tensors = inputs(7, 10, 4, 1)
    before = [tensor.clone() for tensor in tensors]
    halo_attention(*tensors, block=4, halo=1, border="masked")
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)
