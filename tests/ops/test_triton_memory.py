"""What the Triton kernels of halo attention write down besides their results: no more than someone reads."""

from typing import Any

import pytest
import torch
from kernel_cases import halo
from torch import Tensor

from parhelion.ops import gpu
from parhelion.ops.halo import triton as halo_operator

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        DEVICE == "cpu" and not gpu.interpreted(), reason="wants a GPU, or TRITON_INTERPRET=1 to run on the CPU"
    ),
]
NARROW = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # the interpreter cannot multiply bfloat16
CASE = halo(3, 5, 4, 1, heads=2, batch=1)
WITHOUT_TABLES = halo(3, 5, 4, 1, heads=2, batch=1, tables=None)


class Noted(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the calls of the forward operator that run meanwhile: its arguments and results."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], tuple[Tensor, Tensor]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if func.name() == "parhelion::halo_attention_triton":
            self.calls.append((func, args, results))
        return results


@pytest.mark.parametrize(("dtype", "numbers"), [(torch.float32, 2), (NARROW, 1)], ids=str)
def test_statistics_of_a_query_are_kept_for_gradients_only(dtype: torch.dtype, numbers: int):
    leaves = [tensor.to(DEVICE) for tensor in CASE.tensors(dtype)[:-1]]
    with Noted() as noted:
        plain = CASE.attend(*leaves, impl="triton")
        leaves[-1].requires_grad_()  # of the tables alone
        with torch.no_grad():
            CASE.attend(*leaves, impl="triton")
        differentiable = CASE.attend(*leaves, impl="triton")
    assert torch.equal(plain, differentiable)
    queries = CASE.shapes[0][:4]
    assert [results[1].shape for *_, results in noted.calls] == [(*queries, 0), (*queries, 0), (*queries, numbers)]
    for operator, arguments, _ in noted.calls:
        arguments = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize(("case", "tables"), [(CASE, 2), (WITHOUT_TABLES, 0)], ids=["tables", "no tables"])
def test_sums_for_tables_are_kept_where_there_are_tables(case, tables: int, monkeypatch: pytest.MonkeyPatch):
    shapes = []
    launch = halo_operator.Call.backward_queries

    def noted(call: Any, saved: Any, grad_q: Tensor, grad_tables: Tensor) -> Any:
        shapes.append(grad_tables.shape)
        return launch(call, saved, grad_q, grad_tables)

    monkeypatch.setattr(halo_operator.Call, "backward_queries", noted)
    *leaves, towards = (tensor.to(DEVICE) for tensor in case.tensors(torch.float32))
    case.attend(*(leaf.requires_grad_() for leaf in leaves), impl="triton").backward(towards)
    assert [shape[1] for shape in shapes] == [tables]
