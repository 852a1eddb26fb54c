"""Programs of the Triton kernels that take many tiles one after the other."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_cases import Case, assert_equal, axial, content, halo, result_and_gradients
from torch import Tensor

from parhelion.ops import gpu
from parhelion.ops.axial import triton_plan as axial_plan
from parhelion.ops.halo import triton as halo_operator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        DEVICE == "cpu" and not gpu.interpreted(), reason="wants a GPU, or TRITON_INTERPRET=1 to run on the CPU"
    ),
]
SMALL = {
    "halo": halo(5, 10, 4, 1, heads=2, batch=1),
    "halo, stride 2": halo(5, 13, 6, 1, 2, heads=2, batch=1, tables="summed", border="masked"),
    "axial, an axis in one tile": axial(3, 20, "w", heads=2, batch=2),
    "axial, an axis in several tiles": axial(1, 70, "w", heads=2, batch=2),
}
LARGE = {
    "halo, 64 channels at 64x64": halo(64, 64, 8, 3, d=16, e=16, heads=4, batch=128),
    "axial, lines of 200 pixels": axial(16, 200, "w", d=16, e=16, heads=8, batch=4),
}
REPEATS = 10


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many programs share the tiles of a backward pass at most."""

    def share(number: int) -> None:
        monkeypatch.setattr(halo_operator, "PROGRAMS", number)
        monkeypatch.setattr(axial_plan, "WARPS", number)
        monkeypatch.setattr(axial_plan, "MOST_SUMS", 2**62)

    return share


def drawn(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Random maps and gradients in a dtype, and tables in float32, which shows more; drawn on the device."""
    generator = torch.Generator(DEVICE).manual_seed(20103019)
    shapes = (*case.shapes, case.result_shape)
    tensors = [torch.randn(shape, generator=generator, device=DEVICE) for shape in shapes]
    return [tensor.to(dtype) if tensor.ndim == 5 else tensor for tensor in tensors]


def gradients(case: Case, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the maps, and those of the tables."""
    found = result_and_gradients(case, tensors, "triton")[1:]
    return [tensor for tensor in found if tensor.ndim == 5], [tensor for tensor in found if tensor.ndim == 2]


def assert_summed_alike(found: Sequence[Tensor], expected: Sequence[Tensor], terms: int) -> None:
    """Fail unless sums of so many terms differ by no more than the order of their additions explains."""
    for one, other in zip(found, expected, strict=True):
        rounding = torch.finfo(torch.float32).eps * math.sqrt(terms) * other.abs().max()
        assert (one - other).abs().max() <= rounding


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.thorough] if DEVICE == "cpu" and name == "halo" else [])
        for name, case in SMALL.items()
    ],
)
def test_tiles_that_share_a_program_are_all_summed(case: Case, programs: Callable[[int], None]):
    tensors = drawn(case, torch.float32)
    programs(2**30)
    maps, tables = gradients(case, tensors)
    programs(4)  # of one warp each, or two of two
    shared_maps, shared_tables = gradients(case, tensors)
    assert_equal(shared_maps, maps)
    assert_summed_alike(shared_tables, tables, terms=math.prod(case.shapes[0][:4]))


@pytest.mark.gpu  # the interpreter runs one thread, which meets no other
@pytest.mark.gpu_first
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE.keys())
def test_many_tiles_give_the_same_sums_in_every_run(case: Case, programs: Callable[[int], None]):
    tensors = drawn(case, torch.bfloat16)
    maps, tables = gradients(case, tensors)
    for _ in range(REPEATS):
        maps_again, tables_again = gradients(case, tensors)
        assert_equal(maps_again + tables_again, maps + tables)
    programs(2**30)
    maps_apart, tables_apart = gradients(case, tensors)
    assert_equal(maps, maps_apart)
    assert_summed_alike(tables, tables_apart, terms=math.prod(case.shapes[0][:4]))


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
def test_a_query_that_is_not_finite_spoils_no_other_output(value: float):
    case = content(9, 47, d=3, e=5, heads=2, batch=1)  # two heads share products, several tiles a program
    q, k, v = (tensor.to(DEVICE) for tensor in case.tensors(torch.float32)[:-1])
    expected = case.attend(q, k, v, impl="triton")
    for row, col in ((0, 0), (4, 30), (8, 46)):
        broken = q.clone()
        broken[0, row, col, 1, 2] = value
        found = case.attend(broken, k, v, impl="triton")
        assert not found[0, row, col, 1].isfinite().any()
        found[0, row, col, 1] = expected[0, row, col, 1]
        assert torch.equal(found, expected)
