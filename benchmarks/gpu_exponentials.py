"""A kernel that does little but take exponentials, to see how many a GPU takes in a second."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _exponentials(source, target, TIMES: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803  Triton's custom
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + places)
    for _ in range(TIMES):
        x = tl.exp2(-x)
    tl.store(target + places, x)


def exponentials(source: Tensor, target: Tensor, times: int) -> None:
    """Fill `target` with 2^-x taken `times` times of `source`, float32 numbers whose count `BLOCK` divides."""
    with torch.cuda.device(source.device) if source.is_cuda else torch.no_grad():
        _exponentials[(source.numel() // BLOCK,)](source, target, TIMES=times, BLOCK=BLOCK)
