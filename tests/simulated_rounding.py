"""What rounding does to a result, simulated in float64: the same numbers on every processor of a kind.

CPUs draw one set of random numbers, GPUs another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# A number of unknown size that is rounded to a unit roundoff of u errs by this many u, root mean square: uniformly
# within half a last place, where leading digits are distributed as in nature, sqrt(3 / 8 / ln(2) / 3).
TYPICAL = 0.425
# Three products of tf32 in place of one of float32 err as much as a rounding to so many unit roundoffs: the product of
# low parts is missing, low parts are cut, and each product is cut to the last place of what it is added to.
IN_THREE = 4.0
# Products that a tensor core adds at a time (an A100; newer ones add more), and how many a kernel lets it add up before
# the sum is rounded and added to others.
TERMS, DEPTH = 4, 64
# Of operations that PyTorch calls element by element, these only copy or choose.
EXACT = (aten.clone, aten.masked_fill, aten.neg, aten.abs, aten.relu, aten.threshold_backward, aten.where, aten.fill_)
# These end in a sum of a few numbers or in one rounding, though PyTorch does not call them element by element.
ROUNDED_ONCE = (aten.mean, aten.var_mean, aten.avg_pool2d, aten.avg_pool2d_backward)
SUMS = (aten.sum, aten.index_add, aten.index_put, aten.unfold_backward)
# Spelled out in simpler operations first, so that what cancels in them is rounded before it does.
COMPOSITE = (
    aten._softmax,
    aten._softmax_backward_data,
    aten.addmm,
    aten.native_batch_norm,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm_backward,
)


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of a number that is rounded to `dtype`."""
    return torch.finfo(dtype).eps / 2


@dataclass(frozen=True)
class Arithmetic:
    """How large rounding errors are: unit roundoffs, relative to what is rounded.

    Products of float32 in several of a narrower dtype, as tensor cores make them, have a `products` of their own.
    """

    results: float  # of what an operation gives
    products: float  # of each product that is summed
    sums: float  # of each running sum
    smallest: float  # by how much any result may err, be it zero
    factors: torch.dtype | None = None  # what the factors of products are rounded to first
    outputs: float = (
        0.0  # of outputs that the gradient of a softmax takes its sum from; 0: it takes it from the weights
    )
    cut: float = 0.0  # the last place that running sums of matrix products are cut to; 0: they are rounded


def fused(dtype: torch.dtype) -> Arithmetic:
    """The arithmetic of our kernels: in float32, but that factors of products may be rounded to `dtype`."""
    single = unit_roundoff(torch.float32)
    # Exponentials are cut off at e^-86, which errs in one direction in each of some thousand terms.
    return Arithmetic(single, single, single, 1e3 * math.exp(-86), None if dtype == torch.float32 else dtype)


def fused_on_gpu(dtype: torch.dtype) -> Arithmetic:
    """As `fused`, but on tensor cores, and the gradient of a softmax is made with outputs rounded to `dtype`.

    Tensor cores multiply float32 as three products of tf32, and cut their sums to float32. In narrower dtypes neither
    shows, and in float32 the gradient of a softmax is made with its weights.
    """
    if dtype == torch.float32:
        single = unit_roundoff(dtype)
        return replace(fused(dtype), products=IN_THREE * single, cut=2 * single)
    return replace(fused(dtype), outputs=unit_roundoff(dtype))


def step_by_step(dtype: torch.dtype) -> Arithmetic:
    """The arithmetic of plain PyTorch: each operation gives `dtype`, and sums inside are of float32 or better."""
    unit = unit_roundoff(dtype)
    inside = min(unit, unit_roundoff(torch.float32))
    return Arithmetic(unit, inside, inside, unit * torch.finfo(dtype).smallest_normal)


def simulated(
    compute: Callable[[], Sequence[Tensor]], arithmetic: Arithmetic, dtype: torch.dtype, *, seed: int = 0
) -> list[Tensor]:
    """What `compute`, in float64, would give in `arithmetic` and with its results rounded to `dtype`; in float64."""
    with Rounding(arithmetic, seed):
        found = compute()
    return [tensor.to(dtype).double() for tensor in found]


