"""The Triton kernels against the reference: on a GPU, or in Triton's interpreter at small sizes."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import pytest
import torch
from kernel_cases import (
    DRAWS,
    Case,
    assert_equal,
    assert_within_budget,
    axial,
    axial_attention_plus,
    content,
    halo,
    result_and_gradients,
    results,
)
from memory_layouts import amid_channels_of_nan, amid_nan, axes_exchanged, channels_first, heads_first
from simulated_rounding import fused_on_gpu
from tensor_cores import TensorCore, interpreted_on
from torch import Tensor
from triton_cases import DEVICE, EVERY, REAL, REAL_NARROW, SMALL, calls, smaller

from parhelion.ops import axial_attention, content_attention, gpu, halo_attention

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        DEVICE == "cpu" and not gpu.interpreted(), reason="wants a GPU, or TRITON_INTERPRET=1 to run on the CPU"
    ),
]
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())
# One more of many cases, for which the interpreter takes seconds.
interpreted_for_long = [pytest.mark.thorough] if DEVICE == "cpu" else []


def but(slow: str) -> pytest.MarkDecorator:
    """Every small case; the interpreter computes the one called `slow` for `make test-all` only."""
    cases = [
        pytest.param(case, id=name, marks=interpreted_for_long if name == slow else []) for name, case in SMALL.items()
    ]
    return pytest.mark.parametrize("case", cases)


bfloat16 = pytest.param(torch.bfloat16, marks=(pytest.mark.gpu, pytest.mark.gpu_first))


def run(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients, computed by the kernels on the device."""
    found = result_and_gradients(case, [tensor.to(DEVICE) for tensor in tensors], "triton")
    return [tensor.cpu() for tensor in found]


@cache
def expected_run(case: Case) -> list[Tensor]:
    """Output and gradients of the case in float32."""
    return run(case, case.tensors(torch.float32))


# Exactness


def assert_on_gpu_within_budget(case: Case, dtype: torch.dtype, core: TensorCore | None = None) -> None:
    """Fail unless the kernels' output and gradients are as exact as their arithmetic allows.

    In the interpreter, a tensor core is emulated: `core`, or the least exact.
    """
    draws = DRAWS if DEVICE == "cuda" else 1  # the interpreter is slow
    with nullcontext() if DEVICE == "cuda" else interpreted_on(core or TensorCore()):
        actual = results(case, dtype, "triton", device=DEVICE, draws=draws)
    assert_within_budget(case, actual, dtype, arithmetic=fused_on_gpu(dtype), draws=draws, device=DEVICE)


@calls(EVERY)
def test_output_and_gradients_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype):
    assert_on_gpu_within_budget(smaller(case), dtype)


@calls(SMALL, thorough=(torch.float32,))
def test_several_images_and_heads_are_kept_apart(case: Case, dtype: torch.dtype):
    shapes = tuple((2, *shape[1:3], 3, shape[4]) if len(shape) == 5 else shape for shape in case.shapes)
    assert_on_gpu_within_budget(replace(case, shapes=shapes), dtype)


@calls(SMALL, thorough=(torch.float32,))
def test_logits_of_ten_thousand_stay_finite_and_exact(case: Case, dtype: torch.dtype):
    case = replace(case, largeness=3e3)
    if dtype == torch.float16:
        case = replace(case, largeness=300.0)  # float16 ends at 65504
    assert_on_gpu_within_budget(case, dtype)


@calls(REAL)
def test_real_sizes_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype):
    assert_on_gpu_within_budget(case, dtype)


@calls(REAL_NARROW, (torch.bfloat16, torch.float16))
def test_values_of_256_channels_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype):
    assert_on_gpu_within_budget(case, dtype)


# Errors are many here, so that chance leaves little room.
MANY_ERRORS = {
    "halo": halo(7, 11, 4, 1, batch=1, tables=None),
    "content": EVERY["content: more than one chunk of pixels"],
    "axial": axial(5, 16, "h", d=16, e=12, heads=2, batch=1),
}
many_errors = pytest.mark.parametrize("case", MANY_ERRORS.values(), ids=MANY_ERRORS.keys())


