"""Global attention by content (arXiv 2010.03019, Fig. 1, upper branch)."""

from parhelion.ops.content.api import content_attention

__all__ = ["content_attention"]
