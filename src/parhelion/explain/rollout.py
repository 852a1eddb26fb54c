"""Attention rolled out over layers (arXiv 2005.00928): where the last map reads from. Not a cause of anything."""

from collections.abc import Sequence

import torch
from torch import Tensor

from parhelion.explain.gsa import GlobalLayer
from parhelion.explain.halo import HaloLayer

# Half of what a block returns is counted as its shortcut's, as the source has it.
SHORTCUT = 0.5


def rollout(layers: Sequence[HaloLayer | GlobalLayer]) -> Tensor:
    """How much of the average of the last map comes from each key of the first one: (h, w), summing to one.

    Goes from the last layer to the first. Each hands on half of what it holds along the mean of its heads' weights
    (signed ones by their absolute values), half along the shortcut beside it. Values, convolutions between the layers,
    and keys outside the image do not count. So it says where attention could have read from, and nothing about what
    mattered: hiding pixels does.
    """
    share = torch.full(layers[-1].output_size, 1.0)
    for layer in reversed(layers):
        share = spread(share, layer.output_size)
        of_queries = spread(share, layer.query_size)
        read = _from_windows(layer, of_queries) if isinstance(layer, HaloLayer) else _from_lines(layer, of_queries)
        # A shortcut that strides sees the first pixel of each square.
        kept, strides = torch.zeros(layer.size), map(_stride, layer.size, layer.output_size)
        kept[tuple(slice(None, None, stride) for stride in strides)] = share
        share = (1 - SHORTCUT) * read + SHORTCUT * kept
    return share / share.sum()


def spread(share: Tensor, size: tuple[int, int]) -> Tensor:
    """The shares of a map's pixels handed on evenly to those of a map of another size that lie there."""
    for axis, length in enumerate(size):
        owner = torch.arange(length) * share.shape[axis] // length
        counts = torch.bincount(owner, minlength=share.shape[axis]).clamp_min(1)
        share = (share / counts.view(-1, *[1] * (1 - axis))).index_select(axis, owner)
    return share


def _stride(length: int, output: int) -> int:
    return -(-length // output)


def _from_windows(layer: HaloLayer, share: Tensor) -> Tensor:
    (h, w), window = layer.size, layer.window
    side, halo = window.geometry.side, window.halo
    read = torch.zeros(h + 2 * side, w + 2 * side)
    for (row, col), block in layer.blocks():
        weights = (block.weights("both", masked=layer.masked) * block.inside).mean(dim=0)
        weights = weights / weights.sum(dim=(-1, -2), keepdim=True).clamp_min(1e-12)
        top, left = row * window.block, col * window.block
        read[top : top + side, left : left + side] += torch.einsum(
            "ij,ijac->ac", share[block.rows, block.cols], weights
        )
    return read[halo : halo + h, halo : halo + w]


def _from_lines(layer: GlobalLayer, share: Tensor) -> Tensor:
    scale = layer.norm_scale.float().mean(dim=-1)
    read = torch.zeros(layer.size)
    for row in range(layer.size[0]):
        weights = layer.line(row).total(scale).abs().mean(dim=1)
        weights = weights / weights.sum(dim=(-1, -2), keepdim=True).clamp_min(1e-30)
        read += torch.einsum("j,jyx->yx", share[row], weights)
    return read