@many_errors
@pytest.mark.usefixtures("tf32_setting")
def test_one_product_of_tf32_is_not_exact_enough_for_float32(case: Case):
    assert_on_gpu_within_budget(case, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True
    with pytest.raises(AssertionError, match="errs by"):
        assert_on_gpu_within_budget(case, torch.float32)


@pytest.mark.skipif(DEVICE == "cuda", reason="wants the interpreter: a GPU's tensor cores lose no bits")
@many_errors
def test_kernels_on_tensor_cores_that_lose_two_bits_are_not_exact_enough(case: Case):
    with pytest.raises(AssertionError, match="errs by"):
        assert_on_gpu_within_budget(case, torch.float32, TensorCore(lost=2))


# The interpreter runs one program after the other.
@pytest.mark.parametrize(
    "dtype",
    [bfloat16, *(pytest.param(dtype, marks=interpreted_for_long) for dtype in (torch.float16, torch.float32))],
    ids=str,
)
def test_two_runs_are_bitwise_equal(dtype: torch.dtype):
    for case in SMALL.values():
        assert_equal(run(case, case.tensors(dtype)), run(case, case.tensors(dtype)))


# Memory


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill new tensors with NaN meanwhile."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu_first
@but("halo")
@pytest.mark.usefixtures("poison")
def test_what_memory_held_before_does_not_matter(case: Case):
    found = run(case, case.tensors(torch.float32))
    torch.use_deterministic_algorithms(False)
    assert_equal(found, expected_run(case))


@but("halo")
def test_nothing_beside_the_maps_is_read(case: Case):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float16)]
    assert_equal(run(case, [amid_nan(tensor) for tensor in tensors]), run(case, tensors))


LAYOUTS = (
    channels_first,
    amid_channels_of_nan,
    *(pytest.param(layout, marks=interpreted_for_long) for layout in (heads_first, axes_exchanged)),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@but("halo")
def test_memory_may_be_in_any_order(case: Case, layout: Callable[[Tensor], Tensor]):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    laid_out = [layout(tensor) if tensor.ndim == 5 else tensor.t().contiguous().t() for tensor in tensors]
    assert_equal(run(case, laid_out), expected_run(case))


@but("halo, stride 2")
def test_gradients_may_be_expanded(case: Case):
    *leaves, towards = case.tensors(torch.float32)
    expanded = towards[:1, :1, :1, :1, :1].expand_as(towards)
    assert_equal(run(case, [*leaves, expanded]), run(case, [*leaves, expanded.contiguous()]))


# Dtypes


@but("halo, stride 2")
def test_tables_stay_in_their_own_dtype(case: Case):
    tensors = case.tensors(torch.float16)
    wide = [tensor.float() if tensor.ndim == 2 else tensor for tensor in tensors]
    found = run(case, wide)
    for gradient, leaf in zip(found[1:], wide[:-1], strict=True):
        assert gradient.dtype == leaf.dtype
    assert_equal([tensor.to(torch.float16) for tensor in found], run(case, tensors))


# Not a number


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), pytest.param(float("-inf"), marks=interpreted_for_long)], ids=str
)
@small
def test_what_is_not_finite_shows_in_the_outputs_of_the_equation(case: Case, value: float):
    tensors = case.tensors(torch.float32)[:-1]
    for which, tensor in enumerate(tensors):
        if tensor.ndim == 2 and value == value:  # an infinite embedding makes some logits infinite, others not
            continue
        broken = list(tensors)
        broken[which] = tensor.clone()
        broken[which].view(-1)[tensor.numel() // 3] = value
        actual = case.attend(*(tensor.to(DEVICE) for tensor in broken), impl="triton").cpu()
        truth = case.attend(*(tensor.double() for tensor in broken), impl="reference")
        if case.attend.func in (axial_attention, axial_attention_plus):
            # Short lines share products, so more of them may be lost; but none that is lost looks sound.
            assert actual.isfinite().logical_and(~truth.isfinite()).sum() == 0
        else:
            assert torch.equal(actual.isnan(), truth.isnan())


# On a GPU only


@pytest.mark.gpu
@pytest.mark.gpu_first
@pytest.mark.parametrize("name", [name for name in REAL if "64 channels" in name])
def test_a_cuda_graph_replays_the_kernels(name: str):
    case = REAL[name]
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.bfloat16)]
    expected = result_and_gradients(case, tensors, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = result_and_gradients(case, tensors, "triton")
    for tensor in replayed:
        tensor.fill_(torch.nan)
    graph.replay()
    assert_equal(replayed, expected)


@pytest.mark.gpu
def test_auto_runs_the_kernels_on_a_gpu():
    for case in (halo(6, 10, 4, 1), content(6, 10), axial(6, 10, "h")):
        tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)[:-1]]
        assert torch.equal(case.attend(*tensors), case.attend(*tensors, impl="triton"))


# Without gradients


def test_a_result_that_needs_no_gradient_keeps_no_graph():
    for attend, count, options in (
        (halo_attention, 3, {"block": 4, "halo": 1}),
        (content_attention, 3, {}),
        (axial_attention, 2, {"axis": "h"}),
    ):
        maps = [torch.randn(1, 3, 4, 2, 8, device=DEVICE) for _ in range(count)]
        tables = [torch.randn(5, 8, device=DEVICE)] if attend is axial_attention else []
        assert not attend(*maps, *tables, impl="triton", **options).requires_grad
        with torch.no_grad():
            maps[0].requires_grad_()
            assert not attend(*maps, *tables, impl="triton", **options).requires_grad
