"""The compiled kernels as operators: which runs when, why one cannot, autograd, checkpointing and autocast."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import CASES, FEW, Case, axial, content, halo, result_and_gradients
from memory_layouts import axes_exchanged, channels_first
from small_layers import assert_trains_within_budget
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from parhelion import native
from parhelion.ops import axial as axial_op
from parhelion.ops import content as content_op
from parhelion.ops import halo as halo_op

kernels = pytest.mark.skipif(native.why_not_native() is not None, reason=str(native.why_not_native()))
few = pytest.mark.parametrize("case", [CASES[name] for name in FEW], ids=FEW)
OPERATIONS = {
    "halo": (halo(6, 10, 4, 1), halo_op.why_not_cpu),
    "content": (content(6, 10), content_op.why_not_cpu),
    "axial": (axial(6, 10, "h"), axial_op.why_not_cpu),
}
operations = pytest.mark.parametrize(("case", "why_not_cpu"), OPERATIONS.values(), ids=OPERATIONS.keys())


def maps(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor.ndim == 5]


class Called(TorchDispatchMode):
    """Notes the operators that run meanwhile."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# Which runs, and why not


@kernels
@few
def test_auto_runs_the_kernel_where_it_can(case: Case):
    tensors = case.tensors(torch.float32)[:-1]
    with Called() as called:
        out = case.attend(*tensors)
    assert any(name.startswith("parhelion.") for name in called.names)
    assert torch.equal(out, case.attend(*tensors, impl="cpu"))
    with Called() as called:
        case.attend(*tensors, impl="reference")
    assert not any(name.startswith("parhelion.") for name in called.names)


def refusals(tensors: list[Tensor]) -> list[tuple[list[Tensor], str]]:
    """Maps that no kernel takes, each with the reason."""
    q, *rest = maps(tensors)
    single = "the kernel computes in float32 and bfloat16, not in torch."
    mixed = "the kernel wants one dtype, not torch.bfloat16 and torch.float32"
    return [
        ([q.to("meta"), *(tensor.to("meta") for tensor in rest)], "q is on meta, not on the CPU"),
        ([q, *rest[:-1], rest[-1].to("meta")], "v is on meta, not on the CPU"),
        ([tensor.double() for tensor in (q, *rest)], f"{single}float64"),
        ([tensor.half() for tensor in (q, *rest)], f"{single}float16"),
        ([q, *rest[:-1], rest[-1].bfloat16()], mixed),
        ([*(tensor.bfloat16() for tensor in (q, *rest[:-1])), rest[-1]], mixed),
    ]


@operations
@pytest.mark.parametrize("which", range(6))
def test_a_kernel_that_cannot_run_says_why(case: Case, why_not_cpu: Callable[..., str | None], which: int):
    tensors = case.tensors(torch.float32)[:-1]
    refused, reason = refusals(tensors)[which]
    tables = [tensor.to(refused[0].device) for tensor in tensors if tensor.ndim == 2]
    assert why_not_cpu(*refused) == reason
    with pytest.raises(ValueError, match=f"^{re.escape(f'impl={chr(39)}cpu{chr(39)} cannot run: {reason}')}$"):
        case.attend(*refused, *tables, impl="cpu")
    if refused[-1].device == refused[0].device:
        assert case.attend(*refused, *tables).dtype == refused[-1].dtype


NOT_BUILT = (
    "the kernels for baseline were not built; installing parhelion from source builds the compiled kernels where GCC 9 "
    "or newer is at hand"
)


@operations
@pytest.mark.usefixtures("libraries")
def test_without_the_compiled_libraries_the_reference_runs(case: Case, why_not_cpu: Callable[..., str | None]):
    tensors = case.tensors(torch.float32)
    assert why_not_cpu(*maps(tensors[:-1])) == NOT_BUILT
    actual, expected = (result_and_gradients(case, tensors, impl) for impl in ("auto", "reference"))
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    with pytest.raises(ValueError, match=r"^impl='cpu' cannot run: the kernels for baseline were not built; "):
        case.attend(*tensors[:-1], impl="cpu")


@pytest.mark.usefixtures("libraries")
def test_without_the_compiled_libraries_no_level_can_be_used():
    with pytest.raises(ValueError, match=r"^the kernels for avx2 were not built$"), native.using("avx2"):
        pass


def test_a_library_that_cannot_be_loaded_is_named_and_left(libraries: Path):
    (libraries / "kernels_baseline.so").write_text("no library")
    assert native.why_not_native().startswith("the kernels for baseline cannot be loaded: ")
    assert halo(6, 10, 4, 1).attend(*halo(6, 10, 4, 1).tensors(torch.float32)[:-1]).isfinite().all()


