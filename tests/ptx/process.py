"""What the process that runs the machine is asked for: a call of an operation, as it is or with a planted fault."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from unittest.mock import patch

import torch
from kernel_cases import Case, assert_within_budget, result_and_gradients, results
from simulated_rounding import fused_on_gpu
from torch import Tensor

from parhelion.ops.halo import triton_plan
from ptx import launches
from ptx.launches import on_machine
from ptx.problems import Problems
from ptx.tensors import Tensors


def noted(case: Case, dtype: torch.dtype) -> dict[str, str]:
    """The faults that were noted, and where first; fails unless output and gradients are in the budget for GPUs."""
    torch.set_num_threads(1)
    # New tensors hold no numbers until something is written.
    torch.use_deterministic_algorithms(True)
    with on_machine() as problems:
        actual = results(case, dtype, "triton", draws=1)
    torch.use_deterministic_algorithms(False)
    assert_within_budget(case, actual, dtype, arithmetic=fused_on_gpu(dtype), draws=1)
    return problems.first


def noted_with(fault: str, case: Case) -> set[str]:
    """The faults that are noted where one of `FAULTS` is planted, in bfloat16."""
    torch.set_num_threads(1)
    with FAULTS[fault]() as problems:
        result_and_gradients(case, case.tensors(torch.bfloat16), "triton")
    return set(problems)


@contextmanager
def two_groups_of_warps() -> Iterator[Problems]:
    """Give programs of halo attention eight warps, whatever they multiply."""
    with patch.object(triton_plan, "fewest_groups", lambda *_: 8), on_machine() as problems:
        triton_plan.setting.cache_clear()
        yield problems
    triton_plan.setting.cache_clear()


@contextmanager
def maps_that_lack_their_last_row() -> Iterator[Problems]:
    """Let maps end a row early."""

    def shortened(tensors: Iterable[Tensor], problems: Problems) -> Tensors:
        return Tensors([tensor[:, :-1] if tensor.ndim == 5 else tensor for tensor in tensors], problems)

    with patch.object(launches, "Tensors", shortened), on_machine() as problems:
        yield problems


@contextmanager
def without(opcode: str) -> Iterator[Problems]:
    """Leave out all instructions of a kind."""
    with on_machine(lambda ptx: re.sub(rf"^\s*{re.escape(opcode)}\b.*;", "", ptx, flags=re.MULTILINE)) as problems:
        yield problems


FAULTS: dict[str, Callable[[], AbstractContextManager[Problems]]] = {
    "two groups of warps": two_groups_of_warps,
    "maps that lack their last row": maps_that_lack_their_last_row,
    "no barriers": partial(without, "bar.sync"),
    "no fences": partial(without, "fence.proxy.async"),
    "copies that are not waited for": partial(without, "cp.async.wait_group"),
}
