"""How a Triton kernel reads the numbers that `gpu.unspecialised` made."""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter looks for it


@triton.jit
def plain(number):
    """The number that is meant."""
    return (number - 3) >> 1
