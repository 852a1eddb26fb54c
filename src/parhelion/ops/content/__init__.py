"""Global attention by content (arXiv 2010.03019, Fig. 1, upper branch)."""

from parhelion.ops.content.api import content_attention
from parhelion.ops.content.cpu import why_not_cpu
from parhelion.ops.content.triton import why_not_triton

__all__ = ["content_attention", "why_not_cpu", "why_not_triton"]
