"""Axial attention on GPUs: the Triton kernels as a custom operator, forward and backward."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parhelion.native import gpu, side_by_side
from parhelion.native.gpu import Launch
from parhelion.ops.axial.contract import Axis
from parhelion.ops.axial.triton_plan import (
    Inputs,
    Lines,
    Plan,
    Sizes,
    Table,
    each_backward,
    each_forward,
    plan,
    warps,
)


def why_not_triton(q: Tensor, v: Tensor, plus: Tensor | None = None) -> str | None:
    """Why the Triton kernels cannot take these maps, or None if they can."""
    return gpu.why_not_maps(q=q, v=v, **({} if plus is None else {"plus": plus}))


def axial_attention_triton(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, *, axis: Axis) -> Tensor:
    """The operation on maps that `why_not_triton` has nothing against; shapes as in `axial_attention`.

    Logits are never stored; the backward pass makes them anew. Products are taken in the dtype of the maps (float32 as
    tf32 where `torch.backends.cuda.matmul.allow_tf32`), sums in float32, without atomics: two runs are bitwise equal.
    Short lines share products, so a number that is not finite may make those of the lines and heads beside it no
    numbers. Maps whose channels do not lie side by side are copied first. Second derivatives are not available.
    """
    return _forward(q, v, table, plus, axis == "h")


class Call(NamedTuple):
    """A call of the operation: what its kernels are launched with."""

    q: Tensor
    v: Tensor
    table: Tensor
    vertical: bool
    backward: bool
    plus: Tensor | None = None
    grad_out: Tensor | None = None

    @property
    def sizes(self) -> Sizes:
        """Pixels of the axis, lines and heads."""
        along, across = (1, 2) if self.vertical else (2, 1)
        return Sizes(self.q.shape[along], self.q.shape[across], self.q.shape[3])

    @property
    def run(self) -> int:
        """Channels that strides are counted in: as many as all have in common, up to 16 bytes of the narrow dtypes."""
        strides = [stride for tensor in self._read if tensor is not None for stride in tensor.stride()[:-1]]
        return math.gcd(8, self.q.shape[-1], self.v.shape[-1], *strides)

    @property
    def plan(self) -> Plan:
        """How the work is cut."""
        length, plus = self.sizes.length, self.plus is not None
        far = any(_span(tensor) >= 2**31 for tensor in self._read if tensor is not None)
        return plan(self.q, self.v, length, plus=plus, run=self.run, far=far, backward=self.backward)

    @property
    def tiles(self) -> int:
        """Tiles that an axis is cut into."""
        return -(-self.sizes.length // self.plan.slot)

    @property
    def units(self) -> int:
        """Tiles of queries in all, and as many of keys."""
        return self.q.shape[0] * -(-self.sizes.lines * self.sizes.heads // self.plan.lines) * self.tiles

    @property
    def sums(self) -> tuple[int, ...]:
        """Shape of the sums for the table: programs, distances of two tiles, early or late, blocks, rows, channels."""
        cut = self.plan
        shape = (2 * self.tiles - 1, 2, cut.blocks, cut.rows, cut.padded_d)
        each = each_backward(self.units, math.prod(shape), warps(cut))
        return -(-self.units // each), *shape

    def forward(self, out: Tensor) -> Launch:
        """Fills `out`."""
        # A map that is absent is never read, but a kernel wants an address all the same.
        plus = self._lines(out if self.plus is None else self.plus)
        return self._launch("forward", each_forward(self.units), plus, self._lines(out))

    def backward_maps(self, grad_q: Tensor, grad_v: Tensor, sums: Tensor) -> list[Launch]:
        """Fill `grad_q` and `grad_v`, and add to `sums`."""
        assert self.grad_out is not None
        grad_out = self._lines(self.grad_out)
        each = -(-self.units // max(1, sums.shape[0]))
        if self.plan.single:
            return [self._launch("backward", each, grad_out, self._lines(grad_q), self._lines(grad_v), sums)]
        return [
            self._launch("backward_queries", each, grad_out, self._lines(grad_q), sums),
            self._launch("backward_values", 1, grad_out, self._lines(grad_v)),
        ]

    def backward_table(self, grad_table: Tensor, sums: Tensor) -> Launch:
        """Fills `grad_table` from the sums for it, added up over the programs."""
        arguments = (sums, grad_table, sums.shape[0])
        return self._kernel("backward_table", grad_table.shape[0], arguments, num_warps=1)

    @property
    def _read(self) -> tuple[Tensor | None, ...]:
        return self.q, self.v, self.table, self.plus, self.grad_out

    def _launch(self, name: str, each: int, *others: Any) -> Launch:
        table = Table(self.table, self.table.stride(0) // self.run, self.table.shape[0] // 2)
        inputs = Inputs(self._lines(self.q), self._lines(self.v), table, self.sizes)
        programs = -(-self.units // max(1, each))
        return self._kernel(name, programs, (inputs, *others, each, self.units), num_warps=warps(self.plan))

    def _kernel(self, name: str, programs: int, arguments: tuple[Any, ...], *, num_warps: int) -> Launch:
        from parhelion.ops.axial import triton_kernels

        choices = {"PLAN": self.plan, "num_warps": num_warps, "num_stages": 2, "enable_fp_fusion": True}
        return Launch(getattr(triton_kernels, name), (programs,), arguments, choices, self.q.device)

    def _lines(self, tensor: Tensor) -> Lines:
        image, row, col, head = (stride // self.run for stride in tensor.stride()[:4])
        return Lines(tensor, image, *((col, row) if self.vertical else (row, col)), head)


def _span(tensor: Tensor) -> int:
    """Numbers between the first and the last of an image, or of a table."""
    axes = range(1, tensor.ndim) if tensor.ndim == 5 else range(tensor.ndim)
    return sum((tensor.shape[axis] - 1) * tensor.stride(axis) for axis in axes)


@torch.library.custom_op("parhelion::axial_attention_triton", mutates_args=())
def _forward(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    plus = None if plus is None else side_by_side(plus)
    call = Call(side_by_side(q), side_by_side(v), side_by_side(table), vertical, backward=False, plus=plus)
    out = v.new_empty(v.shape)
    call.forward(out)()
    return out


@_forward.register_fake
def _forward_fake(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.custom_op("parhelion::axial_attention_triton_backward", mutates_args=())
def _backward(grad_out: Tensor, q: Tensor, v: Tensor, table: Tensor, vertical: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, v, table, grad_out = (side_by_side(tensor) for tensor in (q, v, table, grad_out))
    call = Call(q, v, table, vertical, backward=True, grad_out=grad_out)
    grad_q, grad_v, grad_table = (tensor.new_empty(tensor.shape) for tensor in (q, v, table))
    sums = q.new_zeros(call.sums, dtype=torch.float32)
    for launch in call.backward_maps(grad_q, grad_v, sums):
        launch()
    call.backward_table(grad_table, sums.sum(0))()
    return grad_q, grad_v, grad_table


@_backward.register_fake
def _backward_fake(
    grad_out: Tensor, q: Tensor, v: Tensor, table: Tensor, vertical: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), v.new_empty(v.shape), table.new_empty(table.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.plus, ctx.vertical = inputs[3] is not None, inputs[4]


def _differentiate(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad_out, *ctx.saved_tensors, ctx.vertical), grad_out if ctx.plus else None, None


_forward.register_autograd(_differentiate, setup_context=_save)
