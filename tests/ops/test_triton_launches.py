"""What Triton compiles for the launches of its kernels; no GPU is needed, and nothing runs."""

import random
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from kernel_cases import Case, axial, axial_plus, content, halo, result_and_gradients

from parhelion.ops import gpu

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


@pytest.mark.parametrize("sized", SIZED.values(), ids=SIZED.keys())
def test_a_kernel_is_compiled_once_for_400_sizes_of_maps(
    specialisations: Specialisations, sized: Callable[[int, int, int], Case]
):
    launch_many(sized, 17, 400)
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
