"""The operations under torch.compile and torch.export."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from parhelion import native
from parhelion.ops import axial_attention, content_attention, halo_attention

pytestmark = pytest.mark.compile
kernels = pytest.mark.skipif(native.why_not_native() is not None, reason=str(native.why_not_native()))

HEADS, HEAD_DIM, VALUE_DIM = 3, 5, 7


class Operation(nn.Module):
    """An operation on one packed map, as a layer uses it: (b, h, w, heads, q + k + v channels)."""

    def __init__(self, attend: Callable[..., Tensor], *tables: tuple[int, int], stride: int = 1, **options: Any):
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(table)) for table in tables])
        self.attend = partial(attend, **options)
        self.stride = stride
        self.needs_keys = attend is not axial_attention

    def forward(self, packed: Tensor) -> Tensor:
        q, k, v = packed.split((HEAD_DIM, HEAD_DIM, VALUE_DIM), dim=-1)
        q = q[:, :: self.stride, :: self.stride]
        return self.attend(*((q, k, v) if self.needs_keys else (q, v)), *self.tables)


def halo(stride: int = 1, tables: tuple[tuple[int, int], ...] = ((9, 2), (9, 3)), **options: Any) -> Operation:
    return Operation(partial(halo_attention, block=4, halo=1, stride=stride, **options), *tables, stride=stride)


OPERATIONS = {
    "halo": halo,
    "halo, masked, summed and strided": partial(
        halo, tables=((9, 5), (9, 5)), relative="summed", stride=2, border="masked", scale=0.5
    ),
    "content": partial(Operation, content_attention),
    "axial, columns": partial(Operation, axial_attention, (31, 5), axis="h"),
    "axial, rows": partial(Operation, axial_attention, (31, 5), axis="w"),
}
operations = pytest.mark.parametrize("build", OPERATIONS.values(), ids=OPERATIONS.keys())


def packed(h: int, w: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, h, w, HEADS, 2 * HEAD_DIM + VALUE_DIM)


def result_and_gradients(operation: nn.Module, maps: Tensor) -> list[Tensor]:
    maps = maps.detach().requires_grad_()
    out = operation(maps)
    return [out, *torch.autograd.grad(out.square().sum(), [maps, *operation.parameters()])]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


# Inductor compiles all three operations at once where compiling comes first, below.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.thorough)])
@operations
def test_one_graph_gives_the_eager_result_and_gradients(build: Callable[[], Operation], backend: str):
    operation, maps = build(), packed(6, 10)
    compiled = torch.compile(operation, fullgraph=True, backend=backend)
    assert_close(result_and_gradients(compiled, maps), result_and_gradients(operation, maps), rtol=1e-4, atol=1e-4)


@operations
def test_one_graph_serves_other_sizes(build: Callable[[], Operation]):
    operation, maps = build(), packed(6, 10)
    compiled = torch.compile(operation, fullgraph=True, dynamic=True, backend="eager")
    assert_close(compiled(maps), operation(maps))
    with torch.compiler.set_stance("fail_on_recompile"):
        maps = packed(13, 7)
        assert_close(compiled(maps), operation(maps))


@operations
def test_an_export_runs_at_any_size(build: Callable[[], Operation]):
    operation = build()
    dynamic = torch.export.Dim.DYNAMIC
    # Without this, torch's exporter takes a size, or a number of blocks, that is not 1 now for never 1.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        sizes = ({0: dynamic, 1: dynamic, 2: dynamic},)
        exported = torch.export.export(operation, (packed(6, 10),), dynamic_shapes=sizes).module()
    for h, w, batch in ((6, 10, 2), (13, 7, 3), (3, 5, 2), (8, 12, 1)):
        maps = packed(h, w, batch)
        assert_close(exported(maps), operation(maps))


FIRST_CALL = """
import torch
from parhelion import native
from parhelion.ops import axial_attention, content_attention, halo_attention

@torch.compile(fullgraph=True)
def attend(q, k, v, table):
    out = halo_attention(q, k, v, block=4, halo=1) + content_attention(q, k, v)
    return axial_attention(q, out, table, axis="h")

tensors = [torch.randn(2, 6, 10, 3, channels, requires_grad=True) for channels in (5, 5, 7)]
tensors.append(torch.randn(11, 5, requires_grad=True))
out = attend(*tensors)
gradients = torch.autograd.grad(out.square().sum(), tensors)
expected = attend._torchdynamo_orig_callable(*tensors)
torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
for actual, right in zip(gradients, torch.autograd.grad(expected.square().sum(), tensors)):
    torch.testing.assert_close(actual, right, rtol=1e-3, atol=1e-3)
"""


def test_compiling_may_be_the_first_that_a_process_does():
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@kernels
@operations
def test_the_graph_calls_the_kernel(build: Callable[..., Operation]):
    operation, maps = build(impl="cpu"), packed(6, 10)
    called = []

    def note(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    assert_close(torch.compile(operation, fullgraph=True, backend=note)(maps), operation(maps))
    assert any(name.startswith("parhelion.") for name in called)
    exported = torch.export.export(operation, (maps,))
    assert any(str(node.target).startswith("parhelion.") for node in exported.graph.nodes)
    assert_close(exported.module()(maps), operation(maps))


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_an_export_of_halo_attention_runs_at_sizes_of_one_block_without_help(impl: str):
    operation = halo(impl=impl)
    dynamic = torch.export.Dim.DYNAMIC
    sizes = ({0: dynamic, 1: dynamic, 2: dynamic},)
    exported = torch.export.export(operation, (packed(6, 10),), dynamic_shapes=sizes).module()
    for h, w in ((13, 7), (3, 4)):
        maps = packed(h, w, batch=3)
        assert_close(exported(maps), operation(maps))
