"""The compiled kernels against the reference: every size, dtype and level of instructions; memory, NaN, extremes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from error_budget import assert_as_exact_as
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    CASES,
    FEW,
    KERNEL_DTYPES,
    Case,
    assert_equal,
    assert_within_budget,
    content,
    edges,
    halo,
    result_and_gradients,
    results,
)
from kernel_cases import axial as axial_case
from memory_layouts import (
    amid_channels_of_nan,
    amid_nan,
    axes_exchanged,
    channels_first,
    every_other_channel,
    every_other_pixel,
    heads_first,
)
from simulated_rounding import fused, simulated
from torch import Tensor
from torch.testing import assert_close

from parhelion import native
from parhelion.ops import axial_attention, content_attention, halo_attention

dtypes = pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
few = pytest.mark.parametrize("case", [CASES[name] for name in FEW], ids=FEW)
on_edges = pytest.mark.parametrize("case", edges())


# Exactness


def assert_right(case: Case, actual: list[Tensor], dtype: torch.dtype) -> None:
    """Fail if a result is wrong, be it exact or not: a search for the worst case finds unlucky roundings otherwise."""
    exact = [tensor.double() for tensor in case.tensors(dtype)]
    expected = result_and_gradients(case, exact, "reference")
    largest = max((truth.abs().max().item() for truth in expected if truth.numel()), default=0.0)
    for tensor, truth in zip(actual, expected, strict=True):
        assert_close(tensor.double(), truth, rtol=0, atol=100 * torch.finfo(dtype).eps * largest)


@dtypes
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_output_and_gradients_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype, level: str):
    assert_within_budget(case, results(case, dtype), dtype)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@settings(deadline=None, derandomize=True, max_examples=12)
@given(data=st.data())
def test_output_and_gradients_are_right_at_any_size(dtype: torch.dtype, data: st.DataObject):
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), label=name)

    h, w, batch = draw(1, 11, "h"), draw(1, 11, "w"), draw(0, 3, "batch")
    sizes = {"d": draw(1, 18, "d"), "e": draw(1, 18, "e"), "heads": draw(1, 3, "heads"), "batch": batch}
    block, border = draw(1, 9, "block"), data.draw(st.sampled_from(["zero", "masked"]), label="border")
    stride = data.draw(st.sampled_from([s for s in range(1, block + 1) if block % s == 0]), label="stride")
    tables = data.draw(st.sampled_from([None, "halves", "summed"]), label="tables")
    cases = [
        halo(h, w, block, draw(0, 6, "halo"), stride, tables=tables, border=border, **sizes),
        content(h, w, **sizes),
        axial_case(h, w, data.draw(st.sampled_from("hw"), label="axis"), **sizes),
    ]
    for level in native.LEVELS:
        if native.why_not_level(level) is None:
            with native.using(level):
                for case in cases:
                    assert_right(case, result_and_gradients(case, case.tensors(dtype)), dtype)


@dtypes
@few
def test_logits_of_ten_thousand_stay_finite_and_exact(case: Case, dtype: torch.dtype, level: str):
    case = Case(case.attend, case.shapes, largeness=3e3)
    assert_within_budget(case, results(case, dtype), dtype)


@dtypes
def test_keys_of_ten_thousand_stay_finite_and_exact(dtype: torch.dtype, level: str):
    case = content(9, 15)
    q, k, *others = case.tensors(dtype)
    assert_exact(case, [q, k * 1e4, *others], dtype)


def assert_exact(case: Case, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Fail unless output and gradients for these very tensors are within budget; returns them."""
    exact = [tensor.double() for tensor in tensors]
    reference = partial(result_and_gradients, case, exact, "reference")
    actual = result_and_gradients(case, tensors)
    for triple in zip(actual, simulated(reference, fused(dtype), dtype), reference(), strict=True):
        assert_as_exact_as(*triple)
    return actual


