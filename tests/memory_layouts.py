"""Maps whose numbers lie in memory in another order, or among numbers that a kernel must not read."""

import torch
from torch import Tensor


def amid_nan(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, with NaN before and behind them in memory."""
    memory = torch.full((tensor.numel() + 256,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    inner = memory[128:-128].view(tensor.shape)
    return inner.copy_(tensor)


def channels_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1).contiguous().movedim(1, -1)


def heads_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 3).contiguous().transpose(1, 3)


def axes_exchanged(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


def every_other_channel(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def every_other_pixel(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, ::2, ::2]


def amid_channels_of_nan(tensor: Tensor) -> Tensor:
    nan = torch.full_like(tensor, torch.nan)
    return torch.cat([nan, tensor, nan], dim=-1).chunk(3, dim=-1)[1]
