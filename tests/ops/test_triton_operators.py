"""The Triton kernels as operators: why one cannot run, the contract of torch.library, compiling, checkpointing."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from kernel_cases import Case, assert_within_budget, axial, axial_plus, content, halo, result_and_gradients
from simulated_rounding import fused_on_gpu
from small_layers import assert_trains_within_budget
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from triton_cases import DEVICE, EVERY, REAL, REAL_NARROW, SMALL

from parhelion.ops import axial as axial_op
from parhelion.ops import content as content_op
from parhelion.ops import gpu
from parhelion.ops import halo as halo_op
from parhelion.ops.implementation import chosen

why_not_halo = partial(halo_op.why_not_triton, tables=None, window=halo_op.Window(4, 1, 1, "zero", 1.0, "halves"))
OPERATIONS = {
    "halo": (halo(3, 5, 4, 1, heads=2, batch=1), why_not_halo),
    "halo without tables": (halo(3, 5, 4, 1, heads=2, batch=1, tables=None), why_not_halo),
    "content": (content(3, 5, heads=2, batch=1), content_op.why_not_triton),
    "axial": (axial(3, 5, "h", heads=2, batch=1), axial_op.why_not_triton),
    "axial, plus a map": (axial_plus(3, 5, "w", heads=2, batch=1), axial_op.why_not_triton),
}
operations = pytest.mark.parametrize(("case", "why_not_triton"), OPERATIONS.values(), ids=OPERATIONS.keys())
# The interpreter takes seconds for each, so that one of each operation is run where there is no GPU.
OF_EACH = ("halo", "content", "axial, plus a map")
cases = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.thorough] if DEVICE == "cpu" and name not in OF_EACH else [])
        for name, (case, _) in OPERATIONS.items()
    ],
)


def runs(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs kernels."""
    reason = "wants a GPU, or TRITON_INTERPRET=1 to run on the CPU"
    return pytest.mark.triton(pytest.mark.skipif(DEVICE == "cpu" and not gpu.interpreted(), reason=reason)(test))


def maps(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.ndim == 5]


# Which runs, and why not


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels take maps on the CPU, as in Triton's interpreter; none is run."""
    monkeypatch.setattr(gpu, "interpreted", lambda: True)


@pytest.mark.skipif(gpu.interpreted(), reason="the interpreter takes maps on the CPU")
@operations
def test_kernels_for_gpus_refuse_maps_on_the_cpu(case: Case, why_not_triton: Callable[..., str | None]):
    tensors = case.tensors(torch.float32)[:-1]
    reason = "q is on cpu, not on a GPU"
    assert why_not_triton(*maps(tensors)) == reason
    with pytest.raises(ValueError, match=f"^{re.escape(f'impl={chr(39)}triton{chr(39)} cannot run: {reason}')}$"):
        case.attend(*tensors, impl="triton")


@operations
@pytest.mark.usefixtures("interpreted")
def test_kernels_refuse_what_they_cannot_compute(case: Case, why_not_triton: Callable[..., str | None]):
    q, *rest = maps(case.tensors(torch.float32)[:-1])
    double = [tensor.double() for tensor in (q, *rest)]
    assert why_not_triton(*double) == "the kernel computes in float32, bfloat16 and float16, not in torch.float64"
    mixed = (q, *rest[:-1], rest[-1].half())
    assert why_not_triton(*mixed) == "the kernel wants one dtype, not torch.float16 and torch.float32"
    apart = (q, *rest[:-1], rest[-1].to("meta"))
    assert why_not_triton(*apart) == "the kernel wants one device, not cpu and meta"
    wide = [torch.empty(*tensor.shape[:4], 257, device="meta") for tensor in (q, *rest)]
    assert why_not_triton(*wide) == "the kernel takes heads of up to 128 channels of torch.float32, and q has 257"
    wide = [tensor.half() for tensor in wide]
    assert why_not_triton(*wide) == "the kernel takes heads of up to 256 channels of torch.float16, and q has 257"
    many = [torch.empty(65_536, *tensor.shape[1:], device="meta") for tensor in (q, *rest)]
    assert why_not_triton(*many) == "the kernel takes up to 65535 images at a time, not 65536"


