"""What `axial_attention` asks of its arguments, in words."""

from typing import Literal

from torch import Tensor

Axis = Literal["h", "w"]


def check_axis(axis: str) -> None:
    """Raise ValueError unless `axis` names an image axis."""
    if axis not in ("h", "w"):
        raise ValueError(f"axis must be 'h' or 'w', not {axis!r}")


def check_maps(q: Tensor, v: Tensor, table: Tensor, axis: Axis) -> None:
    """Raise ValueError unless q and v are maps of one image batch and the table covers every offset of the axis."""
    for name, tensor in (("q", q), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(f"{name} must be (batch, h, w, heads, channels), not of shape {tuple(tensor.shape)}")
    if q.shape[:4] != v.shape[:4]:
        raise ValueError(f"q and v must agree in batch, h, w and heads, not {tuple(q.shape)} and {tuple(v.shape)}")
    if table.ndim != 2 or table.shape[1] != q.shape[-1]:
        raise ValueError(f"table must be (offsets, {q.shape[-1]}) for q of {tuple(q.shape)}, not {tuple(table.shape)}")
    length = q.shape[1 if axis == "h" else 2]
    if table.shape[0] % 2 == 0 or table.shape[0] < 2 * length - 1:
        raise ValueError(
            f"table must have an odd number of rows, at least {2 * length - 1} for an axis {length} pixels long, "
            f"not {table.shape[0]}"
        )


def check_plus(plus: Tensor | None, v: Tensor) -> None:
    """Raise ValueError unless `plus` is absent or a map like `v`."""
    if plus is not None and (plus.shape != v.shape or plus.dtype != v.dtype):
        raise ValueError(f"plus must be {tuple(v.shape)} in {v.dtype} as v is, not {tuple(plus.shape)} in {plus.dtype}")
