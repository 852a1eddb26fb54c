"""What the kernels are tested on: calls of the operations, from odd sizes to several chunks of keys."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from error_budget import assert_as_exact_as
from simulated_rounding import Arithmetic, fused, simulated
from torch import Tensor

from parhelion.ops import axial_attention, content_attention, halo_attention
from parhelion.ops.halo import table_rows, table_widths

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
DRAWS = 2


@dataclass(frozen=True)
class Case:
    """A call of an operation: what it is, the shapes of its maps and tables, and its options."""

    attend: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    largeness: float = 1.0  # factor on the queries

    def tensors(self, dtype: torch.dtype, draw: int = 0) -> list[Tensor]:
        """Random maps, tables and, last, gradients of the output; the same for every call up to rounding."""
        generator = torch.Generator().manual_seed(20103019 + draw)
        tensors = [torch.randn(shape, generator=generator) for shape in (*self.shapes, self.result_shape)]
        tensors[0] *= self.largeness
        return [tensor.to(dtype) for tensor in tensors]

    @property
    def result_shape(self) -> tuple[int, ...]:
        """As the queries, with the channels of the values."""
        values = self.shapes[1 if self.attend.func in (axial_attention, axial_attention_plus) else 2]
        return (*self.shapes[0][:-1], values[-1])


def halo(  # noqa: PLR0913  every argument is a size or a choice
    h: int,
    w: int,
    block: int,
    halo: int,
    stride: int = 1,
    *,
    d: int = 5,
    e: int = 7,
    heads: int = 3,
    batch: int = 2,
    tables: str | None = "halves",
    scale: float = 0.7,
    **options: Any,
) -> Case:
    """A call of halo attention; `tables`: None or what `relative` says."""
    queries = (batch, -(-h // stride), -(-w // stride), heads, d)
    widths = table_widths(d, tables) if tables else ()
    relative = [(table_rows(block, halo), width) for width in widths]
    options = {
        "block": block,
        "halo": halo,
        "stride": stride,
        "scale": scale,
        "relative": tables or "halves",
        **options,
    }
    shapes = (queries, (batch, h, w, heads, d), (batch, h, w, heads, e), *relative)
    return Case(partial(halo_attention, **options), shapes)


def content(h: int, w: int, *, d: int = 5, e: int = 7, heads: int = 3, batch: int = 2, **options: Any) -> Case:
    """A call of content attention."""
    shapes = tuple((batch, h, w, heads, channels) for channels in (d, d, e))
    return Case(partial(content_attention, **options), shapes)


def axial(h: int, w: int, axis: str, *, d: int = 5, e: int = 7, heads: int = 3, batch: int = 2, spare: int = 0) -> Case:
    """A call of axial attention, with a table that has `spare` rows too many at each end."""
    rows = 2 * (h if axis == "h" else w) - 1 + 2 * spare
    return Case(partial(axial_attention, axis=axis), ((batch, h, w, heads, d), (batch, h, w, heads, e), (rows, d)))


def axial_attention_plus(q: Tensor, v: Tensor, table: Tensor, plus: Tensor, **options: Any) -> Tensor:
    """Axial attention with the map to be added as a positional argument."""
    return axial_attention(q, v, table, plus=plus, **options)


def axial_plus(h: int, w: int, axis: str, **sizes: int) -> Case:
    """A call of axial attention that adds a map to the result."""
    case = axial(h, w, axis, **sizes)
    return Case(partial(axial_attention_plus, axis=axis), (*case.shapes, case.shapes[1]))


# fmt: off
CASES = {
    # h, w, block, halo, stride
    "halo: whole blocks":                     halo( 6, 10,  2, 1),
    "halo: halo 0":                           halo( 6, 10,  2, 0, border="masked"),
    "halo: halo larger than the block":       halo( 4,  6,  2, 5, batch=3),
    "halo: one block larger than the map":    halo( 3,  5,  8, 1, batch=5),
    "halo: block 1":                          halo( 5,  6,  1, 2, border="masked"),
    "halo: block 1 without halo":             halo( 5,  6,  1, 0),
    "halo: neither side divides":             halo( 5,  7,  4, 1, border="masked"),
    "halo: a map of one row":                 halo( 1,  9,  4, 1, batch=9),
    "halo: a map of one column":              halo( 9,  1,  4, 1, batch=7, border="masked"),
    "halo: one pixel":                        halo( 1,  1,  3, 2, batch=30),
    "halo: one pixel without tables":         halo( 1,  1,  1, 0, batch=1, tables=None),
    "halo: stride 2":                         halo( 7, 11,  4, 1, 2),
    "halo: stride 2, queries count":          halo( 7, 11,  4, 1, 2, border="masked", offsets="queries"),
    "halo: stride 3, queries count":          halo( 8,  7,  6, 1, 3, tables="summed", offsets="queries"),
    "halo: stride equals an odd block":       halo( 7, 11,  3, 2, 3, tables="summed"),
    "halo: no tables":                        halo( 9, 13,  4, 3, tables=None),
    "halo: no tables, masked":                halo( 9, 13,  4, 3, tables=None, border="masked"),
    "halo: no tables, stride 2":              halo( 9, 13,  4, 3, 2, tables=None, batch=5),
    "halo: summed, masked":                   halo( 9, 13,  4, 2, tables="summed", border="masked"),
    "halo: the paper's window":               halo(17, 21,  8, 3, d=16, e=16, heads=2, scale=1.0),
    "halo: the paper's window, masked":       halo(17, 21,  8, 3, d=16, e=20, border="masked", tables="summed"),
    "halo: five groups of queries":           halo(17, 15, 17, 1, d=8, e=3, heads=1, batch=1),
    "halo: four groups, stride 2":            halo(19, 33, 32, 1, 2, d=3, e=8, heads=1, batch=1, border="masked"),
    "halo: many chunks of keys":              halo(23, 25,  4, 12, d=8, e=5, heads=1, batch=1),
    "halo: heads of 1":                       halo( 6,  7,  4, 1, d=1, e=1, heads=5),
    "halo: heads of 3":                       halo( 6,  7,  4, 1, d=3, e=8),
    "halo: heads of 8":                       halo( 6,  7,  4, 1, d=8, e=3, tables="summed"),
    "halo: heads of 20":                      halo( 6,  7,  4, 1, d=20, e=16),
    "halo: heads of 33":                      halo( 6,  7,  4, 1, d=33, e=64, heads=1),
    "halo: heads of 64":                      halo( 6,  7,  4, 1, d=64, e=33, heads=1),
    "halo: no image":                         halo( 6,  7,  4, 1, batch=0),
    "content":                                content( 6, 10),
    "content: more than one chunk of pixels": content( 9, 15, batch=3),
    "content: whole chunks of pixels":        content( 8, 16, d=16, e=16, heads=2),
    "content: queries normalised":            content( 7,  9, normalize_queries=True),
    "content: one pixel":                     content( 1,  1, d=3, e=1, batch=30),
    "content: one row":                       content( 1, 67, d=1, e=3, heads=1, batch=9),
    "content: one column":                    content(67,  1, d=8, e=20, heads=2, batch=1),
    "content: heads of 20":                   content( 7,  9, d=20, e=33),
    "content: heads of 33":                   content( 7,  9, d=33, e=8, heads=1),
    "content: heads of 64":                   content( 7,  9, d=64, e=16, heads=1),
    "content: no image":                      content( 6, 10, batch=0),
    "axial: columns":                         axial( 6, 10, "h"),
    "axial: rows":                            axial( 6, 10, "w"),
    "axial: columns, a longer table":         axial( 7,  5, "h", spare=3, batch=3),
    "axial: rows, a longer table":            axial( 7,  5, "w", spare=2, batch=1),
    "axial: fewer lines than lanes":          axial( 9,  2, "h", heads=1, batch=1),
    "axial: as many lines as lanes":          axial(11,  8, "h", d=16, e=16, heads=2),
    "axial: many lines":                      axial( 3, 29, "h", d=8, e=3),
    "axial: long lines":                      axial( 2, 70, "w", d=3, e=8, heads=2, batch=1),
    "axial: one pixel":                       axial( 1,  1, "h", d=1, e=3, batch=30),
    "axial: lines of one pixel":              axial( 1,  9, "h", batch=5),
    "axial: heads of 20":                     axial( 5,  6, "w", d=20, e=33),
    "axial: heads of 33":                     axial( 5,  6, "h", d=33, e=1),
    "axial: heads of 64":                     axial( 5,  6, "w", d=64, e=20),
    "axial: columns, plus a map":             axial_plus( 6, 10, "h"),
    "axial: rows, plus a map":                axial_plus( 9,  7, "w", d=8, e=20, batch=3),
    "axial: no image":                        axial( 6, 10, "h", batch=0),
}
# fmt: on
FEW = (
    "halo: stride 2",
    "halo: the paper's window",
    "content: more than one chunk of pixels",
    "axial: rows",
    "axial: columns, plus a map",
)


EDGES = (
    "halo: neither side divides",
    "halo: a map of one column",
    "halo: one pixel",
    "halo: stride 2, queries count",
    "halo: no tables, masked",
    "halo: the paper's window, masked",
    "halo: five groups of queries",
    "halo: many chunks of keys",
    "halo: heads of 33",
    "halo: no image",
    "content: more than one chunk of pixels",
    "content: one pixel",
    "content: heads of 33",
    "axial: rows, a longer table",
    "axial: fewer lines than lanes",
    "axial: long lines",
    "axial: heads of 33",
    "axial: columns, plus a map",
)
"""Where a kernel may read or write beside its maps: rests of blocks, chunks, lanes and vectors."""


def edges() -> list[Any]:
    """Every case as a parameter; those that are not in `EDGES` are thorough."""
    return [
        pytest.param(case, id=name, marks=[] if name in EDGES else [pytest.mark.thorough])
        for name, case in CASES.items()
    ]


def result_and_gradients(case: Case, tensors: Sequence[Tensor], impl: str = "cpu") -> list[Tensor]:
    """The output, then the gradients of all maps and tables; the last tensor is the gradient of the output."""
    *leaves, towards = tensors
    leaves = [tensor.detach().requires_grad_() for tensor in leaves]
    out = case.attend(*leaves, impl=impl)
    return [out.detach(), *torch.autograd.grad(out, leaves, towards)]


def results(
    case: Case, dtype: torch.dtype, impl: str = "cpu", *, device: str = "cpu", draws: int = DRAWS
) -> list[Tensor]:
    """Output and gradients for several draws of maps, stacked, on the CPU wherever they were computed."""
    inputs = ([tensor.to(device) for tensor in case.tensors(dtype, draw)] for draw in range(draws))
    each = [result_and_gradients(case, tensors, impl) for tensors in inputs]
    return [torch.stack(tensors).cpu() for tensors in zip(*each, strict=True)]


@cache
def expected(
    case: Case, dtype: torch.dtype, arithmetic: Arithmetic | None = None, draws: int = DRAWS, device: str = "cpu"
) -> list[tuple[Tensor, Tensor]]:
    """Of the output and every gradient: what rounding is likely to make of it, and the truth, both in float64.

    Computed on a device, where real sizes are a matter of seconds, and kept on the CPU.
    """
    arithmetic = arithmetic or fused(dtype)
    each = []
    for draw in range(draws):
        exact = [tensor.to(device).double() for tensor in case.tensors(dtype, draw)]
        reference = partial(result_and_gradients, case, exact, "reference")
        pairs = zip(simulated(reference, arithmetic, dtype, seed=draw), reference(), strict=True)
        each.append([(likely.cpu(), truth.cpu()) for likely, truth in pairs])
    if device != "cpu":
        # Tests run side by side on one GPU.
        torch.cuda.empty_cache()
    return [tuple(map(torch.stack, zip(*pairs, strict=True))) for pairs in zip(*each, strict=True)]


def assert_within_budget(
    case: Case,
    actual: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    arithmetic: Arithmetic | None = None,
    draws: int = DRAWS,
    device: str = "cpu",
) -> None:
    """Fail unless output and gradients, of several draws, are in `dtype` and as exact as its arithmetic allows."""
    for tensor, (likely, truth) in zip(actual, expected(case, dtype, arithmetic, draws, device), strict=True):
        assert tensor.dtype == dtype
        assert_as_exact_as(tensor, likely, truth)


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Fail unless all are equal, bit by bit."""
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