@pytest.mark.usefixtures("interpreted")
def test_kernels_take_every_call_that_they_are_tested_on():
    for dtype in gpu.DTYPES:
        narrow = {} if dtype == torch.float32 else REAL_NARROW
        for case in (SMALL | EVERY | REAL | narrow).values():
            inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape in case.shapes]
            assert case.attend(*inputs, impl="triton").shape == case.result_shape


def shares(monkeypatch: pytest.MonkeyPatch, kib: int) -> None:
    """Let programs on any device share so much memory."""
    monkeypatch.setattr(gpu, "_shared_memory", lambda device: kib * 1024)


@pytest.mark.usefixtures("interpreted")
def test_large_tables_and_wide_windows_are_refused_in_words_and_auto_falls_back(monkeypatch: pytest.MonkeyPatch):
    shares(monkeypatch, 99)
    large = halo(4, 5, 56, 0, d=32, e=32, heads=1, batch=1)
    tensors = large.tensors(torch.float32)[:-1]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    reason = "the kernel may need [0-9]+ KiB of shared memory, and cpu has 99"
    with pytest.raises(ValueError, match=f"^impl='triton' cannot run: {reason}$"):
        large.attend(*leaves, impl="triton")
    assert large.attend(*leaves).isfinite().all()
    # Tables do not fit where their gradients are wanted, even theirs alone; the forward pass does.
    q, k, v, *tables = (tensor.detach() for tensor in leaves)
    window = halo_op.Window(56, 0, 1, "zero", 1.0, "halves")
    assert halo_op.why_not_triton(q, k, v, tuple(tables), window) is None
    assert "99" in halo_op.why_not_triton(q, k, v, (tables[0].requires_grad_(), tables[1]), window)
    with torch.no_grad():
        assert halo_op.why_not_triton(q, k, v, tuple(tables), window) is None
    shares(monkeypatch, 227)
    assert halo_op.why_not_triton(q, k, v, tuple(tables), window) is None
    for side, reason in (
        (127, None),
        (128, "the kernel takes windows of up to 127 pixels a side for these heads, and this one has 128"),
    ):
        window = halo_op.Window(side, 0, 1, "zero", 1.0, "halves")
        assert halo_op.why_not_triton(q, k, v, None, window) == reason


