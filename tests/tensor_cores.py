"""How tensor cores multiply float32, bit by bit, on the CPU: in three products of tf32, or in one."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from simulated_rounding import DEPTH
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Bits of the factors and of the running sums, with the leading one.
FACTOR_BITS, SUM_BITS = 11, 24


@dataclass(frozen=True)
class TensorCore:
    """How a tensor core multiplies and adds; by default an A100's, the least exact that our kernels run on.

    An H100's adds eight terms at a time and keeps two spare bits.
    """

    terms: int = 4
    """Products that are added to the running sum at a time, all cut to the last place of the largest of them."""
    spare: int = 1
    """Bits that they keep below that place until they are added."""
    products: int = 3
    """3: high times high part, and high times low both ways. 1: high times high only."""
    lost: int = 0
    """Bits that a broken one loses, of running sums and of low parts."""

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The product in float32 of matrices in float32, or of as many pairs of them as there are."""
        (high, low), (other_high, other_low) = (self._parts(factor) for factor in (left, right))
        total = torch.zeros(*left.shape[:-1], right.shape[-1], dtype=torch.float64)
        if self.products == 3:
            # A thousand times smaller than what they are added to: cuts on the way would not show.
            total = _cut(low @ other_high + high @ other_low, SUM_BITS)
        for first in range(0, left.shape[-1], self.terms):
            several = slice(first, first + self.terms)
            terms = high[..., :, several, None] * other_high[..., None, several, :]
            total = self._added(torch.cat([total[..., :, None, :], terms], dim=-2))
        return total.float()

    def _parts(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The number rounded to tf32, halves away from zero, and what remains, cut to tf32; both in float64."""
        bits = factor.view(torch.int32)
        high = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return high.double(), _cut((factor - high).double(), FACTOR_BITS - self.lost)

    def _added(self, terms: Tensor) -> Tensor:
        exponent = torch.frexp(terms.abs().amax(dim=-2, keepdim=True)).exponent
        place = torch.ldexp(
            torch.ones_like(exponent, dtype=torch.float64), exponent - SUM_BITS - self.spare + self.lost
        )
        return _cut(((terms / place).trunc() * place).sum(dim=-2), SUM_BITS - self.lost)


def _cut(number: Tensor, bits: int) -> Tensor:
    """Float64, cut to so many bits, the leading one included."""
    return (number.view(torch.int64) & -(1 << (53 - bits))).view(torch.float64)


class OnTensorCore(TorchDispatchMode):
    """Let a tensor core make every matrix product in float32, as our kernels would have it: not too many terms each."""

    def __init__(self, core: TensorCore) -> None:
        super().__init__()
        self.core = core

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation, or multiply."""
        if func.overloadpacket not in (torch.ops.aten.bmm, torch.ops.aten.mm):
            return func(*args, **(kwargs or {}))
        left, right = args
        total = torch.zeros(*left.shape[:-1], right.shape[-1])
        for first in range(0, left.shape[-1], DEPTH):
            several = slice(first, first + DEPTH)
            total += self.core.product(left[..., several].contiguous(), right[..., several, :].contiguous())
        return total


@contextmanager
def interpreted_on(core: TensorCore) -> Iterator[None]:
    """Let a tensor core make the products in float32 of Triton's interpreter, in three or one as a kernel asks."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(builder: Any, left: Any, right: Any, start: Any, precision: Any, *others: Any) -> Any:
        if left.data.dtype != "float32" or precision.name == "IEEE":
            return plain(builder, left, right, start, precision, *others)
        products = {"TF32": 1, "TF32x3": 3}[precision.name]
        factors = (torch.from_numpy(factor.data.copy()) for factor in (left, right))
        found = replace(core, products=products).product(*factors).numpy()
        return interpreter.TensorHandle(found + start.data, start.dtype.scalar)

    with patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield
