"""Halo attention on GPUs: the Triton kernels as a custom operator, forward and backward."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parhelion.native import side_by_side
from parhelion.ops import gpu
from parhelion.ops.gpu import Launch, as_map, known, layout, padded
from parhelion.ops.halo.contract import Geometry, Window
from parhelion.ops.halo.triton_plan import Choices, Inputs, Setting, Table, setting, shared_bytes, why_not_window

# Programs that share the tiles of queries in the backward pass: eight for each of an H100's 132 multiprocessors, and as
# many on any other GPU, so that the tables' gradients are summed in one order.
PROGRAMS = 1056


def why_not_triton(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor] | None, window: Window) -> str | None:
    """Why the Triton kernels cannot take these maps, tables and windows, or None if they can.

    Gradients need more shared memory, so it depends on whether they are wanted, too.
    """
    reason = gpu.why_not_maps(q=q, k=k, v=v)
    if reason is not None:
        return reason
    relative, backward = tables is not None, gpu.wants_gradients(q, k, v, *(tables or ()))
    # Padded, the widths are numbers for torch.compile, even where it knows only bounds of those of the maps.
    d, e = padded(q.shape[-1]), padded(v.shape[-1])
    geometry = tuple(known(number) for number in window.geometry)
    return _why_not_plan(d, e, q.dtype, q.device, geometry, relative, backward)


@torch.compiler.assume_constant_result
def _why_not_plan(
    d: int, e: int, dtype: torch.dtype, device: torch.device, geometry: tuple[int, ...], relative: bool, backward: bool
) -> str | None:
    # Neither the scale nor how float32 is multiplied changes the bound.
    choices = Choices(Geometry(*geometry), 1.0, relative, backward, dtype, gpu.precision(dtype))
    return why_not_window(d, e, choices) or gpu.why_not_shared(shared_bytes(d, e, choices), device)


def halo_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor] | None, window: Window
) -> Tensor:
    """The operation on maps that `why_not_triton` has nothing against; shapes as in `halo_attention`.

    Windows are never written out and scores never stored; the backward pass makes the scores anew. Products are
    taken in the dtype of the maps (float32 as tf32 where `torch.backends.cuda.matmul.allow_tf32`), sums in float32,
    without atomics: two runs are bitwise equal. Maps whose channels do not lie side by side are copied first. Second
    derivatives are not available.
    """
    table_h, table_w = (None, None) if tables is None else tables
    differentiable = gpu.wants_gradients(q, k, v, table_h, table_w)
    return _forward(q, k, v, table_h, table_w, list(window.geometry), window.scale, differentiable)[0]


class Call(NamedTuple):
    """A call of the operation: what its kernels are launched with."""

    inputs: Inputs
    setting: Setting

    def forward(self, out: Tensor, statistics: Tensor | None) -> Launch:
        """Fills `out` and, where there are any, `statistics`."""
        cut, sizes, images = self.setting.cut, self.setting.sizes, self.setting.images
        across = sizes.blocks_w * (1 if cut.all_heads else sizes.heads)
        return self._launch("forward", (across * cut.tiles, sizes.blocks_h, images), out, statistics)

    def backward_queries(self, saved: "Saved", grad_q: Tensor, grad_tables: Tensor) -> Launch:
        """Fills `grad_q` and `saved.delta`, and adds to `grad_tables` (programs, tables, offsets, channels), padded."""
        read = (saved.out, saved.statistics, saved.grad_out, saved.delta)
        others = (*read, grad_q, grad_tables, self.setting.gain, self.setting.units)
        return self._launch("backward_queries", (grad_tables.shape[0],), *others)

    def backward_keys(self, saved: "Saved", grad_k: Tensor, grad_v: Tensor) -> Launch:
        """Fills `grad_k` and `grad_v`; `saved.delta` must be there."""
        cut, sizes = self.setting.cut, self.setting.sizes
        rows, cols = (-(-(size + cut.key_shift) // cut.key_side) for size in (sizes.h, sizes.w))
        others = (saved.statistics, saved.delta, saved.grad_out, grad_k, grad_v, self.setting.gain)
        return self._launch("backward_keys", (cols * sizes.heads, rows, self.setting.images), *others)

    def _launch(self, name: str, grid: tuple[int, ...], *others: Any) -> Launch:
        from parhelion.ops.halo import triton_kernels

        choices = {
            "PLAN": self.setting.cut,
            "num_warps": self.setting.num_warps_of_keys if name == "backward_keys" else self.setting.num_warps,
            "num_stages": self.setting.num_stages,
            "enable_fp_fusion": True,
        }
        device = self.inputs.q.start.device
        return Launch(getattr(triton_kernels, f"halo_{name}"), grid, (self.inputs, *others), choices, device)


class Saved(NamedTuple):
    """What the backward pass reads besides the inputs: maps (b, qh, qw, n, e), statistics, delta (b, qh, qw, n).

    `statistics` (b, qh, qw, n, 1 or 2) are what turns logits into weights: the level at which these sum to one, or in
    float32 the highest logit and the sum of the weights, that of the highest being 1.
    """

    grad_out: Tensor
    out: Tensor
    statistics: Tensor
    delta: Tensor


def new_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor | None, Tensor | None],
    geometry: Sequence[int],
    scale: float,
    *,
    backward: bool,
) -> Call:
    """The call with an operator's arguments."""
    q, k, v = side_by_side(q), side_by_side(k), side_by_side(v)
    relative, exactness = tables[0] is not None, gpu.precision(q.dtype)
    choices = Choices(Geometry(*geometry), scale, relative, backward, q.dtype, exactness)
    made = setting(layout(q), layout(k), layout(v), choices)
    run = made.cut.run
    # A table that is absent is never read, but a kernel wants an address all the same.
    rows_h, rows_w = (Table(q if table is None else table.contiguous()) for table in tables)
    maps = (as_map(q, run), as_map(k, run), as_map(v, run))
    return Call(Inputs(*maps, rows_h, rows_w, made.numbers, made.scale), made)


@torch.library.custom_op("parhelion::halo_attention_triton", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    geometry: list[int],
    scale: float,
    differentiable: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and statistics for the backward pass: none of them unless `differentiable`."""
    call = new_call(q, k, v, (table_h, table_w), geometry, scale, backward=False)
    out, statistics = _forward_fake(q, k, v, differentiable)
    call.forward(out, statistics if differentiable else None)()
    return out, statistics


@_forward.register_fake
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *choices: Any) -> tuple[Tensor, Tensor]:
    differentiable = choices[-1]
    numbers = (2 if q.dtype == torch.float32 else 1) if differentiable else 0
    return q.new_empty(*q.shape[:4], v.shape[-1]), q.new_empty(*q.shape[:4], numbers, dtype=torch.float32)


@torch.library.custom_op("parhelion::halo_attention_triton_backward", mutates_args=())
def _backward(  # noqa: PLR0913  an operator's arguments are flat
    grad_out: Tensor,
    out: Tensor,
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
    call = new_call(q, k, v, (table_h, table_w), geometry, scale, backward=True)
    cut = call.setting.cut
    saved = Saved(grad_out.contiguous(), out, statistics, q.new_empty(q.shape[:4], dtype=torch.float32))
    grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    shape = (2 if cut.relative else 0, cut.padded_offsets, cut.padded_d)
    partial = q.new_zeros(min(PROGRAMS, call.setting.units), *shape, dtype=torch.float32)
    call.backward_queries(saved, grad_q, partial)()
    call.backward_keys(saved, grad_k, grad_v)()
    if table_h is None or table_w is None:
        return grad_q, grad_k, grad_v, q.new_empty(0), q.new_empty(0)
    grad_h, grad_w = partial.sum(0)
    first = cut.first_w
    return (
        grad_q,
        grad_k,
        grad_v,
        grad_h[: table_h.shape[0], : cut.width_h].to(table_h.dtype, copy=True),
        grad_w[: table_w.shape[0], first : first + cut.width_w].to(table_w.dtype, copy=True),
    )


@_backward.register_fake
def _backward_fake(
    grad_out: Tensor,
    out: Tensor,
    statistics: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table_h: Tensor | None,
    table_w: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    grad_h, grad_w = (q.new_empty(0) if table is None else table.new_empty(table.shape) for table in (table_h, table_w))
    return grad_q, grad_k, grad_v, grad_h, grad_w


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:5])
    ctx.choices = inputs[5:-1]


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under activation checkpointing a second look is an error
    *maps, grad_table_h, grad_table_w = _backward(grad_out, *saved, *ctx.choices)
    tables = (None, None) if saved[-1] is None else (grad_table_h, grad_table_w)
    return *maps, *tables, *(None,) * (len(ctx.choices) + 1)


_forward.register_autograd(_differentiate, setup_context=_save)
