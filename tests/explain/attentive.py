"""Layers and networks whose attention is looked at, small and with every odd size."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from parhelion.layers import GlobalSelfAttention, HaloAttention

CHANNELS, HEADS = 12, 2
MAP = (7, 10)


def settled(layer: nn.Module) -> nn.Module:
    """The layer with statistics and scales in its batch norms as after training."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return layer


def halo(**choices: object) -> nn.Module:
    return HaloAttention(CHANNELS, 16, heads=HEADS, **{"block": 4, "halo": 1, **choices})


def gsa(**choices: object) -> nn.Module:
    return settled(GlobalSelfAttention(CHANNELS, heads=HEADS, **{"size": 10, **choices}))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "halo": halo,
    "halo, masked, stride 2": lambda: halo(stride=2, border="masked"),
    "halo, rows of the window, scaled": lambda: halo(rows="window", scale=None, halo=2),
    "halo, summed tables, one block": lambda: halo(block=12, halo=0, relative="summed"),
    "gsa": gsa,
    "gsa, normalised queries, stride 2": lambda: gsa(normalize_queries=True, stride=2),
    "gsa, content only": lambda: gsa(position=False),
    "gsa, position only, short tables": lambda: gsa(content=False, size=4),
}


def one_map(size: tuple[int, int] = MAP) -> Tensor:
    return torch.randn(1, CHANNELS, *size)


def neighbour_layer(down: int, across: int) -> HaloAttention:
    """Halo attention that attends to the pixel at one offset by its tables, whatever the image."""
    layer = HaloAttention(CHANNELS, heads=HEADS, block=4, halo=2, bias=True, border="masked")
    with torch.no_grad():
        for parameter in (layer.q.weight, layer.table_h, layer.table_w):
            parameter.zero_()
        layer.q.bias.fill_(1.0)
        layer.kv.weight[: layer.dim_qk] = 0.0
        layer.kv.bias[: layer.dim_qk] = 0.0
        # Row 0 of a table is the offset -(block - 1) - halo.
        layer.table_h[down + 5, 0] = layer.table_w[across + 5, 0] = 40.0
    return layer


def far_layer(down: int, across: int) -> GlobalSelfAttention:
    """A GSA module whose position branch reads the pixel at one offset, with weight one, and no content."""
    layer = GlobalSelfAttention(CHANNELS, heads=HEADS, size=10, content=False, bias=True)
    with torch.no_grad():
        for parameter in (layer.qkv.weight, layer.table_h, layer.table_w):
            parameter[: 2 * CHANNELS].zero_()
        layer.qkv.bias[: 2 * CHANNELS].fill_(1.0)
        layer.table_h[down + 9, 0] = layer.table_w[across + 9, 0] = 1.0
    layer.norm.eps = 0.0
    return layer
