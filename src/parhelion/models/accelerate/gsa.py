"""gsa_pytorch's module with Parhelion's operations inside; imported only beside gsa_pytorch itself."""

import torch.nn.functional as F
from gsa_pytorch import GSA
from torch import fx, nn

from parhelion.layers.heads import apart, together
from parhelion.ops.axial import axial_attention
from parhelion.ops.content import content_attention
from parhelion.ops.implementation import Implementation
from parhelion.shapes import Float, Tensor

# torch.fx keeps calls of these whole.
fx.wrap("content_attention")
fx.wrap("axial_attention")


class AcceleratedGSA(GSA):
    """gsa_pytorch's `GSA` with another `forward`: (B, C, H, W) -> (B, C', H, W), same parameters.

    An existing module becomes one by assigning its `__class__`, so that parameters, submodules, hooks and the object
    itself stay. Outputs, gradients and the running statistics of `norm` are those of gsa_pytorch up to rounding.
    """

    impl: Implementation = "auto"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e h w"]:
        """The module's output."""
        q, k, v = self.to_qkv(x).chunk(3, dim=1)
        q, k, v = apart(q, self.heads), apart(k, self.heads), apart(v, self.heads)
        out = content_attention(q, k, v, normalize_queries=self.norm_queries, impl=self.impl)
        if self.rel_pos_length is not None:
            columns = axial_attention(q, v, _reaching(self.rel_rows, q.shape[1]), axis="h", impl=self.impl)
            columns = columns if self.norm is None else _normalized(columns, self.norm).to(v.dtype)
            out = out + axial_attention(q, columns, _reaching(self.rel_columns, q.shape[2]), axis="w", impl=self.impl)
        return self.to_out(together(out))


def _reaching(table: Float[Tensor, "rows d"], length: int) -> Float[Tensor, "offsets d"]:
    """The table for an axis of `length` pixels: gsa_pytorch lets farther pixels have embeddings of zero."""
    # Zeros on both sides of the table, then its middle, so that no size decides: torch.export asks for one program.
    centre = table.shape[0] // 2
    return F.pad(table, (0, 0, length - 1, length - 1))[centre : centre + 2 * length - 1]


def _normalized(x: Float[Tensor, "b h w n d"], norm: nn.Module) -> Float[Tensor, "b h w n d"]:
    """The map through a norm that takes every head for an image of its own, as gsa_pytorch has it."""
    batch, h, w, heads, width = x.shape
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        # Statistics per channel do not see where a pixel lies, so the heads may stand beside the columns: no copy.
        return norm(x.reshape(batch, h, w * heads, width).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(x.shape)
    images = norm(x.permute(0, 3, 4, 1, 2).reshape(batch * heads, width, h, w))
    return images.unflatten(0, (batch, heads)).permute(0, 3, 4, 1, 2)
