"""A halo attention layer as it ran on one image: what each query attends to, row by row."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parhelion.explain.exactness import WIDE, allowed, check
from parhelion.ops.halo import Window, table_widths

HaloPart = Literal["both", "content", "position"]
HALO_PARTS: tuple[HaloPart, ...] = ("both", "content", "position")


class Block(NamedTuple):
    """All queries of one block and the window that they share.

    Axes: heads, query row and column in the block, key row and column in the window.
    """

    content: Tensor
    """Logits of queries and keys, scaled."""
    position: Tensor
    """Logits of queries and tables, scaled; zeros without tables."""
    inside: Tensor
    """(side, side): whether the key lies in the image."""
    rows: slice
    """The queries of the block that exist, in the map of queries."""
    cols: slice

    def weights(self, part: HaloPart, *, masked: bool) -> Tensor:
        """The softmax over the window of the logits of `part`; a row for each query that exists."""
        logits = {"both": self.content + self.position, "content": self.content, "position": self.position}[part]
        if masked:
            logits = logits.masked_fill(~self.inside, float("-inf"))
        existing = logits[:, : self.rows.stop - self.rows.start, : self.cols.stop - self.cols.start]
        return existing.flatten(-2).softmax(-1).view_as(existing)


@dataclass(frozen=True, kw_only=True)
class HaloLayer:
    """Halo attention on one image: maps (h, w, heads, channels) as the kernel saw them."""

    name: str
    q: Tensor
    k: Tensor
    v: Tensor
    tables: tuple[Tensor, Tensor] | None
    window: Window
    output: Tensor
    roundoff: float
    """Of the arithmetic that the kernel computed in, see `exactness.unit_roundoff`."""

    parts = HALO_PARTS
    kind = "halo"

    @property
    def heads(self) -> int:
        """How many heads it has."""
        return self.k.shape[2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map of keys."""
        return self.k.shape[0], self.k.shape[1]

    @property
    def query_size(self) -> tuple[int, int]:
        """Height and width of the map of queries."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def stride(self) -> int:
        """Pixels of the map of keys from one query to the next."""
        return self.window.stride

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the layer's output."""
        return self.query_size

    @property
    def masked(self) -> bool:
        """Whether there are no keys outside the image; else they are zeros, and take weight."""
        return self.window.border == "masked"

    def corner(self, row: int, col: int) -> tuple[int, int]:
        """The pixel of the map of keys at which the window of the query (row, col) begins; may be negative."""
        window, queries = self.window, self.window.geometry.queries
        return row // queries * window.block - window.halo, col // queries * window.block - window.halo

    def logits(self, row: int, col: int) -> tuple[Tensor, Tensor]:
        """Content and position of the query's logits over its window in float32, each (heads, side, side)."""
        block, i, j = self._block_of(row, col)
        return block.content[:, i, j], block.position[:, i, j]

    def window_weights(self, row: int, col: int, part: HaloPart = "both") -> Tensor:
        """Weights of the query over its window in float32, (heads, side, side); each head sums to one.

        "both" are the layer's own. "content" and "position" are the softmax of that part of the logits alone: what the
        layer would attend to without the other one.
        """
        block, i, j = self._block_of(row, col)
        return block.weights(part, masked=self.masked)[:, i, j]

    def inside(self, row: int, col: int) -> Tensor:
        """Which keys of the query's window lie in the image, (side, side)."""
        return self._block_of(row, col)[0].inside

    def weights(self, row: int, col: int, part: HaloPart = "both") -> Tensor:
        """Weights of the query over the whole map, (heads, h, w); what lies outside the image is left out."""
        (h, w), (top, left), side = self.size, self.corner(row, col), self.window.geometry.side
        placed = self.k.new_zeros(self.heads, h + 2 * side, w + 2 * side, dtype=torch.float32)
        rows, cols = slice(top + side, top + 2 * side), slice(left + side, left + 2 * side)
        placed[:, rows, cols] = self.window_weights(row, col, part)
        return placed[:, side : side + h, side : side + w]

    def blocks(self, dtype: torch.dtype = torch.float32) -> Iterator[tuple[tuple[int, int], Block]]:
        """Every block with its place, row by row, computed in `dtype`."""
        size = self.window.block
        for row in range(-(-self.size[0] // size)):
            for col in range(-(-self.size[1] // size)):
                yield (row, col), self.block(row, col, dtype)

    def block(self, row: int, col: int, dtype: torch.dtype = torch.float32) -> Block:
        """The block in the given row and column of blocks, computed in `dtype`."""
        window, geometry = self.window, self.window.geometry
        (qh, qw), queries = self.query_size, geometry.queries
        rows = slice(row * queries, min((row + 1) * queries, qh))
        cols = slice(col * queries, min((col + 1) * queries, qw))
        q = self.q[rows, cols].to(dtype) * window.scale
        keys = _window(self._padded, row * window.block, col * window.block, geometry.side)
        content = torch.einsum("ijnd,acnd->nijac", q, keys[..., :-1].to(dtype))
        return Block(content, self._position(q, content), keys[..., 0, -1] > 0, rows, cols)

    def values(self, row: int, col: int) -> Tensor:
        """Values in the window of a block, zeros outside the image, (side, side, heads, channels)."""
        side, halo = self.window.geometry.side, self.window.halo
        top, left = row * self.window.block, col * self.window.block
        return _window(_padded(self.v, halo, side), top, left, side)

    def check(self) -> float:
        """The largest error of weights times values as a share of what rounding explains, over all queries.

        Raises MismatchError where it is larger than that.
        """
        worst = 0.0
        for place, block in self.blocks(torch.float64):
            v = self.values(*place).double()
            weights = block.weights("both", masked=self.masked)
            truth = torch.einsum("nijac,acne->ijne", weights, v)
            limit = self._limit(block, weights, v, truth)
            worst = max(worst, check(self.name, "weights", self.output[block.rows, block.cols], truth, limit))
        return worst

    def _limit(self, block: Block, weights: Tensor, v: Tensor, truth: Tensor) -> Tensor:
        # An error of a logit is one of its weight, relative to it; logits err in proportion to what they are summed of.
        rows, cols = (slice(0, extent.stop - extent.start) for extent in (block.rows, block.cols))
        sizes = block.content.abs() + block.position.abs()
        if self.v.dtype in WIDE:
            # In narrower dtypes what is summed is exact beside the rounding of the sum.
            sizes = sizes + self._sums(block)
        likely = weights * (1 + sizes[:, rows, cols])
        magnitude = torch.einsum("nijac,acne->ijne", likely, v.abs())
        magnitude = magnitude + torch.einsum("nijac,ijne->ijne", likely, truth.abs())
        terms = max(self.window.geometry.side**2, self.k.shape[-1])
        return allowed(truth, magnitude, terms=terms, roundoff=self.roundoff, dtype=self.v.dtype)

    def _sums(self, block: Block) -> Tensor:
        """A bound of the absolute terms that the logits of a block are summed of, by Cauchy and Schwarz."""
        q = self.q[block.rows, block.cols].double().norm(dim=-1).amax() * abs(self.window.scale)
        longest = self.k.double().norm(dim=-1).amax()
        tables = sum(table.double().norm(dim=-1).amax() for table in self.tables) if self.tables is not None else 0.0
        return q * (longest + tables)

    def _position(self, q: Tensor, like: Tensor) -> Tensor:
        if self.tables is None:
            return torch.zeros_like(like)
        window, geometry = self.window, self.window.geometry
        table_h, table_w = (table.to(q.dtype) for table in self.tables)
        split = table_widths(q.shape[-1], window.relative)
        q_h, q_w = q.split(split, dim=-1) if window.relative == "halves" else (q, q)
        keys = torch.arange(geometry.side)
        at_rows, at_cols = (
            keys - torch.arange(count)[:, None] * geometry.step + window.block - 1 for count in q.shape[:2]
        )
        logits_h = torch.einsum("ijnd,iad->nija", q_h, table_h[at_rows])
        logits_w = torch.einsum("ijnd,jcd->nijc", q_w, table_w[at_cols])
        return logits_h[..., :, None] + logits_w[..., None, :]

    def _block_of(self, row: int, col: int) -> tuple[Block, int, int]:
        (qh, qw), queries = self.query_size, self.window.geometry.queries
        if not (0 <= row < qh and 0 <= col < qw):
            raise IndexError(f"{self.name} has queries at rows 0 to {qh - 1} and columns 0 to {qw - 1}, not {row, col}")
        return self.block(row // queries, col // queries), row % queries, col % queries

    @cached_property
    def _padded(self) -> Tensor:
        """Keys and a channel that is one in the image, with zeros round them."""
        inside = torch.ones_like(self.k[..., :1])
        return _padded(torch.cat([self.k, inside], dim=-1), self.window.halo, self.window.geometry.side)


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, before, after, before, after))


def _window(padded: Tensor, top: int, left: int, side: int) -> Tensor:
    return padded[top : top + side, left : left + side]
