"""A module of global self-attention as it ran on one image: the signed weights of its branches, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from parhelion.explain.exactness import allowed, check

GlobalPart = Literal["both", "content", "position", "columns", "rows"]
# Queries whose weights are checked and counted; a map with more contributes evenly spaced rows of it.
COUNTED_QUERIES = 1024


class ContentCall(NamedTuple):
    """Content attention: maps (h, w, heads, channels) and what came out."""

    q: Tensor
    k: Tensor
    v: Tensor
    normalize_queries: bool
    output: Tensor


class AxialCall(NamedTuple):
    """Attention along an axis: maps (h, w, heads, channels), its table of (offsets, channels), and what came out."""

    q: Tensor
    v: Tensor
    table: Tensor
    plus: Tensor | None
    output: Tensor


@dataclass(frozen=True, kw_only=True)
class GlobalLayer:
    """Global self-attention on one image; a branch that the module does not have is None.

    The position branch runs along columns, through a normalisation, then along rows. So a pixel reaches every other one
    by way of the pixel in its own row and the other's column, and the weight is the product of both steps.
    """

    name: str
    content: ContentCall | None
    columns: AxialCall | None
    rows: AxialCall | None
    norm_scale: Tensor
    """What the normalisation multiplies each channel with, (heads, channels); ones without a position branch."""
    norm_shift: Tensor
    output_size: tuple[int, int]
    """Height and width of the module's output, after any pooling."""
    roundoff: float

    kind = "global"

    @property
    def parts(self) -> tuple[GlobalPart, ...]:
        """What weights can be shown of."""
        position: tuple[GlobalPart, ...] = ("position", "columns", "rows")
        if self.content is None:
            return position
        return ("both", "content", *position) if self.rows is not None else ("content",)

    @property
    def q(self) -> Tensor:
        """Queries, (h, w, heads, channels)."""
        call = self.content or self.rows
        assert call is not None
        return call.q

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return self.q.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.q.shape[0], self.q.shape[1]

    query_size = size

    @property
    def stride(self) -> int:
        """Pixels of the map from one query to the next; a module that strides averages outputs."""
        return 1

    def weights(self, row: int, col: int, part: GlobalPart | None = None) -> Tensor:
        """Signed weights of the query over the map in float32, (heads, h, w).

        part: "content"; "position", both steps of that branch with the mean scale of the normalisation over the
            channels of a head; "both", their sum. "columns" and "rows" are the two steps alone: what the query reads
            of its own column in the first, of its own row in the second. The module's first part if None.
        """
        h, w = self.size
        if not (0 <= row < h and 0 <= col < w):
            raise IndexError(f"{self.name} has queries at rows 0 to {h - 1} and columns 0 to {w - 1}, not {row, col}")
        line = self.line(row)
        chosen = self.parts[0] if part is None else part
        if chosen not in self.parts:
            raise ValueError(f"{self.name} has no {chosen} weights, but {', '.join(self.parts)}")
        found = torch.zeros(self.heads, h, w)
        if chosen in ("both", "content"):
            found += line.content[col]
        if chosen in ("both", "position"):
            found += line.position(self.norm_scale.float().mean(dim=-1))[col]
        if chosen == "columns":
            found[:, :, col] = line.columns[col]
        if chosen == "rows":
            found[:, row, :] = line.rows[col]
        return found

    def line(self, row: int, dtype: torch.dtype = torch.float32) -> "Line":
        """The weights of all queries in a row of the map, computed in `dtype`."""
        (h, w), heads = self.size, self.heads
        content = torch.zeros(w, heads, h, w, dtype=dtype)
        if self.content is not None:
            q = self._content_queries[row].to(dtype)
            content = torch.einsum("jnd,yxnd->jnyx", q, self.content_keys.to(dtype))
        if self.columns is None or self.rows is None:
            return Line(content, torch.zeros(w, heads, h, dtype=dtype), torch.zeros(w, heads, w, dtype=dtype))
        columns = torch.einsum("jnd,yd->jny", self.columns.q[row].to(dtype), _at(self.columns.table, row, h).to(dtype))
        across = torch.stack([_at(self.rows.table, col, w) for col in range(w)]).to(dtype)
        return Line(content, columns, torch.einsum("jnd,jxd->jnx", self.rows.q[row].to(dtype), across))

    @property
    def counted_rows(self) -> Sequence[int]:
        """Rows of the map whose queries are checked and counted: all, or evenly spaced ones of a large map."""
        h, w = self.size
        step = -(-h * w // COUNTED_QUERIES)
        return range(min(step // 2, h - 1), h, step)

    @cached_property
    def content_keys(self) -> Tensor:
        """Keys as the content branch uses them, after the softmax over all pixels: (h, w, heads, channels), float32."""
        assert self.content is not None
        k = self.content.k.double()
        return k.flatten(0, 1).softmax(dim=0).view_as(k).float()

    @cached_property
    def _content_queries(self) -> Tensor:
        assert self.content is not None
        q = self.content.q.double()
        return (q.softmax(-1) if self.content.normalize_queries else q).float()

    def check(self) -> float:
        """The largest error of weights times values as a share of what rounding explains, over the counted rows.

        Raises MismatchError where it is larger than that.
        """
        worst = [0.0]
        for row in self.counted_rows:
            line = self.line(row, torch.float64)
            if self.content is not None:
                worst.append(self._check_content(row, line, self.content))
            if self.columns is not None and self.rows is not None:
                worst.append(self._check_axial(row, "weights along columns", line, self.columns))
                worst.append(self._check_axial(row, "weights along rows", line, self.rows))
                worst.append(self._check_composition(row, line, self.columns, self.rows))
        return max(worst)

    def _check_content(self, row: int, line: "Line", call: ContentCall) -> float:
        v = call.v.double()
        truth = torch.einsum("jnyx,yxne->jne", line.content, v)
        k = call.k.double().flatten(0, 1)
        spread = 1 + (k.amax(0) - k.amin(0)).amax()
        sizes = torch.einsum("jnd,yxnd->jnyx", self._content_queries[row].double().abs(), self.content_keys.double())
        magnitude = spread * torch.einsum("jnyx,yxne->jne", sizes, v.abs())
        # Shown in float32, whatever the kernel computed in.
        roundoff = max(self.roundoff, torch.finfo(torch.float32).eps / 2)
        limit = allowed(truth, magnitude, terms=k.shape[0], roundoff=roundoff, dtype=call.v.dtype)
        return check(self.name, "content weights", call.output[row], truth, limit)

    def _check_axial(self, row: int, what: str, line: "Line", call: AxialCall) -> float:
        v, along_h = call.v.double(), call is self.columns
        sizes = call.q[row].double().norm(dim=-1)[..., None] * call.table.double().norm(dim=-1).amax()
        if along_h:
            truth = torch.einsum("jny,yjne->jne", line.columns, v)
            magnitude = sizes * v.abs().sum(dim=0)
        else:
            truth = torch.einsum("jnx,xne->jne", line.rows, v[row])
            magnitude = sizes * v[row].abs().sum(dim=0)
        if call.plus is not None:
            truth, magnitude = truth + call.plus[row].double(), magnitude + call.plus[row].double().abs()
        terms = max(self.size[0 if along_h else 1], call.q.shape[-1])
        limit = allowed(truth, magnitude, terms=terms, roundoff=self.roundoff, dtype=call.v.dtype)
        return check(self.name, what, call.output[row], truth, limit)

    def _check_composition(self, row: int, line: "Line", columns: AxialCall, rows: AxialCall) -> float:
        """Both steps in one: from the values that went in to what came out of the second."""
        scale, shift = self.norm_scale.double(), self.norm_shift.double()
        through = torch.einsum("jnx,xny,yxne->jne", line.rows, line.columns, columns.v.double())
        truth = scale * through + shift * line.rows.sum(dim=-1)[..., None]
        q, table = (call.q[row].double().norm(dim=-1).amax() for call in (rows, columns)), (rows, columns)
        reach = torch.stack(
            [size * call.table.double().norm(dim=-1).amax() for size, call in zip(q, table, strict=True)]
        )
        magnitude = reach.prod() * scale.abs() * columns.v.double().abs().sum(dim=(0, 1)) + (
            reach[0] * self.size[1] * shift.abs()
        )
        if rows.plus is not None:
            truth, magnitude = truth + rows.plus[row].double(), magnitude + rows.plus[row].double().abs()
        terms = max(*self.size, rows.q.shape[-1])
        limit = allowed(truth, magnitude, terms=terms, roundoff=2 * self.roundoff, dtype=rows.v.dtype)
        return check(self.name, "weights along columns and rows together", rows.output[row], truth, limit)


class Line(NamedTuple):
    """The weights of all queries in one row of the map."""

    content: Tensor
    """(queries, heads, h, w)."""
    columns: Tensor
    """What each query reads of its own column, (queries, heads, h)."""
    rows: Tensor
    """What each query reads of its own row, (queries, heads, w)."""

    def total(self, scale: Tensor) -> Tensor:
        """Content and position together, (queries, heads, h, w)."""
        return self.content + self.position(scale)

    def position(self, scale: Tensor) -> Tensor:
        """Both steps in one, (queries, heads, h, w), with what the normalisation between them multiplies a head with.

        The pixel between the steps is in the query's row and in the key's column, so the first step's weights are those
        of the pixel in the key's column.
        """
        return torch.einsum("jnx,xny,n->jnyx", self.rows, self.columns, scale.to(self.rows.dtype))


def _at(table: Tensor, pixel: int, length: int) -> Tensor:
    """The embeddings of all pixels of an axis as seen from one of them, (length, channels)."""
    first = table.shape[0] // 2 - pixel
    return table[first : first + length]
