"""Halo attention in compiled code: `cpu.cpp` as a custom operator, forward and backward."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from parhelion import native
from parhelion.ops.halo.contract import Geometry, Window


def why_not_cpu(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the compiled kernel cannot take these maps, or None if it can."""
    return native.why_not_maps(q=q, k=k, v=v)


def halo_attention_cpu(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor] | None, window: Window) -> Tensor:
    """The operation on maps that `why_not_cpu` has nothing against; shapes as in `halo_attention`.

    Windows are never written out and scores never stored; the backward pass makes the scores anew. Sums are taken in
    float32, in an order that depends on neither the number of threads nor the run: two runs are bitwise equal. Maps
    whose channels do not lie side by side are copied first. Second derivatives are not available.
    """
    table_h, table_w = (None, None) if tables is None else (table.to(q.dtype).float().contiguous() for table in tables)
    return _forward(q, k, v, table_h, table_w, list(window.geometry), window.scale)[0]


class _Call(ctypes.Structure):
    """Mirrors `Call` in cpu.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "h", "w", "query_h", "query_w", "heads", "d", "e")),
        *((name, ctypes.c_int64) for name in ("block", "halo", "stride", "step", "masked", "summed", "threads")),
        *((name, ctypes.c_int64 * 4) for name in ("q_strides", "k_strides", "v_strides")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "table_h", "table_w", "out", "statistics")),
        *((name, ctypes.c_void_p) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
        *((name, ctypes.c_void_p) for name in ("grad_table_h", "grad_table_w")),
    )


def _call(
    q: Tensor, k: Tensor, v: Tensor, geometry: Sequence[int], scale: float, tensors: Mapping[str, Tensor | None]
) -> _Call:
    """The kernel's arguments; every tensor must live until it returns."""
    batch, h, w, heads, d = k.shape
    maps = {"q": q, "k": k, "v": v}
    return _Call(
        batch=batch,
        h=h,
        w=w,
        query_h=q.shape[1],
        query_w=q.shape[2],
        heads=heads,
        d=d,
        e=v.shape[-1],
        threads=torch.get_num_threads(),
        scale=scale,
        **Geometry(*geometry)._asdict(),
        **{f"{name}_strides": native.strides(tensor, 0, 1, 2, 3) for name, tensor in maps.items()},
        **{name: tensor.data_ptr() for name, tensor in {**maps, **tensors}.items() if tensor is not None},
    )


@torch.library.custom_op("parhelion::halo_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    geometry: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The output, and per query and head what the backward pass needs of the softmax."""
    q, k, v = (native.side_by_side(tensor) for tensor in (q, k, v))
    out, statistics = _forward_fake(q, k, v)
    tensors = {"table_h": table_h, "table_w": table_w, "out": out, "statistics": statistics}
    native.run("halo_forward", q, _call(q, k, v, geometry, scale, tensors))
    return out, statistics


@_forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:4], v.shape[-1]), q.new_empty(*q.shape[:4], 2, dtype=torch.float32)


@torch.library.custom_op("parhelion::halo_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(  # noqa: PLR0913  an operator's arguments are flat
    grad_out: Tensor,
    statistics: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    geometry: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the tables (empty where there is no table)."""
    q, k, v = (native.side_by_side(tensor) for tensor in (q, k, v))
    grad_q = q.new_empty(q.shape)
    # Windows overlap, so these are sums, and sums are taken in float32.
    grad_k, grad_v = (torch.zeros(tensor.shape, dtype=torch.float32) for tensor in (k, v))
    grad_h, grad_w = (torch.zeros(0 if table is None else table.shape) for table in (table_h, table_w))
    tensors = {"table_h": table_h, "table_w": table_w, "statistics": statistics}
    gradients = {"grad_out": grad_out.contiguous(), "grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
    to_tables = {"grad_table_h": grad_h, "grad_table_w": grad_w}
    native.run("halo_backward", q, _call(q, k, v, geometry, scale, {**tensors, **gradients, **to_tables}))
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), grad_h, grad_w


@_backward.register_fake
def _backward_fake(
    grad_out: Tensor,
    statistics: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    grad_h, grad_w = (
        q.new_empty(0 if table is None else table.shape, dtype=torch.float32) for table in (table_h, table_w)
    )
    return grad_q, grad_k, grad_v, grad_h, grad_w


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.choices = inputs[5:]


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under activation checkpointing a second look is an error
    *maps, grad_table_h, grad_table_w = _backward(grad_out, *saved, *ctx.choices)
    tables = (None, None) if saved[-1] is None else (grad_table_h, grad_table_w)
    return *maps, *tables, *(None,) * len(ctx.choices)


_forward.register_autograd(_differentiate, setup_context=_save)
