"""Several processes on one run: DDP through Accelerate, FSDP2, and batch statistics over all of them."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Literal
from uuid import uuid4

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from parhelion.errors import UserError
from parhelion.train.stopping import Stopped

# Where a process that stops leaves its reason for those that wait for it.
REASON = "parhelion/reason"


def accelerator_for(precision: Literal["no", "bf16", "fp16"]) -> Accelerator:
    """This process's part in the run; under torchrun it meets the others here. Raises UserError."""
    # Accelerate keeps the precision of a process's first run; a later run may choose another.
    AcceleratorState._reset_state()
    # Without being told, Accelerate would let several processes on a CPU run side by side, each for itself.
    on_cpu = not torch.accelerator.is_available()
    _meet()
    try:
        accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
    except ValueError as error:
        raise UserError(f"precision is {precision}, which is not supported here: {str(error).rstrip('.')}") from error
    # Accelerate passes over fp16 on a CPU in silence.
    if precision != "no" and not accelerator.native_amp:
        raise UserError(f"precision is {precision}, which is not supported on {accelerator.device.type}; use bf16")
    return accelerator


def _meet() -> None:
    """Join the other processes that torchrun started with this one; with no such launcher, Accelerate does it.

    torchrun keeps one store through its restarts. There a process would find the address that its killed predecessor
    left, and wait half an hour for an answer; so every attempt keeps its addresses under a name of its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    store, rank, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(agree_on_attempt(store, rank, processes), store)
    dist.init_process_group(store=store, rank=rank, world_size=processes)


def agree_on_attempt(store: dist.Store, rank: int, processes: int) -> str:
    """A name that the `processes` of this attempt agree on, and no earlier attempt on `store` had.

    The first process proposes a name and lists who answered; another asks again until it finds itself in the list.
    """
    mine = uuid4().hex
    if rank == 0:
        store.set("attempt", mine)
        answers = [store.get(f"{mine}/{other}").decode() for other in range(1, processes)]
        store.set(f"{mine}/members", " ".join(answers))
        return mine
    while True:
        name = store.get("attempt").decode()
        store.set(f"{name}/{rank}", mine)
        try:
            store.wait([f"{name}/members"], timedelta(seconds=1))
        except dist.DistStoreError:  # either the first has not heard from all, or the name is a dead process's
            continue
        if mine in store.get(f"{name}/members").decode().split():
            return name
        time.sleep(0.05)


@contextmanager
def agreed(accelerator: Accelerator) -> Iterator[None]:
    """Do the block in every process; the UserError or Stopped that one process raises is raised in all.

    For what a process does by itself and may fail at, before the next collective operation. All processes must enter.
    """
    reason: tuple[int, str] | None = None
    try:
        yield
    except (UserError, Stopped) as error:
        if accelerator.num_processes == 1:
            raise
        reason = _reason(error)
    if accelerator.num_processes > 1:
        reasons = gather_object([reason])
        # Its own sentence first; most of the time all have the same.
        first = reason or next((other for other in reasons if other is not None), None)
        if first is not None:
            raise _error(first)


@contextmanager
def told_to_all(accelerator: Accelerator) -> Iterator[None]:
    """Let the others know why this process stops in the block; one that waited for it then stops for the same reason.

    Without it they would end with a traceback about a closed connection. For what `agreed` would cost a collective
    operation in every update. Where operations do not fail when a process ends (NCCL), the launcher ends the others.
    """
    if accelerator.num_processes == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except (UserError, Stopped) as error:
        # The process that holds the store may be gone.
        with suppress(RuntimeError):
            store.set(REASON, json.dumps(_reason(error)))
        raise
    except RuntimeError as error:
        reason = None
        with suppress(RuntimeError):
            reason = json.loads(store.get(REASON)) if store.check([REASON]) else None
        if reason is None:
            raise
        raise _error(reason) from error


def _reason(error: UserError | Stopped) -> tuple[int, str]:
    """An exit code, 0 for a UserError, and the sentence: what another process can raise it from."""
    return error.code if isinstance(error, Stopped) else 0, str(error)


def _error(reason: Sequence[Any]) -> UserError | Stopped:
    code, sentence = reason
    return Stopped(code, sentence) if code else UserError(sentence)


def shard(accelerator: Accelerator, model: nn.Module, units: Sequence[nn.Module]) -> nn.Module:
    """`model` in place with every parameter cut into a part per process (FSDP2); gathered unit by unit when needed.

    Accelerate prepares FSDP2 for GPUs only; this is the same call for any device.
    """
    # It cuts rows, which channels-last weights do not have in one piece; activations stay channels-last.
    model.to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for unit in (*units, model):
        fully_shard(unit, mesh=mesh)
    return model


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sharded model, its parts gathered in every process."""
    state: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return state


def synchronise_batch_norms(model: nn.Module) -> nn.Module:
    """`model` in place, its batch norms taking statistics over the images of all processes while they train.

    A module changes its class only: parameters, names and state dict stay. On a GPU nn.SyncBatchNorm would do the same;
    it refuses CPUs, and one way for both can be tested everywhere.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm
    return model


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes together: (B, C, H, W) -> the same.

    Two sums per channel travel, forward and backward; half precision is computed in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # The mean first, and deviations from it then, as batch norm on one process: a difference of large sums of
        # squares would lose digits.
        count = wide.new_full((1,), x.numel() // x.shape[1])
        total, count = _sum_of_all(torch.cat([wide.sum((0, 2, 3)), count])).split([x.shape[1], 1])
        mean = total / count
        deviation = wide - mean[:, None, None]
        variance = _sum_of_all(deviation.square().sum((0, 2, 3))) / count
        self._track(mean.detach(), variance.detach(), count.detach())
        out = deviation * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes; the loss of every process depends on all summands."""

    @staticmethod
    def forward(_context: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_of_all(tensor: Tensor) -> Tensor:
    total: Tensor = _SumOfAll.apply(tensor)
    return total