class Rounding(TorchDispatchMode):
    """Let every operation in float64 err at random, with the standard deviation that rounding gives it.

    A sum of n terms is taken to be added up one after the other, and rounded each time. If their order is a matter of
    chance, the squares of its partial sums add up to n * (squares of the terms / 6 + square of the sum / 3).
    Where tensor cores cut running sums, they lose what `_cuts` says besides.
    Errors are random even where real ones would not be, as in a product with one. So what is zero only in exact
    arithmetic errs by the size of what cancelled. Copies do not err.
    """

    def __init__(self, arithmetic: Arithmetic, seed: int) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, then let its result err."""
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet in COMPOSITE:
            with self:
                if packet is aten._softmax_backward_data and self.arithmetic.outputs:
                    return self._gradient_of_softmax(*args[:3])
                return decomposition_table[func](*args, **kwargs)
        if packet in (aten.bmm, aten.mm, aten.convolution, aten.convolution_backward):
            args = [self._factor(arg) for arg in args]
        result = func(*args, **kwargs)
        if packet in (aten.bmm, aten.mm):
            return self._sum(result, _of_squares(func, args, kwargs), args[0].shape[-1], cut=self.arithmetic.cut)
        if packet is aten.convolution:
            return self._sum(result, _of_squares(func, args, kwargs), args[1][0].numel() + (args[2] is not None))
        if packet is aten.convolution_backward:
            return self._gradients_of_convolution(result, _of_squares(func, args, kwargs), *args[:3])
        if packet in SUMS:
            terms = func(*(torch.ones_like(arg) if _is_exact(arg) else arg for arg in args), **kwargs)
            return self._sum(result, _of_squares(func, args, kwargs), terms)
        if packet in ROUNDED_ONCE or (torch.Tag.pointwise in func.tags and packet not in EXACT):
            return tuple(map(self._rounded, result)) if isinstance(result, tuple) else self._rounded(result)
        return result

    def _factor(self, arg: Any) -> Any:
        to = self.arithmetic.factors
        return arg if to is None or not _is_exact(arg) else arg.to(to).double()

    def _rounded(self, result: Tensor) -> Tensor:
        if _is_exact(result):
            noise = self._noise(result)
            result.mul_(1 + TYPICAL * self.arithmetic.results * noise)
            result.add_(noise, alpha=self.arithmetic.smallest)
        return result

    def _sum(self, result: Tensor, squares: Tensor, terms: Tensor | int, *, cut: float = 0.0) -> Tensor:
        if not _is_exact(result):
            return result
        sums, products = self.arithmetic.sums, self.arithmetic.products
        partial = squares / 6 + result.square() / 3
        variance = TYPICAL**2 * (sums**2 * terms * partial + products**2 * squares)
        if cut:
            variance += (cut * _cuts(result, squares, terms)).square() * partial
        result.add_(variance.sqrt() * self._noise(result))
        return self._rounded(result) if self.arithmetic.results > sums else result

    def _gradient_of_softmax(self, towards: Tensor, weights: Tensor, axis: int) -> Tensor:
        terms = towards * weights
        total = terms.sum(axis, keepdim=True)
        # The sum equals that of outputs times gradients, whose rounded terms are about as large as itself.
        return terms - weights * (total + TYPICAL * self.arithmetic.outputs * total * self._noise(total))

    def _gradients_of_convolution(
        self,
        results: Sequence[Tensor | None],
        squares: Sequence[Tensor],
        towards: Tensor,
        images: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor | None, ...]:
        pixels = towards.numel() // towards.shape[1]
        terms = (weight.numel() // images.shape[1], pixels, pixels)
        return tuple(
            None if result is None else self._sum(result, square, count)
            for result, square, count in zip(results, squares, terms, strict=True)
        )

    def _noise(self, like: Tensor) -> Tensor:
        """Numbers of mean zero and variance one; even ones, which are made four times as fast as normal ones."""
        if like.device not in self.generators:
            self.generators[like.device] = torch.Generator(like.device).manual_seed(self.seed)
        generator = self.generators[like.device]
        even = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
        return even.sub_(0.5).mul_(math.sqrt(12))


def _cuts(result: Tensor, squares: Tensor, terms: Tensor | int) -> Tensor:
    """How many last places a sum of so many products loses on a tensor core, which cuts where others round.

    A step adds a few terms to a running sum. By that the sum loses a fifth of its last place on average, towards zero;
    it seldom changes its sign, so the losses of all steps add up. The terms of a step lose two fifths, each towards
    zero. Of that as much adds up as of the terms themselves: all if they are alike, next to nothing if they cancel.
    """
    alike = result.abs() / (terms * squares).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    steps = torch.as_tensor(terms).clamp_max(DEPTH).div(TERMS).clamp_min(1)
    return steps * (1 + 2 * alike) / 5


def _is_exact(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.dtype == torch.float64


def _of_squares(func: Any, args: Sequence[Any], kwargs: Any) -> Any:
    """What the operation makes of the squares of its numbers: of products and sums, the sum of squared terms."""
    return func(*(arg.square() if _is_exact(arg) else arg for arg in args), **kwargs)
