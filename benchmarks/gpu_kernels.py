"""Each kernel once, at a small shape: output and gradients against float64, one line each.

It finds a kernel that does not compile, does not run, or is wrong. How exact a kernel is, its tests say.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from gpu_process import NO_TIME, apart
from gpu_record import number
from gpu_session import Session
from torch import Tensor

from parhelion.ops import axial_attention, content_attention, gpu, halo_attention
from parhelion.ops.halo import table_rows
from parhelion.speed.timing import not_as_exact, not_finite

SEED = 20103019
# A wrong kernel errs by hundreds of times what plain PyTorch does.
SLACK = 4.0
# Narrow ones first: those never ran anywhere before.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
D, E = 16, 24
# Lines of a map, which tables are made for.
H, W = 13, 19


class Size(NamedTuple):
    """Of a map."""

    batch: int
    h: int
    w: int
    heads: int


SMALL, TINY = Size(2, H, W, 3), Size(1, 5, 7, 1)


@dataclass(frozen=True)
class Kernel:
    """A call of an operation: maps by their channels, tables by their shapes, and options."""

    attend: Callable[..., Tensor]
    channels: tuple[int, ...]
    tables: tuple[tuple[int, int], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, dtype: torch.dtype, device: str, size: Size) -> list[Tensor]:
        """Maps, tables and, last, the gradient of the output."""
        generator = torch.Generator().manual_seed(SEED)
        stride = self.options.get("stride", 1)
        maps = [(*size, channels) for channels in self.channels]
        maps[0] = (size.batch, -(-size.h // stride), -(-size.w // stride), size.heads, self.channels[0])
        last = (*maps[0][:4], E)
        shapes = [*maps, *self.tables, last]
        return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]

    def answer(self, tensors: list[Tensor], impl: str) -> list[Tensor]:
        """Output and gradients."""
        *leaves, towards = tensors
        leaves = [tensor.detach().requires_grad_() for tensor in leaves]
        out = self.attend(*leaves, impl=impl, **self.options)
        return [out.detach(), *torch.autograd.grad(out, leaves, towards)]


def _plus(q: Tensor, v: Tensor, plus: Tensor, table: Tensor, **options: Any) -> Tensor:
    return axial_attention(q, v, table, plus=plus, **options)


def _halo(relative: str, **options: Any) -> Kernel:
    width = D if relative == "summed" else D // 2
    tables = ((table_rows(options["block"], options["halo"]), width),) * 2
    return Kernel(halo_attention, (D, D, E), tables, {"relative": relative, "scale": 0.25, **options})


KERNELS = {
    "halo": _halo("halves", block=8, halo=3),
    "halo, masked, stride 2": _halo("summed", block=4, halo=1, stride=2, border="masked"),
    "content": Kernel(content_attention, (D, D, E)),
    "content, queries normalised": Kernel(content_attention, (D, D, E), options={"normalize_queries": True}),
    "axial, rows": Kernel(axial_attention, (D, E), ((2 * W - 1, D),), {"axis": "w"}),
    "axial, columns, plus a map": Kernel(_plus, (D, E, E), ((2 * H - 1, D),), {"axis": "h"}),
}


def checked(name: str, dtype: torch.dtype, device: str, size: Size) -> dict[str, Any]:
    """What a kernel errs in output and gradients, beside plain PyTorch; and what is wrong, None if nothing is."""
    kernel, started = KERNELS[name], time.monotonic()
    tensors = kernel.tensors(dtype, device, size)
    actual = kernel.answer(tensors, "triton")
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    plain = kernel.answer(tensors, "reference")
    truth = kernel.answer([tensor.double() for tensor in tensors], "reference")
    wrong = not_finite(actual)
    for parts in zip(actual, plain, truth, strict=True):
        wrong = wrong or not_as_exact(*parts, slack=SLACK)
    errors = {"errors": actual, "plain_errors": plain}
    return {
        **{what: [number(_error(*pair)) for pair in zip(found, truth, strict=True)] for what, found in errors.items()},
        "seconds_with_compiling": seconds,
        "wrong": wrong,
    }


def _error(actual: Tensor, truth: Tensor) -> float:
    """The error over the size of the truth, both root mean squares."""
    return ((actual.double() - truth).norm() / truth.norm()).item()


def check_kernels(session: Session) -> None:
    """Check every kernel in every dtype, each in a process of its own, as many at a time as there are cores."""
    tasks, sizes = {}, {}
    for dtype in DTYPES:
        for name in KERNELS:
            title = f"{name}, {str(dtype).removeprefix('torch.')}"
            sizes[title] = {"kernel": name, "dtype": str(dtype)}
            tasks[title] = partial(checked, name, dtype, session.device, TINY if session.rehearsal else SMALL)
    if gpu.interpreted():
        left_out = [title for title in tasks if sizes[title]["dtype"] == "torch.bfloat16"]
        print(f"Triton's interpreter cannot multiply bfloat16: {len(left_out)} kernels are left out", flush=True)
        for title in left_out:
            del tasks[title]
    for title, found, failed in apart(tasks, workers=workers(), deadline=session.deadline):
        row = {"name": title, **sizes[title], **(found or {"wrong": failed})}
        session.record.put("kernels", row)
        print(text_of_kernel(row), flush=True)
        if row["wrong"] not in (None, NO_TIME):
            session.blame(f"kernel of {title}: {row['wrong']}")


def workers() -> int:
    """Processes at a time: all cores but two."""
    return max(1, len(os.sched_getaffinity(0)) - 2)


def text_of_kernel(row: Mapping[str, Any]) -> str:
    """What a kernel errs, as a line."""
    if "errors" not in row:
        return f"{row['name']}: FAILED: {row['wrong']}"
    verdict = "right" if row["wrong"] is None else f"WRONG: {row['wrong']}"
    pairs = zip(row["errors"], row["plain_errors"], strict=True)
    errors = ", ".join("/".join("NaN" if one is None else f"{one:.1e}" for one in pair) for pair in pairs)
    return f"{row['name']}: {verdict}; {row['seconds_with_compiling']:.1f} s; errors/plain PyTorch's: {errors}"


def main() -> int:
    """Run every kernel once in one process, for a tool that watches it; the exit code."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, size = (torch.float16, TINY) if gpu.interpreted() else (torch.bfloat16, SMALL)
    failures = 0
    for name, kernel in KERNELS.items():
        try:
            kernel.answer(kernel.tensors(dtype, device, size), "triton")
        except Exception as error:
            failures += 1
            print(f"{name}: {error}", flush=True)
        else:
            print(f"{name}: ran", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
