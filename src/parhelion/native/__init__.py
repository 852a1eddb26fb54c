"""The compiled kernels: one library per level of instructions, chosen when first used.

They are built with the package where a C++ compiler is at hand, and are plain shared libraries: no torch and no Python
inside. Without them every operation runs on its reference.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from parhelion.native.exporting import why_not_exported

LEVELS = ("avx512_bf16", "avx512", "avx2", "baseline")  # the fastest first; every processor has the last

_chosen: list[str] = []  # by `using`, the innermost last


@torch.compiler.assume_constant_result
def why_not_native() -> str | None:
    """Why no compiled kernel can run here, or None if one can."""
    if any(why_not_level(level) is None for level in LEVELS):
        return None
    return (
        f"{why_not_level('baseline')}; installing parhelion from source builds the compiled kernels where GCC 9 or "
        "newer is at hand"
    )


@functools.cache
def why_not_level(level: str) -> str | None:
    """Why the kernels of a level cannot run here, or None if they can."""
    if not _path(level).exists():
        return f"the kernels for {level} were not built"
    try:
        runs = _open(level).parhelion_runs_here()
    except OSError as error:
        return f"the kernels for {level} cannot be loaded: {error}"
    return None if runs else f"this processor lacks the instructions of {level}"


def level() -> str:
    """The level in use: that of the innermost `using`, else the fastest that runs here."""
    return _chosen[-1] if _chosen else next(level for level in LEVELS if why_not_level(level) is None)


@contextmanager
def using(level: str) -> Iterator[None]:
    """Use the kernels of one level meanwhile, in all threads; for tests and measurements.

    Raises:
        ValueError: they cannot run here, with the reason.
    """
    reason = why_not_level(level)
    if reason is not None:
        raise ValueError(reason)
    _chosen.append(level)
    try:
        yield
    finally:
        _chosen.pop()


def run(function: str, tensor: Tensor, call: ctypes.Structure) -> None:
    """Run a kernel, in its variant for the dtype of `tensor`; Python goes on in other threads meanwhile."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    getattr(_open(level()), f"parhelion_{function}_{dtype}")(ctypes.byref(call))


def why_not_maps(**maps: Tensor) -> str | None:
    """Why no kernel can take these maps, or None if one can: all must be on the CPU, in one dtype that kernels know."""
    for name, tensor in maps.items():
        if tensor.device.type != "cpu":
            return f"{name} is on {tensor.device}, not on the CPU"
    dtypes = {tensor.dtype for tensor in maps.values()}
    if len(dtypes) > 1:
        return f"the kernel wants one dtype, not {' and '.join(sorted(map(str, dtypes)))}"
    if not dtypes <= {torch.float32, torch.bfloat16}:
        return f"the kernel computes in float32 and bfloat16, not in {dtypes.pop()}"
    return why_not_exported() or why_not_native()


def side_by_side(tensor: Tensor) -> Tensor:
    """The tensor itself if its channels, the last axis, lie side by side in memory, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def strides(tensor: Tensor, *axes: int) -> ctypes.Array[ctypes.c_int64]:
    """The strides of some axes, as a kernel reads them."""
    return (ctypes.c_int64 * len(axes))(*(tensor.stride(axis) for axis in axes))


def _path(level: str) -> Path:
    return Path(__file__).with_name(f"kernels_{level}.so")


@functools.cache
def _open(level: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(_path(level)))
