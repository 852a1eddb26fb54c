"""Modules that own parameters: the two attention layers, and the parts of the one skeleton."""

from parhelion.layers.gsa import GlobalSelfAttention
from parhelion.layers.halo import HaloAttention

__all__ = ["GlobalSelfAttention", "HaloAttention"]
