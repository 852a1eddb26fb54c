"""What `content_attention` asks of its arguments, in words."""

from torch import Tensor


def check_maps(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless q, k and v are maps of one image batch."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(f"{name} must be (batch, h, w, heads, channels), not of shape {tuple(tensor.shape)}")
    if q.dtype != k.dtype or not q.is_floating_point():
        raise ValueError(f"q and k must have one floating-point dtype, not {q.dtype} and {k.dtype}")
    if q.shape != k.shape:
        raise ValueError(f"q and k must have one shape, not {tuple(q.shape)} and {tuple(k.shape)}")
    if v.shape[:4] != k.shape[:4]:
        raise ValueError(f"k and v must agree in batch, h, w and heads, not {tuple(k.shape)} and {tuple(v.shape)}")
