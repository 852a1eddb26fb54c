"""timm's halo attention layer with Parhelion's operation inside."""

from timm.layers.halo_attn import HaloAttn
from timm.models import register_notrace_module
from torch import fx, nn

from parhelion.layers.heads import apart, together
from parhelion.layers.pooling import averaged
from parhelion.ops.halo import halo_attention
from parhelion.ops.implementation import Implementation
from parhelion.shapes import Float, Tensor

# torch.fx keeps calls of these whole.
fx.wrap("halo_attention")
fx.wrap("averaged")
POOLED = 2  # side of the squares that timm averages where it pools


# timm's feature extraction by torch.fx keeps the layer whole, as it does its own.
@register_notrace_module
class AcceleratedHaloAttn(HaloAttn):
    """timm's `HaloAttn` with another `forward`: (B, C, H, W) -> (B, C', H/stride, W/stride), same parameters.

    An existing layer becomes one by assigning its `__class__`, so that parameters, submodules, hooks and the object
    itself stay. Outputs and gradients are timm's up to rounding; `pos_embed` gives its parameters but is not called.

    Departs from timm: maps that the block does not divide are accepted. What lies beyond the map are then keys and
    values of zero, as in the halo, and a strided output has ceil(H/stride) x ceil(W/stride) pixels, also where timm
    pools, for the shortcuts beside the layer round up too.
    """

    impl: Implementation = "auto"

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e qh qw"]:
        """The layer's output, in channels-last memory."""
        q, kv = apart(self.q(x), self.num_heads), apart(self.kv(x), self.num_heads)
        k, v = kv.split((self.dim_head_qk, self.dim_head_v), dim=-1)
        # timm has a row for every offset between two pixels of a window; the lowest 2 halo belong to no query.
        # It scales the relative logits only where asked to; ours are always scaled.
        scaled = 1.0 if self.scale_pos_embed else self.scale
        table_h, table_w = (
            table[2 * self.halo_size :] / scaled for table in (self.pos_embed.height_rel, self.pos_embed.width_rel)
        )
        out = halo_attention(
            q,
            k,
            v,
            table_h,
            table_w,
            block=self.block_size,
            halo=self.halo_size,
            stride=self.block_stride,
            scale=self.scale,
            border="zero",
            relative="summed",
            offsets="queries",
            impl=self.impl,
        )
        return self._pooled(together(out))

    def _pooled(self, x: Float[Tensor, "b e h w"]) -> Float[Tensor, "b e ph pw"]:
        """timm's pooling, which is nothing unless the layer strides that way; rounded up where timm refuses the map."""
        if not isinstance(self.pool, nn.AvgPool2d):
            return self.pool(x)
        # Of a map in whole blocks that are odd, timm drops the last row and column.
        if self.block_size % POOLED == 0 or any(size % self.block_size for size in x.shape[2:]):
            return averaged(x, POOLED)
        return self.pool(x)
