"""Axial attention in compiled code: `cpu.cpp` as a custom operator, forward and backward."""

import ctypes
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parhelion import native
from parhelion.ops.axial.contract import Axis


def why_not_cpu(q: Tensor, v: Tensor, plus: Tensor | None = None) -> str | None:
    """Why the compiled kernel cannot take these maps, or None if it can."""
    return native.why_not_maps(q=q, v=v, **({} if plus is None else {"plus": plus}))


def axial_attention_cpu(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, *, axis: Axis) -> Tensor:
    """The operation on maps that `why_not_cpu` has nothing against; shapes as in `axial_attention`.

    Logits are never stored; the backward pass makes them anew. Sums are taken in float32, in an order that depends on
    neither the number of threads nor the run: two runs are bitwise equal. Maps whose channels do not lie side by side
    are copied first. Second derivatives are not available.
    """
    length = q.shape[1 if axis == "h" else 2]
    spare = (table.shape[0] + 1) // 2 - length
    return _forward(q, v, table[spare : spare + 2 * length - 1].to(q.dtype).float().contiguous(), plus, axis == "h")


class _Call(ctypes.Structure):
    """Mirrors `Call` in cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "lines", "heads", "d", "e", "threads")),
        *((name, ctypes.c_int64 * 4) for name in ("q_strides", "v_strides", "out_strides", "grad_q_strides")),
        *((name, ctypes.c_void_p) for name in ("q", "v", "table", "plus", "out", "grad_out", "grad_q", "grad_v")),
        ("grad_table", ctypes.c_void_p),
    )


def _call(q: Tensor, v: Tensor, vertical: bool, tensors: Mapping[str, Tensor | None]) -> _Call:
    """The kernel's arguments; every tensor must live until it returns."""
    along, across = (1, 2) if vertical else (2, 1)
    maps = {"q": q, "v": v, **{name: tensor for name, tensor in tensors.items() if tensor is not None}}
    return _Call(
        batch=q.shape[0],
        length=q.shape[along],
        lines=q.shape[across],
        heads=q.shape[3],
        d=q.shape[4],
        e=v.shape[4],
        threads=torch.get_num_threads(),
        **{
            f"{name}_strides": native.strides(maps[name], 0, along, across, 3)
            for name in ("q", "v", "out", "grad_q")
            if name in maps
        },
        **{name: tensor.data_ptr() for name, tensor in maps.items()},
    )


@torch.library.custom_op("parhelion::axial_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    q, v, plus = native.side_by_side(q), native.side_by_side(v), None if plus is None else plus.contiguous()
    out = v.new_empty(v.shape)
    native.run("axial_forward", q, _call(q, v, vertical, {"table": table, "plus": plus, "out": out}))
    return out


@_forward.register_fake
def _forward_fake(q: Tensor, v: Tensor, table: Tensor, plus: Tensor | None, vertical: bool) -> Tensor:
    return v.new_empty(v.shape)


@torch.library.custom_op("parhelion::axial_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grad_out: Tensor, q: Tensor, v: Tensor, table: Tensor, vertical: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, v, grad_out = native.side_by_side(q), native.side_by_side(v), grad_out.contiguous()
    grad_q, grad_v, grad_table = q.new_empty(q.shape), v.new_empty(v.shape), torch.zeros(table.shape)
    tensors = {"table": table, "grad_out": grad_out, "grad_q": grad_q, "grad_v": grad_v, "grad_table": grad_table}
    call = _call(q, v, vertical, tensors)
    call.out_strides = native.strides(grad_out, 0, *((1, 2) if vertical else (2, 1)), 3)
    native.run("axial_backward", q, call)
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
