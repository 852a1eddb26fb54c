"""What every pixel of every attention layer attends to."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.explain.exactness import MismatchError
    from parhelion.explain.maps import AttentionMaps, attention
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "AttentionMaps": "parhelion.explain.maps",
            "MismatchError": "parhelion.explain.exactness",
            "attention": "parhelion.explain.maps",
        },
    )

__all__ = [
    "AttentionMaps",
    "MismatchError",
    "attention",
]
