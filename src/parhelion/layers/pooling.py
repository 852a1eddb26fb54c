"""Averages of neighbouring pixels, up to a border that they do not divide."""

import torch
import torch.nn.functional as F

from parhelion.shapes import Float, Tensor, always


def averaged(x: Float[Tensor, "b c h w"], side: int) -> Float[Tensor, "b c ph pw"]:
    """The mean of every side x side pixels, (B, C, ceil(H/side), ceil(W/side)); at the border, of those that exist."""
    last_row, last_col = ((size - 1) // side * side for size in (x.shape[-2], x.shape[-1]))
    if always(last_row < x.shape[-2]) and always(last_col < x.shape[-1]):
        return F.avg_pool2d(x, side, ceil_mode=True, count_include_pad=False)
    # torch.export does not see that the last square begins inside the map, which rounding up asks for, and would serve
    # some sizes only. Beyond the map are zeros, for which the mean then makes up.
    means = F.avg_pool2d(F.pad(x, (0, side - 1, 0, side - 1)), side)
    make_up_h, make_up_w = (
        side / (whole - torch.arange(pooled, device=x.device) * side).clamp(max=side).to(x.dtype)
        for whole, pooled in zip(x.shape[-2:], means.shape[-2:], strict=True)
    )
    return means * make_up_h[:, None] * make_up_w
