"""What a layer's weights amount to, head by head: how far, how spread, how much in the halo and beyond the image."""

from typing import NamedTuple

import torch
from torch import Tensor

from parhelion.explain.gsa import GlobalLayer
from parhelion.explain.halo import HaloLayer


class Summary(NamedTuple):
    """Means over the queries of a layer, a number for each head; None for what the layer does not have.

    Signed weights count by their absolute values.
    """

    distance: Tensor
    """Mean distance of a key in the image from its query, in pixels of the image, weighted by its weight."""
    entropy: Tensor
    """Of the weights of a query, in bits: 3 is as spread as 8 equal weights."""
    halo: Tensor | None
    """Share of weight on keys in the image beyond the query's own block."""
    padding: Tensor | None
    """Share of weight on keys outside the image."""
    negative: Tensor | None
    """Share of weight that is negative."""


def summary(layer: HaloLayer | GlobalLayer, key_px: tuple[float, float]) -> Summary:
    """The summary of a layer; over evenly spaced rows where a global layer has many queries.

    key_px: Height and width of a pixel of its map of keys, in pixels of the image.
    """
    return _of_windows(layer, key_px) if isinstance(layer, HaloLayer) else _of_lines(layer, key_px)


def _of_windows(layer: HaloLayer, key_px: tuple[float, float]) -> Summary:
    window = layer.window
    side, halo = window.geometry.side, window.halo
    at = torch.arange(side)
    own = (at >= halo) & (at < halo + window.block)
    in_block = own[:, None] & own
    sums = torch.zeros(4, layer.heads)
    for (_, _), block in layer.blocks():
        weights = block.weights("both", masked=layer.masked)
        queries = (torch.arange(count) * window.stride + halo for count in weights.shape[1:3])
        down, across = ((at - start[:, None]) * px for start, px in zip(queries, key_px, strict=True))
        distances = (down.square()[:, None, :, None] + across.square()[None, :, None, :]).sqrt()
        inside = weights * block.inside
        seen = inside.sum(dim=(-1, -2))
        sums[0] += ((inside * distances).sum(dim=(-1, -2)) / seen.clamp_min(1e-12)).sum(dim=(1, 2))
        sums[1] += torch.special.entr(weights).sum(dim=(1, 2, 3, 4))
        sums[2] += (inside * ~in_block).sum(dim=(1, 2, 3, 4))
        sums[3] += (1 - seen).sum(dim=(1, 2))
    distance, entropy, in_halo, padding = sums / (layer.query_size[0] * layer.query_size[1])
    return Summary(distance, _bits(entropy), in_halo, padding.clamp_min(0), None)


def _of_lines(layer: GlobalLayer, key_px: tuple[float, float]) -> Summary:
    h, w = layer.size
    scale = layer.norm_scale.float().mean(dim=-1)
    sums = torch.zeros(3, layer.heads)
    for row in layer.counted_rows:
        weights = layer.line(row).total(scale)
        down = (torch.arange(h) - row) * key_px[0]
        across = (torch.arange(w) - torch.arange(w)[:, None]) * key_px[1]
        distances = (down.square()[:, None] + across.square()[:, None, :]).sqrt()[:, None]
        sizes = weights.abs()
        shares = sizes / sizes.sum(dim=(-1, -2), keepdim=True).clamp_min(1e-30)
        sums[0] += (shares * distances).sum(dim=(0, 2, 3))
        sums[1] += torch.special.entr(shares).sum(dim=(0, 2, 3))
        sums[2] += (shares * (weights < 0)).sum(dim=(0, 2, 3))
    distance, entropy, negative = sums / (len(layer.counted_rows) * w)
    return Summary(distance, _bits(entropy), None, None, negative)


def _bits(nats: Tensor) -> Tensor:
    return nats / torch.tensor(2.0).log()
