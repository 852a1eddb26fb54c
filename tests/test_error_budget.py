"""The budget that the other tests rely on: right results pass, and what loses two bits does not."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from error_budget import assert_as_exact_as, independent
from kernel_cases import CASES, Case, assert_within_budget, result_and_gradients
from simulated_rounding import fused, fused_on_gpu, simulated, step_by_step
from tensor_cores import OnTensorCore, TensorCore
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Several of each operation.
NAMES = (
    "halo: stride 2",
    "halo: summed, masked",
    "content",
    "content: queries normalised",
    "axial: columns",
    "axial: rows",
)
cases = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)
too_much = pytest.raises(AssertionError, match="errs by")


def two_bits_fewer(number: Tensor) -> Tensor:
    """The number, rounded so that its mantissa has two bits fewer than its dtype offers."""
    bits = round(-math.log2(torch.finfo(number.dtype).eps)) + 1 - 2
    mantissa, exponent = torch.frexp(number.double())
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits).to(number.dtype)


class TwoBitsFewer(TorchDispatchMode):
    """Let every number that PyTorch computes in float32 have two bits fewer, running sums in products too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.bmm:
            return self._product(*args)
        result = func(*args, **(kwargs or {}))
        computed = isinstance(result, Tensor) and result.dtype == torch.float32 and not func.is_view
        return two_bits_fewer(result) if computed else result

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        total = torch.zeros(left.shape[0], left.shape[1], right.shape[2])
        for depth in range(left.shape[2]):
            terms = left[:, :, depth, None] * right[:, depth, None, :]
            total = two_bits_fewer(total + two_bits_fewer(terms))
        return total


def kernel(case: Case, dtype: torch.dtype, inside: AbstractContextManager[Any] | None = None) -> list[Tensor]:
    """Output and gradients of two draws as a kernel makes them: read in `dtype`, computed in float32, rounded once."""
    each = []
    for draw in range(2):
        wide = [tensor.float() for tensor in case.tensors(dtype, draw)]
        with inside or nullcontext():
            each.append([tensor.to(dtype) for tensor in result_and_gradients(case, wide, "reference")])
    return [torch.stack(tensors) for tensors in zip(*each, strict=True)]


@cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_that_lose_two_bits_do_not_pass(case: Case, dtype: torch.dtype):
    right = kernel(case, dtype)
    assert_within_budget(case, right, dtype)
    with too_much:
        assert_within_budget(case, [two_bits_fewer(tensor) for tensor in right], dtype)


@cases
def test_a_computation_that_loses_two_bits_does_not_pass(case: Case):
    assert_within_budget(case, kernel(case, torch.float32), torch.float32)
    with too_much:
        assert_within_budget(case, kernel(case, torch.float32, TwoBitsFewer()), torch.float32)


# Besides, those whose errors were above a budget that did not know tensor cores.
ON_GPU = (*NAMES, "halo: no tables", "content: heads of 64", "axial: many lines", "axial: long lines")


def on(core: TensorCore, case: Case) -> list[Tensor]:
    """What a kernel gives on a tensor core."""
    return kernel(case, torch.float32, OnTensorCore(core))


@pytest.mark.parametrize("case", [CASES[name] for name in ON_GPU], ids=ON_GPU)
def test_what_tensor_cores_make_of_float32_passes_unless_two_bits_are_lost(case: Case):
    budget = {"arithmetic": fused_on_gpu(torch.float32)}
    for right in (TensorCore(), TensorCore(terms=8, spare=2)):
        assert_within_budget(case, on(right, case), torch.float32, **budget)
    for wrong in (TensorCore(lost=2), TensorCore(products=1)):
        with too_much:
            assert_within_budget(case, on(wrong, case), torch.float32, **budget)


