"""Attention along one axis by relative position (arXiv 2010.03019, Fig. 1, lower branch)."""

from parhelion.ops.axial.api import axial_attention
from parhelion.ops.axial.cpu import why_not_cpu
from parhelion.ops.axial.triton import why_not_triton

__all__ = ["axial_attention", "why_not_cpu", "why_not_triton"]
