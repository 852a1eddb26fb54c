"""Axial attention: the equation, the table of offsets, dtypes and memory layouts."""

import pytest
import torch
from error_budget import assert_as_exact_as
from oracles.axial import axial_oracle
from simulated_rounding import simulated, step_by_step
from torch import Tensor, nn
from torch.testing import assert_close

from parhelion.ops import axial_attention, content_attention

AXES = ("h", "w")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def inputs(h: int, w: int, axis: str, *, batch: int = 2, heads: int = 3, spare: int = 0) -> list[Tensor]:
    """q, v and a table with `spare` rows too many at each end; random, float64, 5 channels of q and 7 of v."""
    rows = 2 * (h if axis == "h" else w) - 1 + 2 * spare
    shapes = (batch, h, w, heads, 5), (batch, h, w, heads, 7), (rows, 5)
    return [torch.randn(shape).double() for shape in shapes]


@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("h", "w"), [(6, 10), (7, 4), (1, 9), (9, 1), (1, 1)])
def test_equals_the_oracle(h: int, w: int, axis: str, spare: int):
    tensors = inputs(h, w, axis, spare=spare)
    assert_close(axial_attention(*tensors, axis=axis), axial_oracle(*tensors, axis=axis))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_batch_may_be_one_or_odd(batch: int, axis: str):
    tensors = inputs(4, 6, axis, batch=batch)
    assert_close(axial_attention(*tensors, axis=axis), axial_oracle(*tensors, axis=axis))


@pytest.mark.parametrize("axis", AXES)
def test_gradients_equal_finite_differences(axis: str):
    tensors = [tensor.requires_grad_() for tensor in inputs(6, 10, axis, spare=1)]

    def attend(*tensors: Tensor) -> Tensor:
        return axial_attention(*tensors, axis=axis)

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)


