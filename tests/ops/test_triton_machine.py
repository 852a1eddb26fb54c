"""The Triton kernels as compiled for sm_90, run instruction by instruction on the CPU: no GPU is needed.

Triton's interpreter runs what we write, this what Triton makes of it: bfloat16, shared memory, what warps leave to each
other. One process runs all calls, since compiling for a GPU that is not there spoils it.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from kernel_cases import Case, axial, content, halo
from ptx.machine import step
from ptx.process import FAULTS, noted, noted_with
from ptx.source import UnknownError
from triton_cases import EVERY, SMALL, smaller

from parhelion.ops import gpu

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.skipif(gpu.interpreted(), reason="Triton's interpreter compiles nothing"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels itself"),
]

WINDOW = halo(9, 10, 8, 3, d=16, e=16, heads=1, batch=1)
# Channels that are read 16 bytes at a time, and as many of them as matrix instructions have shapes for.
WHOLE_HEADS = {
    "halo: whole heads of 16": WINDOW,
    "halo: whole heads of 32, values of 64": halo(9, 10, 8, 3, d=32, e=64, heads=1, batch=1, border="masked"),
    "halo: whole heads of 128": halo(9, 10, 8, 3, d=128, e=128, heads=1, batch=1),
    "content: whole heads of 8": content(9, 10, d=8, e=8, heads=2, batch=1),
    "content: whole heads of 128": content(9, 8, d=128, e=128, heads=1, batch=1),
    "axial: whole heads of 16": axial(21, 2, "h", d=16, e=16, heads=2, batch=1),
    "axial: whole heads of 32": axial(3, 37, "w", d=32, e=32, heads=1, batch=1),
}
CASES = {name: smaller(case) for name, case in EVERY.items() if "no image" not in name} | WHOLE_HEADS
SHORT = {
    torch.bfloat16: (
        "halo: whole heads of 16",
        "halo: stride 2, queries count",
        "content: more than one chunk of pixels",
        "axial: rows",
        "axial: columns, plus a map",
    ),
    torch.float16: ("axial: rows, a longer table",),
}
# Float32 is tested in Triton's interpreter; here, that three products of tf32 are put together as they should.
TF32 = {
    "halo: stride 2, queries count": CASES["halo: stride 2, queries count"],
    **{name: SMALL[name] for name in ("content, one chunk", "axial, rows")},
}


def calls() -> Iterator[object]:
    """Every case in both narrow dtypes, a few in float32; those that are not in `SHORT` are thorough."""
    for dtype, short in SHORT.items():
        for name, case in CASES.items():
            marks = [] if name in short else [pytest.mark.thorough, pytest.mark.slow]
            yield pytest.param(case, dtype, id=f"{name}-{dtype}", marks=marks)
    for name, case in TF32.items():
        yield pytest.param(case, torch.float32, id=f"{name}-float32", marks=[pytest.mark.thorough, pytest.mark.slow])


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize(("case", "dtype"), list(calls()))
def test_compiled_kernels_are_exact_and_keep_to_the_rules(process: ProcessPoolExecutor, case: Case, dtype: torch.dtype):
    assert process.submit(noted, case, dtype).result() == {}


FOUND = {
    "two groups of warps": "a product reads what another group fenced, without a barrier in between",
    "maps that lack their last row": "memory beside all tensors is read",
    "no barriers": "shared memory is read after another warp's write, without a barrier",
    "no fences": "a product reads what was not fenced",
    "copies that are not waited for": "shared memory is read before a copy has arrived",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_noted(process: ProcessPoolExecutor, fault: str):
    assert FOUND[fault] in process.submit(noted_with, fault, WINDOW).result()


def test_an_instruction_that_the_machine_does_not_know_is_named():
    with pytest.raises(UnknownError, match=r"wgmma\.mma_async\.sp"):
        step("wgmma.mma_async.sp")
