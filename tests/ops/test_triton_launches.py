"""What Triton compiles for the launches of its kernels; no GPU is needed, and nothing runs."""

import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_cases import Case, axial, axial_plus, content, halo, result_and_gradients

from parhelion.ops import axial as axial_op
from parhelion.ops import content as content_op
from parhelion.ops import gpu
from parhelion.ops import halo as halo_op

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(gpu.interpreted(), reason="Triton's interpreter compiles nothing")


class Specialisations:
    """Stands for `Launch.__call__`: notes what Triton would compile the kernel for, by kernel and plan."""

    def __init__(self):
        from triton.backends.compiler import GPUTarget
        from triton.compiler.compiler import make_backend

        self.backend = make_backend(GPUTarget("cuda", 90, 32))
        self.found: dict[tuple[str, object], set[str]] = defaultdict(set)

    def __call__(self, launch: gpu.Launch) -> None:
        from triton.runtime.jit import create_function_from_signature

        kernel = launch.kernel
        bind = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        _, specialisation, options = bind(*launch.arguments, **launch.choices)
        self.found[kernel.fn.__name__, launch.choices["PLAN"]].add(f"{specialisation} {options}")


@pytest.fixture
def specialisations(monkeypatch: pytest.MonkeyPatch) -> Specialisations:
    """What is launched meanwhile would be compiled for this."""
    noted = Specialisations()
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    monkeypatch.setattr(gpu.Launch, "__call__", lambda launch: noted(launch))
    return noted


def sized_halo(h: int, w: int, batch: int) -> Case:
    return halo(h, w, 8, 3, d=8, e=8, heads=2, batch=batch)


def sized_halo_of_stride_2(h: int, w: int, batch: int) -> Case:
    return halo(h, w, 8, 3, 2, d=16, e=8, heads=1, batch=batch, tables=None)


def sized_content(h: int, w: int, batch: int) -> Case:
    return content(h, w, d=8, e=8, heads=2, batch=batch)


def sized_axial(h: int, w: int, batch: int) -> Case:
    return axial(h, w, "h", d=8, e=16, heads=2, batch=batch, spare=80 - h)


def sized_axial_plus(h: int, w: int, batch: int) -> Case:
    return axial_plus(h, w, "w", d=8, e=8, heads=1, batch=batch)


SIZED = {
    "halo": sized_halo,
    "halo of stride 2": sized_halo_of_stride_2,
    "content": sized_content,
    "axial": sized_axial,
    "axial, plus a map": sized_axial_plus,
}


def launch_many(sized: Callable[[int, int, int], Case], least: int, count: int) -> None:
    """Forward and backward at random sizes."""
    draw = random.Random(2103)
    for _ in range(count):
        case = sized(draw.randint(least, 80), draw.randint(least, 80), draw.randint(1, 2))
        result_and_gradients(case, case.tensors(torch.bfloat16), "triton")


