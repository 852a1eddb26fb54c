"""Global attention by content (arXiv 2010.03019, Fig. 1, upper branch)."""

from parhelion.ops.content.api import content_attention
from parhelion.ops.content.cpu import why_not_cpu

__all__ = ["content_attention", "why_not_cpu"]