@pytest.mark.parametrize("axis", AXES)
def test_a_longer_table_uses_its_middle_rows(axis: str):
    q, v, table = inputs(6, 10, axis, spare=4)
    table.requires_grad_()
    out = axial_attention(q, v, table, axis=axis)
    assert_close(out, axial_attention(q, v, table[4:-4], axis=axis))
    out.square().sum().backward()
    used = (table.grad != 0).any(dim=1).tolist()
    assert used == [False] * 4 + [True] * (len(used) - 8) + [False] * 4


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("offset", [-2, 0, 3])
def test_a_row_of_the_table_fetches_the_value_at_that_offset(offset: int, axis: str):
    q, v, table = inputs(6, 10, axis)
    length, dim = (6, 1) if axis == "h" else (10, 2)
    table.zero_()
    table[len(table) // 2 + offset] = 1
    out = axial_attention(torch.full_like(q, 1 / 5), v, table, axis=axis)
    expected = torch.zeros_like(v)
    reached = [place for place in range(length) if 0 <= place + offset < length]
    expected.index_copy_(dim, torch.tensor(reached), v.roll(-offset, dim).index_select(dim, torch.tensor(reached)))
    assert_close(out, expected)


def test_exchanging_the_axes_of_the_input_exchanges_those_of_the_output():
    q, v, table = inputs(6, 10, "h")
    turned = axial_attention(q.transpose(1, 2), v.transpose(1, 2), table, axis="w")
    assert_close(turned.transpose(1, 2), axial_attention(q, v, table, axis="h"))


@pytest.mark.parametrize("axis", AXES)
def test_pixels_off_the_axis_are_not_read(axis: str):
    q, v, table = inputs(6, 10, axis)
    expected = axial_attention(q, v, table, axis=axis)[:, 2, 3]
    line = v[:, :, 3].clone() if axis == "h" else v[:, 2].clone()
    v.fill_(float("nan"))
    if axis == "h":
        v[:, :, 3] = line
    else:
        v[:, 2] = line
    assert_close(axial_attention(q, v, table, axis=axis)[:, 2, 3], expected)


@pytest.mark.parametrize("axis", AXES)
def test_there_is_no_softmax_so_queries_and_values_enter_linearly(axis: str):
    q, v, table = inputs(6, 10, axis)
    out = axial_attention(q, v, table, axis=axis)
    assert_close(axial_attention(-2.0 * q, v, table, axis=axis), -2.0 * out)
    assert_close(axial_attention(q, -2.0 * v, table, axis=axis), -2.0 * out)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_as_exact_as_the_plain_equation_in_that_dtype(dtype: torch.dtype, axis: str):
    rounded = [tensor.to(dtype) for tensor in inputs(6, 10, axis)]
    actual = axial_attention(*rounded, axis=axis)
    assert actual.dtype == dtype
    exact = [tensor.double() for tensor in rounded]
    (likely,) = simulated(lambda: [axial_attention(*exact, axis=axis)], step_by_step(dtype), dtype)
    assert_as_exact_as(actual, likely, axial_attention(*exact, axis=axis))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_half_precision_stay_within_the_error_budget(dtype: torch.dtype, axis: str):
    rounded = [tensor.to(dtype) for tensor in inputs(3, 5, axis, batch=1)]
    towards = torch.randn(1, 3, 5, 3, 7).to(dtype)

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [tensor.to(dtype).requires_grad_() for tensor in rounded]
        return torch.autograd.grad(axial_attention(*leaves, axis=axis), leaves, towards.to(dtype))

    likely = simulated(lambda: gradients(torch.float64), step_by_step(dtype), dtype)
    for triple in zip(gradients(dtype), likely, gradients(torch.float64), strict=True):
        assert_as_exact_as(*triple)


def test_the_table_is_cast_to_the_dtype_of_the_queries():
    q, v, table = inputs(6, 10, "h")
    actual = axial_attention(q.bfloat16(), v.bfloat16(), table.float(), axis="h")
    assert actual.dtype == torch.bfloat16
    assert_close(actual, axial_attention(q.bfloat16(), v.bfloat16(), table.bfloat16(), axis="h"))


@pytest.mark.parametrize("maps_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("axis", AXES)
def test_autocast_keeps_the_dtype_of_the_values_and_stays_close(axis: str, maps_dtype: torch.dtype):
    q, v, table = inputs(6, 10, axis)
    leaves = [q.to(maps_dtype), v.to(maps_dtype), table.float()]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        actual = axial_attention(*leaves, axis=axis)
    assert actual.dtype == maps_dtype
    truth = axial_attention(*(tensor.double() for tensor in leaves), axis=axis)
    rounded = [tensor.bfloat16().double() for tensor in leaves]
    (likely,) = simulated(lambda: [axial_attention(*rounded, axis=axis)], step_by_step(torch.bfloat16), torch.bfloat16)
    assert_as_exact_as(actual, likely, truth)
    actual.float().square().sum().backward()
    for leaf in leaves:
        assert leaf.grad.dtype == leaf.dtype
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("axis", AXES)
def test_views_of_a_channels_last_convolution_need_no_copy(axis: str):
    images = torch.randn(3, 4, 6, 10).to(memory_format=torch.channels_last)
    project = nn.Conv2d(4, 3 * (5 + 7), 1).to(memory_format=torch.channels_last)
    packed = project(images).permute(0, 2, 3, 1).unflatten(-1, (3, 12))
    assert packed.is_contiguous(), "the convolution left channels-last memory"
    q, v = packed.split((5, 7), dim=-1)
    assert not q.is_contiguous()
    assert not v.is_contiguous()
    table = torch.randn(19, 5)
    assert_close(
        axial_attention(q, v, table, axis=axis),
        axial_attention(q.contiguous(), v.contiguous(), table, axis=axis),
    )


@pytest.mark.parametrize("axis", AXES)
def test_memory_may_be_in_any_order(axis: str):
    tensors = inputs(6, 10, axis)
    expected = axial_attention(*tensors, axis=axis)
    channels_first = [tensor.movedim(-1, 1).contiguous().movedim(1, -1) for tensor in tensors]
    assert_close(axial_attention(*channels_first, axis=axis), expected)
    every_other = [tensor.repeat_interleave(2, dim=-1)[..., ::2] for tensor in tensors]
    assert_close(axial_attention(*every_other, axis=axis), expected)


@pytest.mark.parametrize("axis", AXES)
def test_one_image_may_be_expanded_to_a_batch(axis: str):
    q, v, table = inputs(6, 10, axis, batch=1)
    out = axial_attention(*(tensor.expand(3, -1, -1, -1, -1) for tensor in (q, v)), table, axis=axis)
    assert_close(out, axial_attention(q, v, table, axis=axis).expand(3, -1, -1, -1, -1))


@pytest.mark.parametrize("axis", AXES)
def test_inputs_are_left_as_they_were(axis: str):
    tensors = inputs(6, 10, axis)
    before = [tensor.clone() for tensor in tensors]
    axial_attention(*tensors, axis=axis)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def test_columns_then_rows_beside_content_equal_gsa_pytorch():
    theirs = pytest.importorskip("gsa_pytorch").GSA(
        4, dim_out=15, dim_key=5, heads=3, rel_pos_length=11, batch_norm=False
    )
    theirs.to_out = nn.Identity()
    images = torch.randn(2, 4, 6, 10)
    q, k, v = theirs.to_qkv(images).permute(0, 2, 3, 1).unflatten(-1, (3, 3, 5)).unbind(3)
    columns = axial_attention(q, v, theirs.rel_rows, axis="h")
    out = content_attention(q, k, v) + axial_attention(q, columns, theirs.rel_columns, axis="w")
    # In float32, since theirs fails in float64 where positions are on.
    assert_close(out.flatten(-2).permute(0, 3, 1, 2), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", ["h", "w"])
def test_the_reference_returns_the_dtype_of_v_under_autocast(axis: str):
    q, v, table = torch.randn(2, 6, 10, 3, 5), torch.randn(2, 6, 10, 3, 7), torch.randn(19, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = axial_attention(q, v, table, axis=axis, impl="reference")
    assert out.dtype == torch.float32
