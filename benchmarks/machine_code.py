"""Compile every Triton kernel to machine code, and say what it takes of a GPU: registers, spills, shared memory, loads.

    python benchmarks/machine_code.py                # sm_80 and sm_90, into benchmarks/results/machine_code.json
    python benchmarks/machine_code.py --only 'halo*' # some cases, to the terminal

No GPU is needed: nothing runs. It says what a compiler made of the kernels, not how fast they are.
"""

import argparse
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from parhelion.cli import exit_code
from parhelion.errors import UserError
from parhelion.ops import gpu
from parhelion.ops.axial.triton import axial_attention_triton
from parhelion.ops.content.triton import content_attention_triton
from parhelion.ops.halo import Window, table_rows, table_widths
from parhelion.ops.halo.triton import halo_attention_triton
from parhelion.train.atomic import write_json

RESULTS = Path(__file__).parent / "results" / "machine_code.json"
CAPABILITIES = (80, 90)
HEADINGS = (
    "case",
    "kernel",
    "GPU",
    "warps",
    "registers",
    "spilled bytes",
    "shared KiB",
    "instructions",
    "loads by bytes",
)
LOAD = re.compile(r"\bLDG(?:STS)?\.([\w.]+)")


class Figures(NamedTuple):
    """What one kernel takes: registers a thread, bytes spilled a thread, bytes of shared memory a program.

    `loads`: how many instructions read global memory, by the bytes that they read for a thread.
    """

    case: str
    kernel: str
    capability: int
    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: int
    loads: dict[int, int]

    def cells(self) -> tuple[str, ...]:
        """The figures as text, in the order of `HEADINGS`."""
        shared = f"{self.shared / 1024:.1f}"
        loads = " ".join(f"{width}x{count}" for width, count in self.loads.items())
        numbers = (self.warps, self.registers, self.spilled, shared, self.instructions, loads)
        return (self.case, self.kernel, f"sm_{self.capability}", *map(str, numbers))


def halo(
    size: int,
    channels: int,
    heads: int,
    block: int,
    halo: int,
    dtype: torch.dtype,
    ratio: int = 1,
    tables: torch.dtype = torch.float32,
) -> None:
    """A call of halo attention, forward and backward; values have `ratio` times the channels of the keys."""
    d = channels // heads
    q, k = (torch.zeros(1, size, size, heads, d, dtype=dtype, requires_grad=True) for _ in "qk")
    v = torch.zeros(1, size, size, heads, ratio * d, dtype=dtype, requires_grad=True)
    widths = table_widths(d, "halves")
    rows = table_rows(block, halo)
    table_h, table_w = (torch.zeros(rows, width, dtype=tables, requires_grad=True) for width in widths)
    window = Window(block, halo, 1, "zero", 1.0, "halves")
    _back(halo_attention_triton(q, k, v, (table_h, table_w), window), q, k, v, table_h, table_w)


