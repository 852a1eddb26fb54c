"""The operations: functions of tensors, without parameters.

Every map is (batch, h, w, heads, channels): what a 1x1 convolution leaves in channels-last memory, viewed.
"""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.ops.axial import axial_attention
    from parhelion.ops.content import content_attention
    from parhelion.ops.halo import halo_attention
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "axial_attention": "parhelion.ops.axial",
            "content_attention": "parhelion.ops.content",
            "halo_attention": "parhelion.ops.halo",
        },
        modules=("axial", "content", "halo"),
    )

__all__ = [
    "axial_attention",
    "content_attention",
    "halo_attention",
]
