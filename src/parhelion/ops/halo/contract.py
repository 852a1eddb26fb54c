"""What `halo_attention` asks of its arguments, in words. The names of its choices need no torch."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import torch

Border = Literal["zero", "masked"]
Relative = Literal["halves", "summed"]
Offsets = Literal["pixels", "queries"]


class Geometry(NamedTuple):
    """A window in whole numbers, which is how the operators of kernels take it."""

    block: int
    halo: int
    stride: int
    step: int
    """How far the offset of a key moves from one query of a block to the next."""
    masked: int
    """1 where nothing lies outside the image, 0 where zeros do."""
    summed: int
    """1 where all channels of a query meet both tables, 0 where each meets one."""

    @property
    def side(self) -> int:
        """Pixels along one side of the window."""
        return self.block + 2 * self.halo

    @property
    def queries(self) -> int:
        """Queries along one side of a block."""
        return self.block // self.stride


class Window(NamedTuple):
    """The choices of `halo_attention`, named as there, for the implementations."""

    block: int
    halo: int
    stride: int
    border: Border
    scale: float
    relative: Relative
    offsets: Offsets = "pixels"

    @property
    def geometry(self) -> Geometry:
        """The window in whole numbers, but for the scale."""
        step = self.stride if self.offsets == "pixels" else 1
        masked, summed = self.border == "masked", self.relative == "summed"
        return Geometry(self.block, self.halo, self.stride, step, int(masked), int(summed))


def table_rows(block: int, halo: int) -> int:
    """How many offsets a key can have from a query of its block, per axis: -(block-1)-halo to (block-1)+halo."""
    return 2 * block + 2 * halo - 1


def table_widths(head_dim: int, relative: Relative) -> tuple[int, int]:
    """Channels of the height and of the width table for queries of `head_dim` channels."""
    if relative == "summed":
        return head_dim, head_dim
    return head_dim // 2, head_dim - head_dim // 2


def check_window(window: Window) -> None:
    """Raise ValueError unless block, halo and stride describe windows, and the choices are known."""
    block, halo, stride = window.block, window.halo, window.stride
    if block < 1 or halo < 0 or stride < 1:
        raise ValueError(f"block and stride must be at least 1, halo at least 0, not {block=}, {stride=}, {halo=}")
    if block % stride:
        raise ValueError(f"stride must divide block, so that every block keeps whole queries, not {stride=}, {block=}")
    if window.border not in ("zero", "masked"):
        raise ValueError(f"border must be 'zero' or 'masked', not {window.border!r}")
    if window.relative not in ("halves", "summed"):
        raise ValueError(f"relative must be 'halves' or 'summed', not {window.relative!r}")
    if window.offsets not in ("pixels", "queries"):
        raise ValueError(f"offsets must be 'pixels' or 'queries', not {window.offsets!r}")


def check_maps(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", stride: int) -> None:
    """Raise ValueError unless q, k and v are maps of one image batch, with q at the strided pixels."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(f"{name} must be (batch, h, w, heads, channels), not of shape {tuple(tensor.shape)}")
    if q.dtype != k.dtype or not q.is_floating_point():
        raise ValueError(f"q and k must have one floating-point dtype, not {q.dtype} and {k.dtype}")
    batch, h, w, heads, head_dim = k.shape
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"k and v must agree in batch, h, w and heads, not {tuple(k.shape)} and {tuple(v.shape)}")
    # Rounded up as convolutions word it, so that torch.export sees that both are the same for every size.
    expected = (batch, (h - 1) // stride + 1, (w - 1) // stride + 1, heads, head_dim)
    if tuple(q.shape) != expected:
        raise ValueError(f"q must be {expected} for k of {tuple(k.shape)} and {stride=}, not {tuple(q.shape)}")


def check_tables(
    table_h: "torch.Tensor | None", table_w: "torch.Tensor | None", rows: int, widths: tuple[int, int]
) -> None:
    """Raise ValueError unless both tables are absent, or both have a row for every offset."""
    if (table_h is None) != (table_w is None):
        raise ValueError("table_h and table_w belong together: give both or neither")
    for name, table, width in (("table_h", table_h, widths[0]), ("table_w", table_w, widths[1])):
        if table is not None and tuple(table.shape) != (rows, width):
            raise ValueError(
                f"{name} must be ({rows}, {width}) for this block, halo and head, not {tuple(table.shape)}"
            )
