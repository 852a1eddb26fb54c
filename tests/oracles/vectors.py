"""Tensors as nested lists of vectors, for loops that index them."""

from typing import Any

from torch import Tensor


def vectors(tensor: Tensor) -> Any:
    """Nested lists that end in vectors: x[image][row][col][head] instead of x[image, row, col, head], but fast."""
    return tensor if tensor.ndim == 1 else [vectors(part) for part in tensor.unbind()]
