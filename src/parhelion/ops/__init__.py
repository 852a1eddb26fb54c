"""The operations: functions of tensors, without parameters.

Every map is (batch, h, w, heads, channels): what a 1x1 convolution leaves in channels-last memory, viewed.
"""

from parhelion.ops.axial import axial_attention
from parhelion.ops.content import content_attention
from parhelion.ops.halo import halo_attention

__all__ = ["axial_attention", "content_attention", "halo_attention"]