@pytest.mark.parametrize("count", [100, pytest.param(400, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_a_kernel_is_compiled_once_for_many_sizes_of_maps(
    specialisations: Specialisations, sized: Callable[[int, int, int], Case], count: int
):
    launch_many(sized, 17, count)
    assert specialisations.found
    assert {len(kinds) for kinds in specialisations.found.values()} == {1}
    # Only axial attention cuts axes of different lengths into different tiles: 32 or 64 pixels where the axis fits into
    # one, 16, 32 or 64 where it does not.
    plans = 5 if "axial" in sized.__name__ else 1
    kernels = [kernel for kernel, _ in specialisations.found]
    assert all(kernels.count(kernel) <= plans for kernel in kernels)


@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_nor_is_it_compiled_for_sizes_of_1(specialisations: Specialisations, sized: Callable[[int, int, int], Case]):
    for h, w in ((1, 1), (1, 40), (40, 1)):
        case = sized(h, w, 1)
        result_and_gradients(case, case.tensors(torch.bfloat16), "triton")
    launch_many(sized, 1, 40)
    assert {len(kinds) for kinds in specialisations.found.values()} == {1}


# Shared memory

PLANS = {
    "halo: the paper's window": (halo(17, 9, 8, 3, d=16, e=16, heads=1, batch=1), torch.bfloat16),
    "halo: heads of 128": (halo(17, 9, 8, 3, d=128, e=128, heads=1, batch=1), torch.bfloat16),
    "halo: large tables in float32": (halo(4, 5, 56, 0, d=32, e=32, heads=1, batch=1), torch.float32),
    "content: heads of 128 in float32": (content(40, 41, d=128, e=128, heads=1, batch=1), torch.float32),
    "axial: heads of 128 in float32": (axial(2, 7, "w", d=128, e=128, heads=1, batch=1), torch.float32),
}
ALLOCATED = """
import json, sys
sys.path[:0] = sys.argv[2:]
import torch
from kernel_cases import result_and_gradients
from machine_code import compiled_only
from test_triton_launches import PLANS
from parhelion.ops import gpu

gpu.interpreted = lambda: True
allocated = {}
with compiled_only(int(sys.argv[1])) as launched:
    for name, (case, dtype) in PLANS.items():
        result_and_gradients(case, case.tensors(dtype), "triton")
        allocated[name] = max(code.metadata.shared for _, code in launched)
        launched.clear()
print(json.dumps(allocated))
"""


def why_not(case: Case, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot compute the case with its gradients."""
    q, *rest = (tensor.requires_grad_() for tensor in case.tensors(dtype)[:-1])
    options = case.attend.keywords
    if "block" not in options:
        return axial_op.why_not_triton(q, rest[0]) if "axis" in options else content_op.why_not_triton(q, *rest)
    window = halo_op.Window(options["block"], options["halo"], options["stride"], "zero", 1.0, options["relative"])
    return halo_op.why_not_triton(q, rest[0], rest[1], tuple(rest[2:]), window)


def least_kib(monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype) -> int:
    """What a card must share, at least, for the case to be computed."""
    for kib in range(1, 400):
        monkeypatch.setattr(gpu, "_shared_memory", lambda device, kib=kib: kib * 1024)
        if why_not(case, dtype) is None:
            return kib
    raise AssertionError("refused on every card")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90, pytest.param(86, marks=pytest.mark.thorough)])
def test_no_plan_is_allowed_on_a_card_that_shares_less_memory_than_triton_allocates(
    monkeypatch: pytest.MonkeyPatch, capability: int
):
    tests = Path(__file__).parents[1]
    folders = [str(folder) for folder in (tests, tests / "ops", tests.parent / "benchmarks")]
    command = [sys.executable, "-c", ALLOCATED, str(capability), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    for name, allocated in json.loads(done.stdout.splitlines()[-1]).items():
        allowed = 1024 * least_kib(monkeypatch, *PLANS[name])
        assert allocated <= allowed <= 2 * allocated + 16 * 1024, name


@pytest.mark.compile
def test_one_graph_launches_the_kernels_at_all_sizes(monkeypatch: pytest.MonkeyPatch):
    launched: list[str] = []
    monkeypatch.setattr(gpu, "interpreted", lambda: True)
    monkeypatch.setattr(gpu.Launch, "__call__", lambda launch: launched.append(launch.kernel.fn.__name__))
    for sized in (sized_halo, sized_content, sized_axial):
        torch.compiler.reset()
        case = sized(6, 10, 5)
        attend = partial(case.attend, impl="triton")
        compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
        assert compiled(*case.tensors(torch.float32)[:-1]).shape == case.result_shape
        with torch.compiler.set_stance("fail_on_recompile"):
            case = sized(13, 7, 3)
            assert compiled(*case.tensors(torch.float32)[:-1]).shape == case.result_shape
    assert sum(name.endswith("_forward") for name in launched) >= 4