@pytest.mark.usefixtures("interpreted")
def test_wide_heads_in_float32_are_refused_where_a_card_shares_too_little(monkeypatch: pytest.MonkeyPatch):
    q = torch.empty(1, 3, 2, 1, 128, requires_grad=True)
    for kib, reason in ((99, "the kernel may need 159 KiB of shared memory, and cpu has 99"), (163, None), (227, None)):
        shares(monkeypatch, kib)
        assert content_op.why_not_triton(q, q, q) == reason
        assert content_op.why_not_triton(q.detach(), q.detach(), q.detach()) is None
        assert (axial_op.why_not_triton(q, q) is None) == (kib > 99)
        half = q.half()
        assert content_op.why_not_triton(half, half, half) is None
        assert axial_op.why_not_triton(half, half) is None


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment where Triton is not installed."""
    monkeypatch.setattr(gpu, "_found", lambda: False)


@operations
@pytest.mark.usefixtures("interpreted", "without_triton")
def test_without_triton_the_reason_is_said(case: Case, why_not_triton: Callable[..., str | None]):
    reason = why_not_triton(*maps(case.tensors(torch.float32)[:-1]))
    assert reason == "Triton is not installed; it comes with PyTorch for GPUs on Linux"


def test_auto_takes_compiled_code_then_kernels_for_gpus_then_the_reference():
    assert chosen("auto", why_not_cpu=None, why_not_triton=None) == "cpu"
    assert chosen("auto", why_not_cpu="no", why_not_triton=None) == ("reference" if gpu.interpreted() else "triton")
    assert chosen("auto", why_not_cpu="no", why_not_triton="no") == "reference"
    assert chosen("reference", why_not_cpu=None, why_not_triton=None) == "reference"


@pytest.mark.usefixtures("interpreted", "libraries")
def test_auto_never_interprets():
    for case, _ in OPERATIONS.values():
        tensors = case.tensors(torch.float32)[:-1]
        assert torch.equal(case.attend(*tensors), case.attend(*tensors, impl="reference"))


IMPORTED = "import sys, parhelion; sys.exit(any(name.endswith('triton_kernels') for name in sys.modules))"


def test_importing_the_package_imports_no_kernel():
    assert subprocess.run([sys.executable, "-c", IMPORTED], check=False).returncode == 0


# The contract of custom operators


class Noted(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the operators of kernels that run meanwhile, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "triton" in str(func):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@runs
@cases
def test_operators_keep_the_contract_of_torch_library(case: Case):
    *leaves, towards = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    with Noted() as noted:
        case.attend(*leaves, impl="triton").backward(towards)
    assert len(noted.calls) == 2
    for operator, arguments in noted.calls:
        arguments = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
        torch.library.opcheck(operator, tuple(arguments))
    operator, arguments = noted.calls[0]
    wanted = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments]
    torch.library.opcheck(operator, tuple(wanted))


# Autograd


@runs
@cases
def test_gradients_flow_only_where_they_are_required(case: Case):
    *leaves, towards = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    everything = result_and_gradients(case, [*leaves, towards], "triton")[1:]
    for which in (0, len(leaves) - 1):
        inputs = [tensor.clone().requires_grad_(place == which) for place, tensor in enumerate(leaves)]
        case.attend(*inputs, impl="triton").backward(towards)
        assert [tensor.grad is not None for tensor in inputs] == [place == which for place in range(len(inputs))]
        assert torch.equal(inputs[which].grad, everything[which])


@runs
@cases
def test_activation_checkpointing_changes_no_gradient(case: Case):
    *leaves, towards = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    expected = result_and_gradients(case, [*leaves, towards], "triton")[1:]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    checkpoint(lambda *tensors: case.attend(*tensors, impl="triton"), *leaves, use_reentrant=False).backward(towards)
    for tensor, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


# The layers, under autocast


@runs
@pytest.mark.gpu_first
@pytest.mark.parametrize("name", ["halo", "global", "global, queries normalised"])
def test_layers_train_under_autocast_as_exactly_as_with_the_reference(name: str):
    # The interpreter cannot multiply bfloat16.
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float16
    images, towards = (torch.randn(2, 12, 3, 5, device=DEVICE) for _ in range(2))
    assert_trains_within_budget(name, "triton", images, towards, dtype)


class SoftmaxInFloat32(TorchFunctionMode):
    """Give a softmax in float32, as autocast does on a GPU, though not on a CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.softmax:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@runs
def test_a_softmax_that_comes_in_float32_changes_no_dtype():
    case = content(3, 5, heads=2, batch=1, normalize_queries=True)
    leaves = [tensor.to(DEVICE) for tensor in case.tensors(torch.float16)[:-1]]
    expected = case.attend(*leaves, impl="triton")
    with Noted() as noted, SoftmaxInFloat32():
        found = case.attend(*leaves, impl="triton")
    assert [{tensor.dtype for tensor in arguments} for _, arguments in noted.calls] == [{torch.float16}]
    assert torch.equal(found, expected)


@runs
@pytest.mark.gpu
@pytest.mark.gpu_first
def test_normalised_queries_under_autocast_stay_within_the_error_budget():
    case = content(7, 9, normalize_queries=True)
    *leaves, towards = [tensor.to(DEVICE) for tensor in case.tensors(torch.bfloat16)]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    with torch.autocast("cuda", torch.bfloat16):
        out = case.attend(*leaves, impl="triton")
    found = [tensor[None].cpu() for tensor in (out.detach(), *torch.autograd.grad(out, leaves, towards))]
    assert_within_budget(case, found, torch.bfloat16, arithmetic=fused_on_gpu(torch.bfloat16), draws=1)


# Under torch.compile


@runs
@cases
def test_one_graph_gives_the_eager_result_and_gradients(case: Case):
    tensors = [tensor.to(DEVICE) for tensor in case.tensors(torch.float32)]
    expected = result_and_gradients(case, tensors, "triton")
    *leaves, towards = tensors
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]
    torch.compiler.reset()
    backend = "inductor" if DEVICE == "cuda" else "aot_eager"
    compiled = torch.compile(lambda *inputs: case.attend(*inputs, impl="triton"), fullgraph=True, backend=backend)
    out = compiled(*leaves)
    found = [out.detach(), *torch.autograd.grad(out, leaves, towards)]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
