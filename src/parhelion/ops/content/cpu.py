"""Content attention in compiled code: `cpu.cpp` as a custom operator, forward and backward."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from parhelion import native


def why_not_cpu(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the compiled kernel cannot take these maps, or None if it can."""
    return native.why_not_maps(q=q, k=k, v=v)


def content_attention_cpu(q: Tensor, k: Tensor, v: Tensor, *, normalize_queries: bool) -> Tensor:
    """The operation on maps that `why_not_cpu` has nothing against; shapes as in `content_attention`.

    The softmax and the summary take one pass over keys and values. Sums are taken in float32, in an order that depends
    on neither the number of threads nor the run: two runs are bitwise equal. Maps whose channels do not lie side by
    side, or whose rows of pixels do not follow each other, are copied first. Second derivatives are not available.
    """
    return _forward(q.softmax(dim=-1) if normalize_queries else q, k, v)[0]


class _Call(ctypes.Structure):
    """Mirrors `Call` in cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "pixels", "heads", "d", "e", "threads")),
        *((name, ctypes.c_int64 * 3) for name in ("q_strides", "k_strides", "v_strides")),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "summary", "statistics")),
        *((name, ctypes.c_void_p) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
    )


def _call(q: Tensor, k: Tensor, v: Tensor, tensors: dict[str, Tensor]) -> _Call:
    """The kernel's arguments; every tensor must live until it returns."""
    batch, h, w, heads, d = q.shape
    maps = {"q": q, "k": k, "v": v}
    return _Call(
        batch=batch,
        pixels=h * w,
        heads=heads,
        d=d,
        e=v.shape[4],
        threads=torch.get_num_threads(),
        **{f"{name}_strides": native.strides(tensor, 0, 2, 3) for name, tensor in maps.items()},
        **{name: tensor.data_ptr() for name, tensor in {**maps, **tensors}.items()},
    )


def _in_a_row(tensor: Tensor) -> Tensor:
    """The map itself if its channels lie side by side and its rows of pixels follow each other, else a copy."""
    tensor = native.side_by_side(tensor)
    follows = tensor.shape[1] <= 1 or tensor.stride(1) == tensor.shape[2] * tensor.stride(2)
    return tensor if follows else tensor.contiguous()


@torch.library.custom_op("parhelion::content_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output and, for the backward pass, every head's summary and what is needed of its softmax."""
    q, k, v = (_in_a_row(tensor) for tensor in (q, k, v))
    out, summary, statistics = _forward_fake(q, k, v)
    tensors = {"out": out, "summary": summary, "statistics": statistics}
    native.run("content_forward", q, _call(q, k, v, tensors))
    return out, summary, statistics


@_forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, _, heads, d = q.shape
    summary = q.new_empty(batch, heads, d, v.shape[4], dtype=torch.float32)
    return v.new_empty(v.shape), summary, q.new_empty(batch, 2, heads, d, dtype=torch.float32)


@torch.library.custom_op("parhelion::content_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_out: Tensor, summary: Tensor, statistics: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (_in_a_row(tensor) for tensor in (q, k, v))
    grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    gradients = {"grad_out": grad_out.contiguous(), "grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
    native.run("content_backward", q, _call(q, k, v, {"summary": summary, "statistics": statistics, **gradients}))
    return grad_q, grad_k, grad_v


@_backward.register_fake
def _backward_fake(
    grad_out: Tensor, summary: Tensor, statistics: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], *inputs)


def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
    return _backward(grad_out, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)
