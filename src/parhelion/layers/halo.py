"""Halo attention as a layer (arXiv 2103.12731)."""

from torch import fx, nn

from parhelion.layers.choices import TableRows
from parhelion.layers.heads import apart, channels_per_head, together
from parhelion.layers.tables import new_table, resize_parameter, without_spare
from parhelion.ops.halo import Border, Relative, Window, check_window, halo_attention, table_rows, table_widths
from parhelion.ops.implementation import Implementation
from parhelion.shapes import Float, Tensor

# torch.fx, and what extracts features with it, keeps the call whole.
fx.wrap("halo_attention")


class HaloAttention(nn.Module):
    """Local self-attention in blocks with halos, in place of a 3x3 convolution: (B, C, H, W) -> (B, C', H/s, W/s).

    Queries, keys and values are 1x1 convolutions of the input; every query attends to the window of its block (see
    `parhelion.ops.halo_attention`). There is no output projection: the paper's parameter counts leave no room
    for one. Any H and W; with a stride the output is ceil(H/s) x ceil(W/s), as of a padded convolution.

    The paper does not say how the projections start; we draw them so that the variance of the input is kept and
    logits start with unit variance, which for the default `scale` puts the usual 1/sqrt(d) into the queries.
    """

    def __init__(  # noqa: PLR0913  every argument is a choice that the paper names or leaves open
        self,
        dim: int,
        dim_out: int | None = None,
        *,
        heads: int,
        block: int,
        halo: int,
        stride: int = 1,
        border: Border = "zero",
        scale: float | None = 1.0,
        relative: Relative = "halves",
        rows: TableRows = "offsets",
        dim_qk: int | None = None,
        bias: bool = False,
        impl: Implementation = "auto",
    ) -> None:
        """Build the layer.

        Args:
            dim: Channels of the input.
            dim_out: Channels of the values and of the output; `dim` if None.
            heads: Heads; must divide `dim_qk` and `dim_out`.
            block, halo, stride, border, relative, impl: See `parhelion.ops.halo_attention`.
            scale: Factor on the logits; the paper writes none (1.0). None stands for 1/sqrt(channels per head).
            rows: Size of the relative tables. "offsets": a row for each offset that occurs, 2 block + 2 halo - 1.
                "window": 2 (block + 2 halo) - 1 rows, which the parameter counts of the HaloNet family imply; the
                `halo` rows at either end belong to no offset, stay zero and are never read.
            dim_qk: Channels of queries and keys; `dim` if None (the paper widens values only).
            bias: Give the projections biases. The paper's counts show none.

        Raises:
            ValueError: heads that do not divide the channels, or a window that `halo_attention` refuses.
        """
        super().__init__()
        self.dim, self.dim_out, self.dim_qk = dim, dim_out or dim, dim_qk or dim
        self.head_dim = channels_per_head(heads, dim_qk=self.dim_qk, dim_out=self.dim_out)
        self.heads, self.stride, self.block, self.halo = heads, stride, block, halo
        self.border: Border = border
        self.relative: Relative = relative
        self.rows: TableRows = rows
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.impl: Implementation = impl
        check_window(Window(block, halo, stride, border, self.scale, relative))
        self.q = nn.Conv2d(dim, self.dim_qk, 1, stride=stride, bias=bias)
        self.kv = nn.Conv2d(dim, self.dim_qk + self.dim_out, 1, bias=bias)
        width_h, width_w = table_widths(self.head_dim, relative)
        offsets, spare = table_rows(block, halo), self.spare_rows
        self.table_h = new_table(offsets, self.head_dim, width_h, spare=spare)
        self.table_w = new_table(offsets, self.head_dim, width_w, spare=spare)
        self.reset_projections()

    @property
    def spare_rows(self) -> int:
        """Rows at either end of the tables that belong to no offset."""
        return self.halo if self.rows == "window" else 0

    def reset_projections(self) -> None:
        """Draw the projections anew; the tables stay."""
        nn.init.normal_(self.q.weight, std=(self.dim * self.head_dim) ** -0.5 / self.scale)
        nn.init.normal_(self.kv.weight, std=self.dim**-0.5)
        for projection in (self.q, self.kv):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b e qh qw"]:
        """The layer's output, (B, dim_out, ceil(H/stride), ceil(W/stride))."""
        k, v = self.kv(x).split((self.dim_qk, self.dim_out), dim=1)
        table_h, table_w = (without_spare(table, self.spare_rows) for table in (self.table_h, self.table_w))
        q, k, v = (apart(part, self.heads) for part in (self.q(x), k, v))
        out = halo_attention(
            q,
            k,
            v,
            table_h,
            table_w,
            block=self.block,
            halo=self.halo,
            stride=self.stride,
            border=self.border,
            scale=self.scale,
            relative=self.relative,
            impl=self.impl,
        )
        return together(out)

    def resize(self, *, block: int | None = None, halo: int | None = None) -> None:
        """Change the window of a trained layer; its tables are interpolated, its projections stay.

        Raises:
            ValueError: a window that `halo_attention` refuses; the layer is left as it was.
        """
        block = self.block if block is None else block
        halo = self.halo if halo is None else halo
        check_window(Window(block, halo, self.stride, self.border, self.scale, self.relative))
        before = self.spare_rows
        self.block, self.halo = block, halo
        offsets, after = table_rows(block, halo), self.spare_rows
        self.table_h = resize_parameter(self.table_h, offsets, spare=(before, after))
        self.table_w = resize_parameter(self.table_w, offsets, spare=(before, after))

    def extra_repr(self) -> str:
        """The choices that the submodules do not show."""
        return (
            f"heads={self.heads}, block={self.block}, halo={self.halo}, stride={self.stride}, "
            f"border={self.border!r}, scale={self.scale:.4g}, relative={self.relative!r}"
        )
