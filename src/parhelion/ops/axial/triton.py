"""Axial attention on GPUs: the Triton kernels as a custom operator, forward and backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from parhelion.native import side_by_side
from parhelion.ops import gpu
from parhelion.ops.axial.contract import Axis
from parhelion.ops.axial.triton_plan import (
    Choices,
    Inputs,
    Lines,
    Setting,
    Table,
    each_forward,
    line_strides,
    setting,
    shared_bytes,
)
from parhelion.ops.gpu import Launch, layout, padded, unspecialised


def why_not_triton(q: Tensor, v: Tensor, plus: Tensor | None = None) -> str | None:
    """Why the Triton kernels cannot take these maps, or None if they can."""
    reason = gpu.why_not_maps(q=q, v=v, **({} if plus is None else {"plus": plus}))
    if reason is not None:
        return reason
    # Padded, the widths are numbers for torch.compile, even where it knows only bounds of those of the maps.
    d, e = padded(q.shape[-1]), padded(v.shape[-1])
    return _why_not_widths(d, e, q.dtype, q.device)


@torch.compiler.assume_constant_result
def _why_not_widths(d: int, e: int, dtype: torch.dtype, device: torch.device) -> str | None:
    return gpu.why_not_shared(shared_bytes(d, e, dtype), device)


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

    inputs: Inputs
    setting: Setting

    def forward(self, plus: Tensor | None, out: Tensor) -> Launch:
        """Fills `out`."""
        # A map that is absent is never read, but a kernel wants an address all the same.
        maps = (self._lines(out if plus is None else plus), self._lines(out))
        return self._launch("forward", each_forward(self.setting.units), *maps)

    def backward_maps(self, grad_out: Tensor, grad_q: Tensor, grad_v: Tensor, sums: Tensor) -> list[Launch]:
        """Fill `grad_q` and `grad_v`, and add to `sums`."""
        read, *filled = (self._lines(tensor) for tensor in (grad_out, grad_q, grad_v))
        each = -(-self.setting.units // max(1, sums.shape[0]))
        if self.setting.cut.single:
            return [self._launch("backward", each, read, *filled, sums)]
        return [
            self._launch("backward_queries", each, read, filled[0], sums),
            self._launch("backward_values", 1, read, filled[1]),
        ]

    def backward_table(self, grad_table: Tensor, sums: Tensor) -> Launch:
        """Fills `grad_table` from the sums for it, added up over the programs."""
        arguments = (sums, grad_table, sums.shape[0])
        return self._kernel("backward_table", grad_table.shape[0], arguments, num_warps=1)

    def _launch(self, name: str, each: int, *others: Any) -> Launch:
        units = self.setting.units
        arguments = (self.inputs, *others, each, units)
        return self._kernel(name, -(-units // max(1, each)), arguments, num_warps=self.setting.num_warps)

    def _kernel(self, name: str, programs: int, arguments: tuple[Any, ...], *, num_warps: int) -> Launch:
        from parhelion.ops.axial import triton_kernels

        choices = {"PLAN": self.setting.cut, "num_warps": num_warps, "num_stages": 2, "enable_fp_fusion": True}
        kernel, device = getattr(triton_kernels, f"axial_{name}"), self.inputs.q.start.device
        return Launch(kernel, (programs,), arguments, choices, device)

    def _lines(self, tensor: Tensor) -> Lines:
        return as_lines(tensor, self.setting.cut.run, vertical=self.setting.vertical)


def new_call(q: Tensor, v: Tensor, table: Tensor, *others: Tensor, vertical: bool, plus: bool, backward: bool) -> Call:
    """The call with an operator's arguments; `others` are the maps besides that its kernels read."""
    choices = Choices(vertical, plus, backward, q.dtype, gpu.precision(q.dtype))
    made = setting(tuple(layout(tensor) for tensor in (q, v, table, *others)), choices)
    run = made.cut.run
    lines_q, lines_v = as_lines(q, run, vertical=vertical), as_lines(v, run, vertical=vertical)
    rows = Table(table, table.stride(0) // run, unspecialised(table.shape[0] // 2))
    return Call(Inputs(lines_q, lines_v, rows, made.numbers), made)


def as_lines(tensor: Tensor, run: int, *, vertical: bool) -> Lines:
    """A map (b, h, w, heads, channels) for a kernel, its strides in runs of so many channels."""
    return Lines(tensor, *line_strides(tensor.stride(), run, vertical=vertical))


@torch.library.custom_op("parhelion::axial_attention_triton", mutates_args=())
def _forward(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    q, v, table, *others = (side_by_side(tensor) for tensor in (q, v, table, plus) if tensor is not None)
    call = new_call(q, v, table, *others, vertical=vertical, plus=plus is not None, backward=False)
    out = v.new_empty(v.shape)
    call.forward(others[0] if others else None, out)()
    return out


@_forward.register_fake
def _forward_fake(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.custom_op("parhelion::axial_attention_triton_backward", mutates_args=())
def _backward(grad_out: Tensor, q: Tensor, v: Tensor, table: Tensor, vertical: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, v, table, grad_out = (side_by_side(tensor) for tensor in (q, v, table, grad_out))
    call = new_call(q, v, table, grad_out, vertical=vertical, plus=False, backward=True)
    grad_q, grad_v, grad_table = (tensor.new_empty(tensor.shape) for tensor in (q, v, table))
    sums = q.new_zeros(call.setting.sums, dtype=torch.float32)
    for launch in call.backward_maps(grad_out, grad_q, grad_v, sums):
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
