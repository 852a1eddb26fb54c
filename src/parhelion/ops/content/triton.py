"""Content attention on GPUs: the Triton kernels as a custom operator, forward and backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from parhelion.native import side_by_side
from parhelion.ops import gpu
from parhelion.ops.content.triton_plan import Inputs, Setting, Summary, setting, shared_bytes
from parhelion.ops.gpu import Launch, as_map, layout, padded


def why_not_triton(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the Triton kernels cannot take these maps, or None if they can.

    Gradients need more shared memory, so it depends on whether they are wanted, too.
    """
    reason = gpu.why_not_maps(q=q, k=k, v=v)
    if reason is not None:
        return reason
    # Padded, the widths are numbers for torch.compile, even where it knows only bounds of those of the maps.
    d, e = padded(q.shape[-1]), padded(v.shape[-1])
    return _why_not_widths(d, e, q.dtype, q.device, gpu.wants_gradients(q, k, v))


@torch.compiler.assume_constant_result
def _why_not_widths(d: int, e: int, dtype: torch.dtype, device: torch.device, backward: bool) -> str | None:
    return gpu.why_not_shared(shared_bytes(d, e, dtype, backward=backward), device)


def content_attention_triton(q: Tensor, k: Tensor, v: Tensor, *, normalize_queries: bool) -> Tensor:
    """The operation on maps that `why_not_triton` has nothing against; shapes as in `content_attention`.

    The softmax and the summary take one pass over keys and values. Products are taken in the dtype of the maps
    (float32 as tf32 where `torch.backends.cuda.matmul.allow_tf32`), sums in float32, without atomics: two runs are
    bitwise equal. Where heads are narrow, a gradient that is not finite may make those of the head beside it no
    numbers. Maps whose channels do not lie side by side are copied first. Second derivatives are not available.
    """
    if normalize_queries:
        # Autocast computes a softmax in float32 on a GPU.
        q = q.softmax(dim=-1).to(k.dtype)
    return _forward(q, k, v)[0]


class Call(NamedTuple):
    """A call of the operation: what its kernels are launched with."""

    inputs: Inputs
    setting: Setting

    def forward(self, out: Tensor, summary: Summary) -> list[Launch]:
        """Fill `out` and `summary`."""
        if self.setting.whole:
            return [self._launch("forward", 1, summary, out)]
        partial = Summary(*(self._of_chunks(tensor) for tensor in summary))
        cut = self.setting.cut
        return [
            self._launch("summarise", cut.slices_d, partial),
            self._launch("read", cut.slices_e, partial, summary, out),
        ]

    def backward(self, grad_out: Tensor, summary: Summary, grads: tuple[Tensor, Tensor, Tensor]) -> list[Launch]:
        """Fill the gradients of q, k and v."""
        if self.setting.whole:
            return [self._launch("backward", 1, summary, grad_out, *grads)]
        grad_q, grad_k, grad_v = grads
        cut = self.setting.cut
        partial = self._of_chunks(summary.blocks)
        return [
            self._launch("backward_queries", cut.slices_d, summary, grad_out, grad_q, partial),
            self._launch("backward_keys", max(cut.slices_d, cut.slices_e), summary, partial, grad_k, grad_v),
        ]

    def _of_chunks(self, tensor: Tensor) -> Tensor:
        """Memory for every chunk's part of a tensor."""
        return tensor.new_empty(tensor.shape[0] * self.setting.sizes.chunks, *tensor.shape[1:])

    def _launch(self, name: str, slices: int, *others: Any) -> Launch:
        from parhelion.ops.content import triton_kernels

        cut, sizes, images, num_warps, num_stages, _ = self.setting
        grid = (sizes.heads // cut.group * slices, sizes.chunks, images)
        choices = {"PLAN": cut, "num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
        device = self.inputs.q.start.device
        return Launch(getattr(triton_kernels, f"content_{name}"), grid, (self.inputs, *others), choices, device)


def new_call(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """The call with an operator's arguments."""
    q, k, v = side_by_side(q), side_by_side(k), side_by_side(v)
    made = setting(layout(q), layout(k), layout(v), q.dtype, gpu.precision(q.dtype))
    run = made.cut.run
    return Call(Inputs(as_map(q, run), as_map(k, run), as_map(v, run), made.numbers), made)


@torch.library.custom_op("parhelion::content_attention_triton", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The output and, for the backward pass, every head's summary and what is needed of its softmax."""
    out, *summary = _forward_fake(q, k, v)
    for launch in new_call(q, k, v).forward(out, Summary(*summary)):
        launch()
    return out, *summary


@_forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, _, heads, d = q.shape
    summary = q.new_empty(batch, heads, d, v.shape[4], dtype=torch.float32)
    return v.new_empty(v.shape), summary, q.new_empty(batch, 2, heads, d, dtype=torch.float32)


@torch.library.custom_op("parhelion::content_attention_triton_backward", mutates_args=())
def _backward(
    grad_out: Tensor, summary: Tensor, statistics: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grads = _backward_fake(grad_out, summary, statistics, q, k, v)
    for launch in new_call(q, k, v).backward(grad_out.contiguous(), Summary(summary, statistics), grads):
        launch()
    return grads


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
