"""The GSA module as a layer (arXiv 2010.03019, Fig. 1)."""

from torch import fx, nn

from parhelion.layers.heads import apart, channels_per_head, together
from parhelion.layers.pooling import averaged
from parhelion.layers.tables import new_table, reaching_table, resize_parameter
from parhelion.ops.axial import axial_attention
from parhelion.ops.content import content_attention
from parhelion.ops.implementation import Implementation
from parhelion.shapes import Float, Tensor

# torch.fx, and what extracts features with it, keeps calls of these whole.
fx.wrap("axial_attention")
fx.wrap("content_attention")
fx.wrap("averaged")
fx.wrap("reaching_table")


class GlobalSelfAttention(nn.Module):
    """Global self-attention in place of a 3x3 convolution: (B, C, H, W) -> (B, C', H/s, W/s).

    Queries, keys and values are 1x1 convolutions of the input. Two branches are summed: content attention, in
    which every pixel reads one summary of the image, and positional attention, which runs along columns, through
    a batch normalisation, then along rows. The figure has no output projection, no normalisation of q, k, v and
    no softmax in the positional branch; neither have we. The batch normalisation after the module belongs to
    the network, as after the convolution that it replaces.

    A stride s averages s x s output pixels (at a border that s does not divide: the pixels there are), so the
    attention itself runs at the input's resolution. The paper does not say how the projections start; we keep
    the variance of the input.
    """

    def __init__(  # noqa: PLR0913  every argument is a choice that the paper names or leaves open
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        heads: int = 8,
        size: int,
        stride: int = 1,
        content: bool = True,
        position: bool = True,
        normalize_queries: bool = False,
        dim_qk: int | None = None,
        bias: bool = False,
        impl: Implementation = "auto",
    ) -> None:
        """Build the layer.

        Args:
            dim: Channels of the input.
            dim_out: Channels of the values and of the output; `dim` if None.
            heads: Heads; must divide `dim_qk` and `dim_out`.
            size: The longest axis in pixels that the relative tables are made for: 2 size - 1 offsets each. The
                paper does not say whether tables hold L or 2L - 1 rows; 2L - 1 covers every offset. A longer
                map uses tables interpolated to its length.
            stride: Side of the average pooling after the attention.
            content, position: Switch off a branch for an ablation; at least one must stay.
            normalize_queries: See `parhelion.ops.content_attention`.
            dim_qk: Channels of queries and keys; `dim` if None.
            bias: Give the projections biases. The paper does not say; the figure shows none.
            impl: See `parhelion.ops.content_attention`.

        Raises:
            ValueError: heads that do not divide the channels, no branch, or a size or stride below 1.
        """
        super().__init__()
        if not content and not position:
            raise ValueError("content and position cannot both be off: the layer would return nothing")
        if size < 1 or stride < 1:
            raise ValueError(f"size and stride must be at least 1, not {size=}, {stride=}")
        self.dim, self.dim_out, self.dim_qk = dim, dim_out or dim, dim_qk or dim
        self.head_dim = channels_per_head(heads, dim_qk=self.dim_qk, dim_out=self.dim_out)
        self.heads, self.size, self.stride = heads, size, stride
        self.content, self.position, self.normalize_queries = content, position, normalize_queries
        self.impl: Implementation = impl
        self.qkv = nn.Conv2d(dim, 2 * self.dim_qk + self.dim_out, 1, bias=bias)
        if position:
            self.table_h = new_table(2 * size - 1, self.head_dim, self.head_dim)
            self.table_w = new_table(2 * size - 1, self.head_dim, self.head_dim)
            self.norm = nn.BatchNorm2d(self.dim_out)
        self.reset_projections()

    def reset_projections(self) -> None:
        """Draw the projections anew; the tables stay."""
        nn.init.normal_(self.qkv.weight, std=self.dim**-0.5)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e ph pw"]:
        """The layer's output, (B, dim_out, ceil(H/stride), ceil(W/stride))."""
        q, k, v = self.qkv(x).split((self.dim_qk, self.dim_qk, self.dim_out), dim=1)
        q, k, v = apart(q, self.heads), apart(k, self.heads), apart(v, self.heads)
        content = None
        if self.content:
            content = content_attention(q, k, v, normalize_queries=self.normalize_queries, impl=self.impl)
        out = together(self._positional(q, v, content) if self.position or content is None else content)
        if self.stride > 1:
            out = averaged(out, self.stride)
        return out

    def _positional(
        self, q: Float[Tensor, "b h w n d"], v: Float[Tensor, "b h w n e"], plus: Float[Tensor, "b h w n e"] | None
    ) -> Float[Tensor, "b h w n e"]:
        """Columns, batch normalisation, rows; plus the other branch."""
        table_h, table_w = reaching_table(self.table_h, q.shape[1]), reaching_table(self.table_w, q.shape[2])
        columns = together(axial_attention(q, v, table_h, axis="h", impl=self.impl))
        columns = apart(self.norm(columns), self.heads).to(v.dtype)
        return axial_attention(q, columns, table_w, axis="w", plus=plus, impl=self.impl)

    def resize(self, size: int) -> None:
        """Make the tables of a trained layer for another longest axis, by interpolation; the projections stay.

        Raises:
            ValueError: a size below 1; the layer is left as it was.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size = size
        if self.position:
            rows = 2 * size - 1
            self.table_h, self.table_w = resize_parameter(self.table_h, rows), resize_parameter(self.table_w, rows)

    def extra_repr(self) -> str:
        """The choices that the submodules do not show."""
        return (
            f"heads={self.heads}, size={self.size}, stride={self.stride}, content={self.content}, "
            f"position={self.position}, normalize_queries={self.normalize_queries}"
        )
