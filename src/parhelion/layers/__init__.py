"""Modules that own parameters: the two attention layers, and the parts of the one skeleton."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.layers.gsa import GlobalSelfAttention
    from parhelion.layers.halo import HaloAttention
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "GlobalSelfAttention": "parhelion.layers.gsa",
            "HaloAttention": "parhelion.layers.halo",
        },
    )

__all__ = [
    "GlobalSelfAttention",
    "HaloAttention",
]