def content(size: int, channels: int, heads: int, dtype: torch.dtype, batch: int = 64) -> None:
    """A call of content attention, forward and backward; few images are cut into chunks."""
    q, k, v = (torch.zeros(batch, size, size, heads, channels // heads, dtype=dtype, requires_grad=True) for _ in "qkv")
    _back(content_attention_triton(q, k, v, normalize_queries=False), q, k, v)


def axial(size: int, channels: int, heads: int, dtype: torch.dtype, batch: int = 64) -> None:
    """A call of axial attention along rows, forward and backward."""
    q, v = (torch.zeros(batch, size, size, heads, channels // heads, dtype=dtype, requires_grad=True) for _ in "qv")
    table = torch.zeros(2 * size - 1, channels // heads, requires_grad=True)
    _back(axial_attention_triton(q, v, table, None, axis="w"), q, v, table)


def _back(out: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(out, leaves, torch.zeros_like(out))


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# fmt: off
CASES: dict[str, Callable[[], None]] = {
    "halo, 64 channels, 64x64, b 8 h 3":     partial(halo, 64, 64, 4, 8, 3, BF16),
    "halo, 128 channels, 32x32, b 8 h 3":    partial(halo, 32, 128, 8, 8, 3, BF16),
    "halo, 256 channels, 32x32, b 8 h 3":    partial(halo, 32, 256, 8, 8, 3, BF16),
    "halo, 512 channels, 16x16, b 8 h 3":    partial(halo, 16, 512, 8, 8, 3, BF16),
    "halo, 64 channels, b 4 h 1":            partial(halo, 32, 64, 4, 4, 1, BF16),
    "halo, 64 channels, b 14 h 2":           partial(halo, 56, 64, 4, 14, 2, BF16),
    "halo, 512 channels, b 32 h 3":          partial(halo, 32, 512, 8, 32, 3, BF16),
    "halo, 512 channels, values x4, b 10 h 3": partial(halo, 20, 512, 8, 10, 3, BF16, ratio=4),
    "halo, 64 channels, b 8 h 3, fp16":      partial(halo, 64, 64, 4, 8, 3, FP16),
    "halo, 64 channels, b 8 h 3, fp32":      partial(halo, 64, 64, 4, 8, 3, FP32),
    "halo, 64 channels, b 8 h 3, tables bf16": partial(halo, 64, 64, 4, 8, 3, BF16, tables=BF16),
    "halo, heads of 256, b 8 h 3":           partial(halo, 16, 512, 2, 8, 3, BF16),
    "halo, heads of 128, b 8 h 3, fp32":     partial(halo, 16, 256, 2, 8, 3, FP32),
    "content, heads of 256":                 partial(content, 28, 512, 2, BF16),
    "content, heads of 128, fp32":           partial(content, 28, 256, 2, FP32),
    "axial, heads of 256":                   partial(axial, 28, 512, 2, BF16),
    "axial, heads of 128, fp32":             partial(axial, 28, 256, 2, FP32),
    "halo, 256 channels, b 8 h 3, fp32":     partial(halo, 32, 256, 8, 8, 3, FP32),
    "content, 64 channels, 56x56":           partial(content, 56, 64, 8, BF16),
    "content, 64 channels, 56x56, one image": partial(content, 56, 64, 8, BF16, batch=1),
    "content, 128 channels, 28x28":          partial(content, 28, 128, 8, BF16),
    "content, 512 channels, 7x7":            partial(content, 7, 512, 8, BF16),
    "content, 64 channels, 56x56, fp32":     partial(content, 56, 64, 8, FP32),
    "axial, 64 channels, 56x56":             partial(axial, 56, 64, 8, BF16),
    "axial, 128 channels, 28x28":            partial(axial, 28, 128, 8, BF16),
    "axial, 512 channels, 7x7":              partial(axial, 7, 512, 8, BF16),
    "axial, 64 channels, 56x56, fp32":       partial(axial, 56, 64, 8, FP32),
    "axial, 256 channels, 56x56, fp32":      partial(axial, 56, 256, 8, FP32),
    "axial, 64 channels, 200x200":           partial(axial, 200, 64, 8, BF16, batch=4),
    # Triton takes a number that is 1 for a constant.
    "halo, one pixel":                       partial(halo, 1, 1, 1, 1, 0, BF16),
    "content, one pixel":                    partial(content, 1, 1, 1, BF16, batch=1),
    "axial, one pixel":                      partial(axial, 1, 1, 1, BF16, batch=1),
}
# fmt: on


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile what `arguments` ask for, print a table, and write it down if it is everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases to compile, with * and ? as in a shell")
    chosen = parser.parse_args(arguments)
    names = [name for name in CASES if fnmatchcase(name, chosen.only)]
    if not names:
        raise UserError(f"no case is called {chosen.only!r}; there are {'; '.join(CASES)}")
    # A process for each kind of GPU: Triton keeps what it compiled by device, and there is none.
    with multiprocessing.get_context("spawn").Pool(len(CAPABILITIES)) as pool:
        each = pool.starmap(figures, [(names, capability) for capability in CAPABILITIES])
    rows = [row for rows in each for row in rows]
    print(text(rows))
    if chosen.only == "*":
        import triton

        report = {"triton": triton.__version__, "torch": torch.__version__, "kernels": [row._asdict() for row in rows]}
        write_json(RESULTS, report)


def figures(names: Sequence[str], capability: int) -> list[Figures]:
    """The figures of all kernels that the named cases call, compiled for GPUs of a capability such as 90."""
    found: list[Figures] = []
    with compiled_only(capability) as launched:
        for name in names:
            CASES[name]()
            found += [_figures(name, capability, launch, code) for launch, code in launched]
            launched.clear()
    return found


@contextmanager
def compiled_only(capability: int) -> Iterator[list[tuple[gpu.Launch, Any]]]:
    """Compile launches for a kind of GPU instead of running them; gives (launch, compiled kernel), as they come.

    The process is spoilt for another kind, and for a GPU that is there.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Absent:
        """Stands for the driver of a GPU that is not there."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", capability, 32)

    launched: list[tuple[gpu.Launch, Any]] = []

    def compile_launch(launch: gpu.Launch) -> None:
        launched.append((launch, launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.choices)))

    driver.set_active(Absent())
    with patch.object(gpu.Launch, "__call__", compile_launch):
        yield launched


def _figures(case: str, capability: int, launch: gpu.Launch, code: Any) -> Figures:
    """What the disassembler says about a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        usage, listing = (_disassembled(option, file.name) for option in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"no resource usage in what the disassembler says: {usage}")
    instructions = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+\S", listing, re.MULTILINE))
    return Figures(
        case=case,
        kernel=launch.kernel.fn.__name__,
        capability=capability,
        warps=launch.choices["num_warps"],
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=code.metadata.shared,
        instructions=instructions,
        loads=dict(sorted(Counter(map(bytes_read, LOAD.findall(listing))).items())),
    )


def bytes_read(modifiers: str) -> int:
    """Bytes that a load reads for a thread, by what follows its name, such as "E.BYPASS.128": bits, if not 32."""
    parts = [part.lstrip("SU") for part in modifiers.split(".")]
    return next((int(part) // 8 for part in parts if part.isdigit()), 4)


def _disassembled(option: str, path: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), option, path], capture_output=True, text=True, check=True).stdout


def text(rows: Sequence[Figures]) -> str:
    """The figures as an aligned table."""
    table = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