def with_logits_that_grow_outwards(slope: float, case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The tensors of a call where a key's logit is `slope` times its distance, times what the query has."""
    q, k, v, table_h, table_w, towards = case.tensors(dtype)
    distance = (torch.arange(len(table_h)) - len(table_h) // 2).abs()
    tables = ((slope * distance).to(dtype)[:, None].expand_as(table).contiguous() for table in (table_h, table_w))
    return [q.abs() + 0.5, k, v, *tables, towards]


@dtypes
@pytest.mark.parametrize("slope", [1.0, -1.0], ids=["outside dominates", "outside vanishes"])
def test_the_softmax_mass_outside_the_image_is_exact(slope: float, dtype: torch.dtype, level: str):
    case = halo(7, 10, 4, 3, scale=1.0)
    tensors = with_logits_that_grow_outwards(slope, case, dtype)
    assert_exact(case, tensors, dtype)


@dtypes
@pytest.mark.parametrize("slope", [300.0, -300.0], ids=["outside alone", "inside alone"])
def test_keys_outside_the_image_may_take_all_of_the_softmax_or_nothing(slope: float, dtype: torch.dtype, level: str):
    case = halo(7, 10, 4, 3, scale=1.0)
    tensors = with_logits_that_grow_outwards(slope, case, dtype)
    actual = assert_exact(case, tensors, dtype)
    # The farthest key of this query is above and left of the image; the nearest is itself.
    assert_close(actual[0][:, 3, 3], tensors[2][:, 3, 3] * (slope < 0))


# Memory


@pytest.fixture
def poison() -> Callable[[], None]:
    """Fill new tensors, and what the kernels keep from call to call, with NaN from now on."""

    def start() -> None:
        torch.use_deterministic_algorithms(True)
        assert torch.empty(3).isnan().all()
        for case in (halo(13, 9, 12, 2, d=33, e=33), content(9, 9, d=64, e=64), axial_case(80, 9, "h", d=33, e=33)):
            result_and_gradients(case, [torch.full_like(tensor, torch.nan) for tensor in case.tensors(torch.float32)])

    yield start
    torch.use_deterministic_algorithms(False)


@dtypes
@on_edges
def test_what_memory_held_before_does_not_matter(
    case: Case, dtype: torch.dtype, level: str, poison: Callable[[], None]
):
    tensors = case.tensors(dtype)
    before = result_and_gradients(case, tensors)
    poison()
    assert_equal(result_and_gradients(case, tensors), before)


@dtypes
@on_edges
def test_nothing_beside_the_maps_is_read(case: Case, dtype: torch.dtype, level: str):
    tensors = case.tensors(dtype)
    actual = result_and_gradients(case, [amid_nan(tensor) for tensor in tensors])
    assert_equal(actual, result_and_gradients(case, tensors))


LAYOUTS = (channels_first, heads_first, axes_exchanged, every_other_channel, every_other_pixel, amid_channels_of_nan)


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@few
def test_memory_may_be_in_any_order(case: Case, layout: Callable[[Tensor], Tensor], dtype: torch.dtype, level: str):
    tensors = case.tensors(dtype)
    laid_out = [layout(tensor) if tensor.ndim == 5 else tensor.t().contiguous().t() for tensor in tensors]
    assert_equal(result_and_gradients(case, laid_out), result_and_gradients(case, tensors))


@dtypes
@few
def test_gradients_may_be_expanded(case: Case, dtype: torch.dtype, level: str):
    *leaves, towards = case.tensors(dtype)
    expanded = towards[:1, :1, :1, :1, :1].expand_as(towards)
    assert_equal(
        result_and_gradients(case, [*leaves, expanded]), result_and_gradients(case, [*leaves, expanded.contiguous()])
    )


@dtypes
def test_queries_keys_and_values_may_be_views_of_one_packed_map(dtype: torch.dtype, level: str):
    packed = torch.randn(2, 9, 13, 3, 5 + 5 + 7).to(dtype)
    # All heads' queries, then, head by head, keys and values; or q, k and v of a head side by side.
    beside = packed.flatten(-2)
    q = beside[..., :15].unflatten(-1, (3, 5))
    k, v = beside[..., 15:].unflatten(-1, (3, 12)).split((5, 7), dim=-1)
    for maps in ((q, k, v), packed.split((5, 5, 7), dim=-1)):
        apart = [tensor.contiguous() for tensor in maps]
        assert not any(tensor.is_contiguous() for tensor in maps)
        table = torch.randn(17, 5)
        for attend, some, tables in (
            (lambda *tensors: halo_attention(*tensors, block=4, halo=1, impl="cpu"), (0, 1, 2), ()),
            (lambda *tensors: content_attention(*tensors, impl="cpu"), (0, 1, 2), ()),
            (lambda *tensors: axial_attention(*tensors, axis="h", impl="cpu"), (0, 2), (table,)),
        ):
            actual = attend(*(maps[i] for i in some), *tables)
            assert torch.equal(actual, attend(*(apart[i] for i in some), *tables))


@dtypes
def test_one_image_may_be_expanded_to_a_batch(dtype: torch.dtype, level: str):
    for case in (halo(7, 10, 4, 1, batch=1), content(7, 10, batch=1), axial_case(7, 10, "h", batch=1)):
        maps = [tensor for tensor in case.tensors(dtype)[:-1] if tensor.ndim == 5]
        tables = [tensor for tensor in case.tensors(dtype)[:-1] if tensor.ndim == 2]
        out = case.attend(*(tensor.expand(3, -1, -1, -1, -1) for tensor in maps), *tables, impl="cpu")
        assert torch.equal(out, case.attend(*maps, *tables, impl="cpu").expand(3, -1, -1, -1, -1))


@dtypes
@few
def test_inputs_are_left_as_they_were(case: Case, dtype: torch.dtype, level: str):
    tensors = case.tensors(dtype)
    result_and_gradients(case, tensors)
    assert_equal(tensors, case.tensors(dtype))


# Not a number


@dtypes
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", [*FEW, "halo: no tables, masked"])
def test_what_is_not_finite_shows_in_the_outputs_of_the_equation(
    name: str, value: float, dtype: torch.dtype, level: str
):
    case = CASES[name]
    tensors = case.tensors(dtype)[:-1]
    for which, tensor in enumerate(tensors):
        if tensor.ndim == 2 and value == value:  # an infinite embedding makes some logits infinite, others not
            continue
        broken = list(tensors)
        broken[which] = tensor.clone()
        broken[which].view(-1)[tensor.numel() // 3] = value
        actual = case.attend(*broken, impl="cpu")
        truth = case.attend(*(tensor.double() for tensor in broken), impl="reference")
        assert torch.equal(actual.isnan(), truth.isnan())
        assert torch.equal(actual.isinf(), truth.isinf())


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7FC000FF, -1], ids=hex)
def test_every_bit_pattern_of_not_a_number_is_one(bits: int, level: str):
    for case in (halo(7, 9, 4, 1), content(7, 9)):
        q, k, v, *tables, _ = case.tensors(torch.float32)
        k.view(torch.int32)[0, 3, 4, 1, 2] = bits
        actual, baseline = (case.attend(q, k, v, *tables, impl=impl) for impl in ("cpu", "reference"))
        assert torch.equal(actual.isnan(), baseline.isnan())