@pytest.mark.parametrize("draw", [torch.randn, torch.rand], ids=["of either sign", "of one sign"])
@pytest.mark.parametrize("terms", [1, 2, 5, 16, 64])
def test_simulated_errors_of_a_tensor_core_are_as_large_as_those_of_an_emulated_one(
    terms: int, draw: Callable[..., Tensor]
):
    left, right = draw(6, 40, terms), draw(6, terms, 50)
    truth = left.double() @ right.double()
    (likely,) = simulated(lambda: [left.double() @ right.double()], fused_on_gpu(torch.float32), torch.float32)
    ratio = (TensorCore().product(left, right) - truth).square().mean().sqrt() / (likely - truth).square().mean().sqrt()
    assert 0.5 < ratio < 1.1


def test_emulated_products_of_tf32_drop_what_tf32_drops():
    left = torch.tensor([[1 + 2**-11, 3.0 - 2**-22]])  # halfway to the next number of tf32; almost one of them
    right = torch.tensor([[1.0], [1.0]])
    assert TensorCore(products=1).product(left, right).item() == 1 + 2**-10 + 3
    assert TensorCore().product(left[:, :1], right[:1]).item() == 1 + 2**-11
    assert TensorCore().product(left, right).item() == pytest.approx(4 + 2**-11, abs=2**-21)


def test_one_wrong_number_among_many_is_found():
    truth = torch.randn(40, 30, 20).double()
    likely = truth + 1e-3 * torch.randn_like(truth)
    actual = truth + 1e-3 * torch.randn_like(truth)
    assert_as_exact_as(actual, likely, truth)
    actual[3, 5, 7] = truth[3, 5, 7] + 0.02
    with pytest.raises(AssertionError, match="largest"):
        assert_as_exact_as(actual, likely, truth)


def test_what_is_exact_must_be_exact():
    truth = torch.tensor([1.0, 2.0, 3.0]).double()
    assert_as_exact_as(truth.float(), truth, truth)
    with too_much:
        assert_as_exact_as(truth.float().nextafter(torch.tensor(9.0)), truth, truth)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_does_not_pass(value: float):
    truth = torch.ones(3).double()
    with pytest.raises(AssertionError, match="not finite"):
        assert_as_exact_as(torch.tensor([1.0, value, 1.0]), truth + 1, truth)


def test_few_errors_that_dominate_count_as_few():
    errors = torch.randn(50, 8)
    assert 20 < independent(errors) < 400
    errors[0, 0] = 1e3
    assert independent(errors) == pytest.approx(1, abs=0.01)
    assert independent(torch.zeros(3)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("terms", [1, 5, 400])
def test_simulated_errors_of_a_product_are_as_large_as_those_of_a_plain_sum(terms: int, dtype: torch.dtype):
    left, right = torch.randn(20, 30, terms).to(dtype), torch.rand(20, terms, 40).to(dtype)
    total = torch.zeros(20, 30, 40)
    for depth in range(terms):
        total += left[:, :, depth, None].float() * right[:, depth, None, :].float()
    truth = left.double() @ right.double()
    (likely,) = simulated(lambda: [left.double() @ right.double()], step_by_step(dtype), dtype)
    ratio = (total.to(dtype).double() - truth).square().mean().sqrt() / (likely - truth).square().mean().sqrt()
    assert 0.6 < ratio < 1.1


def test_what_cancels_errs_by_the_size_of_what_was_summed():
    maps, towards = 1e4 * torch.randn(3, 1, 5).double(), torch.randn(3, 1, 5).double()

    def gradient() -> list[Tensor]:
        leaf = maps.clone().requires_grad_()
        return list(torch.autograd.grad(leaf.softmax(dim=1), leaf, towards))  # of one key: zero in exact arithmetic

    (likely,) = simulated(gradient, fused(torch.float32), torch.float32)
    assert not gradient()[0].any()
    assert 1e-8 < likely.square().mean().sqrt() < 1e-6


def test_the_simulation_is_the_same_each_time_and_another_for_another_seed():
    maps = torch.randn(7, 5).double()
    first, again, other = (
        simulated(lambda: [(maps @ maps.T).exp()], fused(torch.float32), torch.float32, seed=seed)[0]
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_copies_do_not_err():
    maps = torch.randn(4, 6).double()
    same = simulated(lambda: [maps.t().reshape(3, 8).clone()], fused(torch.float32), torch.float64)[0]
    assert torch.equal(same, maps.t().reshape(3, 8))
