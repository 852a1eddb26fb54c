"""Attention along one axis by relative position (arXiv 2010.03019, Fig. 1, lower branch)."""

from parhelion.ops.axial.api import axial_attention
from parhelion.ops.axial.cpu import why_not_cpu

__all__ = ["axial_attention", "why_not_cpu"]