# The contract of custom operators


def operator_calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """All operators of kernels, each with arguments."""
    operators = torch.ops.parhelion
    q, k, v, table_h, table_w, towards = halo(6, 10, 4, 1).tensors(torch.float32)
    choices = ([4, 1, 1, 1, 0, 0], 0.7)
    statistics = operators.halo_attention_cpu(q, k, v, table_h, table_w, *choices)[1]
    without = operators.halo_attention_cpu(q, k, v, None, None, *choices)[1]
    pixels, line = content(6, 10).tensors(torch.float32), axial(6, 10, "h").tensors(torch.float32)
    saved = operators.content_attention_cpu(*pixels[:3])[1:]
    return {
        "halo": (operators.halo_attention_cpu, (q, k, v, table_h, table_w, *choices)),
        "halo without tables": (operators.halo_attention_cpu, (q, k, v, None, None, *choices)),
        "halo backward": (
            operators.halo_attention_cpu_backward,
            (towards, statistics, q, k, v, table_h, table_w, *choices),
        ),
        "halo backward without tables": (
            operators.halo_attention_cpu_backward,
            (towards, without, q, k, v, None, None, *choices),
        ),
        "content": (operators.content_attention_cpu, tuple(pixels[:3])),
        "content backward": (operators.content_attention_cpu_backward, (pixels[3], *saved, *pixels[:3])),
        "axial": (operators.axial_attention_cpu, (*line[:3], None, True)),
        "axial plus a map": (operators.axial_attention_cpu, (*line[:3], line[3], True)),
        "axial backward": (operators.axial_attention_cpu_backward, (line[3], *line[:3], True)),
    }


NAMES = tuple(f"{name}{way}" for name in ("halo", "content", "axial") for way in ("", " backward"))


@kernels
@pytest.mark.parametrize(
    "layout", [Tensor.contiguous, axes_exchanged, pytest.param(channels_first, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("name", [*NAMES, "axial plus a map", "halo without tables", "halo backward without tables"])
def test_operators_keep_the_contract_of_torch_library(name: str, layout: Callable[[Tensor], Tensor]):
    operator, arguments = operator_calls()[name]
    arguments = [layout(x) if isinstance(x, Tensor) and x.ndim == 5 else x for x in arguments]
    torch.library.opcheck(operator.default, tuple(arguments))
    if "backward" not in name:
        wanted = [x.detach().requires_grad_() if isinstance(x, Tensor) else x for x in arguments]
        torch.library.opcheck(operator.default, tuple(wanted))


# Autograd


@kernels
@few
def test_gradients_flow_only_where_they_are_required(case: Case):
    *leaves, towards = case.tensors(torch.float32)
    everything = result_and_gradients(case, [*leaves, towards])[1:]
    for which in range(len(leaves)):
        inputs = [tensor.clone().requires_grad_(place == which) for place, tensor in enumerate(leaves)]
        case.attend(*inputs, impl="cpu").backward(towards)
        for place, tensor in enumerate(inputs):
            assert (tensor.grad is not None) == (place == which)
        assert torch.equal(inputs[which].grad, everything[which])


@kernels
@few
def test_a_result_that_needs_no_gradient_keeps_no_graph(case: Case):
    tensors = case.tensors(torch.float32)[:-1]
    assert not case.attend(*tensors, impl="cpu").requires_grad
    with torch.no_grad():
        assert not case.attend(*(tensor.requires_grad_() for tensor in tensors), impl="cpu").requires_grad


@kernels
@few
def test_activation_checkpointing_changes_no_gradient(case: Case):
    *leaves, towards = case.tensors(torch.float32)
    expected = result_and_gradients(case, [*leaves, towards])[1:]
    leaves = [tensor.requires_grad_() for tensor in leaves]
    checkpoint(lambda *tensors: case.attend(*tensors, impl="cpu"), *leaves, use_reentrant=False).backward(towards)
    for tensor, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(tensor.grad, gradient)


# The layers under autocast


@kernels
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", ["halo", "global"])
def test_layers_train_under_autocast_as_exactly_as_with_the_reference(name: str, channels_last: bool, level: str):
    memory = torch.channels_last if channels_last else torch.contiguous_format
    images, towards = torch.randn(3, 12, 6, 10).contiguous(memory_format=memory), torch.randn(3, 12, 6, 10)
    assert_trains_within_budget(name, "cpu", images, towards, torch.bfloat16)
