"""The Triton kernels against the reference: on a GPU, or in Triton's interpreter at small sizes."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from kernel_cases import (
    CASES,
    DRAWS,
    FEW,
    Case,
    assert_equal,
    assert_within_budget,
    axial,
    axial_attention_plus,
    axial_plus,
    content,
    halo,
    result_and_gradients,
    results,
)
from memory_layouts import amid_channels_of_nan, amid_nan, axes_exchanged, channels_first, heads_first
from simulated_rounding import fused_on_gpu
from torch import Tensor

from parhelion.ops import axial_attention, content_attention, gpu, halo_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        DEVICE == "cpu" and not gpu.interpreted(), reason="wants a GPU, or TRITON_INTERPRET=1 to run on the CPU"
    ),
]
bfloat16 = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter cannot multiply bfloat16"),
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, bfloat16], ids=str)
SMALL = {
    "halo": halo(5, 7, 4, 1, heads=2, batch=1),
    "halo, stride 2": halo(5, 7, 4, 1, 2, heads=2, batch=1, tables="summed", border="masked"),
    "content": content(5, 7, heads=2, batch=1),
    "axial, rows": axial(5, 7, "w", heads=2, batch=1),
    "axial, columns, plus a map": axial_plus(5, 7, "h", heads=2, batch=1),
}
small = pytest.mark.parametrize("case", SMALL.values(), ids=SMALL.keys())

MORE = {
    # h, w, block, halo
    "halo: a tail of columns": halo(9, 20, 9, 0, d=8, e=8, heads=1, batch=1),
    "halo: a wide window in two parts": halo(15, 21, 14, 2, d=8, e=3, heads=1, batch=1, border="masked"),
    "halo: logits turned round": halo(6, 7, 4, 1, scale=-0.7),
    "halo: a scale of zero": halo(6, 7, 4, 1, scale=0.0, border="masked"),
    "halo: wide heads": halo(4, 5, 4, 1, d=65, e=128, heads=1, batch=1),
    "content: several chunks of an image": content(40, 41, d=3, e=5, heads=1, batch=1),
    "content: wide heads": content(5, 7, d=65, e=128, heads=1, batch=1),
    "axial: a line of 7 pixels": axial(7, 7, "w", d=8, e=8, heads=4, batch=1),
    "axial: a line of 56 pixels": axial(56, 2, "h", d=8, e=8, heads=2, batch=1),
    "axial: wide heads": axial(5, 6, "w", d=65, e=128, heads=1, batch=1),
}
EVERY = CASES | MORE
every = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY.keys())


def smaller(case: Case) -> Case:
    """The case with fewer images, heads and blocks where kernels are interpreted, at a hundred programs a second."""
    if DEVICE == "cuda":
        return case
    options = case.attend.keywords
    block, stride = options.get("block"), options.get("stride", 1)
    maps = [shape for shape in case.shapes if len(shape) == 5]
    batch, heads = min(maps[0][0], 1), min(maps[0][3], 2)
    h, w = maps[-1][1:3] if block is None else (min(maps[-1][1], block + 1), min(maps[-1][2], max(2 * block - 1, 3)))
    shapes = []
    for place, shape in enumerate(case.shapes):
        step = stride if place == 0 else 1
        cut = (batch, -(-h // step), -(-w // step), heads, shape[-1])
        shapes.append(cut if len(shape) == 5 else shape)
    return replace(case, shapes=tuple(shapes))


def run(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients, computed by the kernels on the device."""
    found = result_and_gradients(case, [tensor.to(DEVICE) for tensor in tensors], "triton")
    return [tensor.cpu() for tensor in found]


# Exactness


def assert_on_gpu_within_budget(case: Case, dtype: torch.dtype) -> None:
    """Fail unless the kernels' output and gradients are as exact as their arithmetic allows."""
    draws = DRAWS if DEVICE == "cuda" else 1  # the interpreter is slow
    actual = results(case, dtype, "triton", device=DEVICE, draws=draws)
    assert_within_budget(case, actual, dtype, arithmetic=fused_on_gpu(dtype), draws=draws)


# What Triton's interpreter is asked to compute; the rest of the narrow dtypes is for a GPU.
INTERPRETED = {torch.float32: EVERY, torch.float16: {name: EVERY[name] for name in (*FEW, *MORE)}}


@dtypes
@every
def test_output_and_gradients_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype):
    if DEVICE == "cpu" and case not in INTERPRETED[dtype].values():
        pytest.skip("wants a GPU: the interpreter takes some cases in float16 only")
    case = smaller(case)
    assert_on_gpu_within_budget(case, dtype)


@dtypes
@pytest.mark.parametrize("name", SMALL)
def test_several_images_and_heads_are_kept_apart(name: str, dtype: torch.dtype):
    case = SMALL[name]
    shapes = tuple((2, *shape[1:3], 3, shape[4]) if len(shape) == 5 else shape for shape in case.shapes)
    case = replace(case, shapes=shapes)
    assert_on_gpu_within_budget(case, dtype)


@dtypes
@small
def test_logits_of_ten_thousand_stay_finite_and_exact(case: Case, dtype: torch.dtype):
    case = replace(case, largeness=3e3)
    if dtype == torch.float16:
        case = replace(case, largeness=300.0)  # float16 ends at 65504
    assert_on_gpu_within_budget(case, dtype)


@dtypes
def test_two_runs_are_bitwise_equal(dtype: torch.dtype):
    for case in SMALL.values():
        assert_equal(run(case, case.tensors(dtype)), run(case, case.tensors(dtype)))


