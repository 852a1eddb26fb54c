"""The product of two large matrices, which other speeds are compared with: as large as the machine can do quickly."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

Run: TypeAlias = Callable[[], Sequence[Tensor]]

# What a processor multiplies matrices with, as /proc/cpuinfo spells it on x86 and on Arm.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
# Matrices grow, from the first side to the last, while the next larger product would still take less than so long.
FIRST_SIDE, LAST_SIDE = 64, 8192
PRODUCT_SECONDS = 0.25
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class MatrixProduct:
    """The product of two square matrices in a dtype on a device."""

    side: int
    run: Run
    emulated: bool  # the processor has no instructions for the dtype, or PyTorch does not use them

    def flops_per_second(self, seconds: float) -> float:
        """The rate, where a call takes `seconds`; a multiply-add is two FLOPs."""
        return 2 * self.side**3 / seconds


def matrix_product(dtype: torch.dtype, device: str) -> MatrixProduct:
    """The largest product that takes no more than about `PRODUCT_SECONDS`; its size is found by trying.

    A product without instructions for its dtype can be 500 times as slow as another, so no size fits every machine.
    """
    side, run = FIRST_SIDE, product_run(FIRST_SIDE, dtype, device)
    # Twice the side is eight times the work.
    while side < LAST_SIDE and 8 * _least_seconds(run) <= PRODUCT_SECONDS:
        side *= 2
        run = product_run(side, dtype, device)
    return MatrixProduct(side=side, run=run, emulated=_emulated(side, run, dtype, device))


def product_run(side: int, dtype: torch.dtype, device: str) -> Run:
    """The product of two matrices of so many rows and columns."""
    # Random factors: of constant ones a GPU draws less power, and clocks higher.
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: (torch.mm(left, right, out=product),)


def _emulated(side: int, run: Run, dtype: torch.dtype, device: str) -> bool:
    """Whether `dtype` is multiplied by detours: a CPU lacks the flags, or needs twice as long as for float32."""
    if dtype == torch.float32:
        return False
    if device != "cpu":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    flags = cpu_flags()
    if flags and not set(flags) & set(BFLOAT16_FLAGS):
        return True
    return _least_seconds(run) > 2 * _least_seconds(product_run(side, torch.float32, device))


def _least_seconds(run: Run) -> float:
    return min(seconds_per_call(run, 1) for _ in range(TRIES))


def seconds_per_call(run: Run, calls: int) -> float:
    """Mean seconds of so many calls, a GPU's work included."""
    _wait_for_gpu()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    _wait_for_gpu()
    return (time.perf_counter() - started) / calls


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def cpu_flags() -> list[str]:
    """Those of `CPU_FLAGS` that the processor has; empty where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.split(":")[0].strip() in ("flags", "Features"):
                found = set(line.partition(":")[2].split())
                return [flag for flag in CPU_FLAGS if flag in found]
    return []
