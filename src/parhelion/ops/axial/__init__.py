"""Attention along one axis by relative position (arXiv 2010.03019, Fig. 1, lower branch)."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.ops.axial.api import axial_attention
    from parhelion.ops.axial.cpu import why_not_cpu
    from parhelion.ops.axial.triton import why_not_triton
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "axial_attention": "parhelion.ops.axial.api",
            "why_not_cpu": "parhelion.ops.axial.cpu",
            "why_not_triton": "parhelion.ops.axial.triton",
        },
    )

__all__ = [
    "axial_attention",
    "why_not_cpu",
    "why_not_triton",
]