# Memory


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill new tensors with NaN meanwhile."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@small
@pytest.mark.usefixtures("poison")
def test_what_memory_held_before_does_not_matter(case: Case):
    found = run(case, case.tensors(torch.float32))
    torch.use_deterministic_algorithms(False)
    assert_equal(found, run(case, case.tensors(torch.float32)))


@small
def test_nothing_beside_the_maps_is_read(case: Case):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float16)]
    assert_equal(run(case, [amid_nan(tensor) for tensor in tensors]), run(case, tensors))


LAYOUTS = (channels_first, heads_first, axes_exchanged, amid_channels_of_nan)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@small
def test_memory_may_be_in_any_order(case: Case, layout: Callable[[Tensor], Tensor]):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    laid_out = [layout(tensor) if tensor.ndim == 5 else tensor.t().contiguous().t() for tensor in tensors]
    assert_equal(run(case, laid_out), run(case, tensors))


@small
def test_gradients_may_be_expanded(case: Case):
    *leaves, towards = case.tensors(torch.float32)
    expanded = towards[:1, :1, :1, :1, :1].expand_as(towards)
    assert_equal(run(case, [*leaves, expanded]), run(case, [*leaves, expanded.contiguous()]))


# Dtypes


@small
def test_tables_stay_in_their_own_dtype(case: Case):
    tensors = case.tensors(torch.float16)
    wide = [tensor.float() if tensor.ndim == 2 else tensor for tensor in tensors]
    found = run(case, wide)
    for gradient, leaf in zip(found[1:], wide[:-1], strict=True):
        assert gradient.dtype == leaf.dtype
    assert_equal([tensor.to(torch.float16) for tensor in found], run(case, tensors))


# Not a number


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@small
def test_what_is_not_finite_shows_in_the_outputs_of_the_equation(case: Case, value: float):
    tensors = case.tensors(torch.float32)[:-1]
    for which, tensor in enumerate(tensors):
        if tensor.ndim == 2 and value == value:  # an infinite embedding makes some logits infinite, others not
            continue
        broken = list(tensors)
        broken[which] = tensor.clone()
        broken[which].view(-1)[tensor.numel() // 3] = value
        actual = case.attend(*(tensor.to(DEVICE) for tensor in broken), impl="triton").cpu()
        truth = case.attend(*(tensor.double() for tensor in broken), impl="reference")
        if case.attend.func in (axial_attention, axial_attention_plus):
            # Short lines share products, so more of them may be lost; but none that is lost looks sound.
            assert actual.isfinite().logical_and(~truth.isfinite()).sum() == 0
        else:
            assert torch.equal(actual.isnan(), truth.isnan())


# Sizes that the paper has, on a GPU only


on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="wants a GPU: real sizes take hours in the interpreter")
REAL = {
    "halo, 64 channels at 64x64": halo(64, 64, 8, 3, d=16, e=16, heads=4, batch=8, scale=1.0),
    "halo, 128 channels at 32x32": halo(32, 32, 8, 3, d=16, e=16, heads=8, batch=8, scale=1.0),
    "halo, 256 channels at 16x16": halo(16, 16, 8, 3, d=32, e=32, heads=8, batch=8, scale=1.0),
    "halo, blocks of 32": halo(64, 64, 32, 3, d=64, e=64, heads=8, scale=1.0),
    "halo, wide values": halo(19, 19, 10, 3, d=64, e=256, heads=8, scale=1.0),
    "content, 64 channels at 56x56": content(56, 56, d=8, e=8, heads=8, batch=8),
    "content, 512 channels at 7x7": content(7, 7, d=64, e=64, heads=8, batch=8),
    "content, a large image": content(160, 200, d=16, e=16, heads=8, batch=1),
    "axial, 64 channels at 56x56": axial(56, 56, "h", d=8, e=8, heads=8, batch=8),
    "axial, 512 channels at 7x7": axial(7, 7, "w", d=64, e=64, heads=8, batch=8),
    "axial, a large image": axial(160, 200, "w", d=16, e=16, heads=8, batch=1),
}


@on_gpu
@dtypes
@pytest.mark.parametrize("case", REAL.values(), ids=REAL.keys())
def test_real_sizes_are_as_exact_as_the_reference(case: Case, dtype: torch.dtype):
    assert_on_gpu_within_budget(case, dtype)


@on_gpu
@pytest.mark.parametrize("case", [REAL[name] for name in REAL if "64 channels" in name])
def test_a_cuda_graph_replays_the_kernels(case: Case):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.bfloat16)]
    expected = result_and_gradients(case, tensors, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = result_and_gradients(case, tensors, "triton")
    for tensor in replayed:
        tensor.fill_(torch.nan)
    graph.replay()
    assert_equal(replayed, expected)


@on_gpu
def test_auto_runs_the_kernels_on_a_gpu():
    for case in (halo(6, 10, 4, 1), content(6, 10), axial(6, 10, "h")):
        tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)[:-1]]
        assert torch.equal(case.attend(*tensors), case.attend(*tensors, impl="triton"))


# Without gradients


def test_a_result_that_needs_no_gradient_keeps_no_graph():
    for attend, count, options in (
        (halo_attention, 3, {"block": 4, "halo": 1}),
        (content_attention, 3, {}),
        (axial_attention, 2, {"axis": "h"}),
    ):
        maps = [torch.randn(1, 3, 4, 2, 8, device=DEVICE) for _ in range(count)]
        tables = [torch.randn(5, 8, device=DEVICE)] if attend is axial_attention else []
        assert not attend(*maps, *tables, impl="triton", **options).requires_grad
        with torch.no_grad():
            maps[0].requires_grad_()
            assert not attend(*maps, *tables, impl="triton", **options).requires_grad
