"""Global attention by content (arXiv 2010.03019, Fig. 1, upper branch)."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.ops.content.api import content_attention
    from parhelion.ops.content.cpu import why_not_cpu
    from parhelion.ops.content.triton import why_not_triton
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "content_attention": "parhelion.ops.content.api",
            "why_not_cpu": "parhelion.ops.content.cpu",
            "why_not_triton": "parhelion.ops.content.triton",
        },
    )

__all__ = [
    "content_attention",
    "why_not_cpu",
    "why_not_triton",
]
