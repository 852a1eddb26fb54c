"""Between a convolution's (B, C, H, W) and the operations' (B, H, W, heads, channels); views, never copies."""

from parhelion.shapes import Float, Tensor


def apart(x: Float[Tensor, "b c h w"], heads: int) -> Float[Tensor, "b h w n d"]:
    """The map with its channels cut into heads."""
    return x.permute(0, 2, 3, 1).unflatten(-1, (heads, x.shape[1] // heads))


def together(x: Float[Tensor, "b h w n d"]) -> Float[Tensor, "b c h w"]:
    """The map with its heads laid side by side as channels, in channels-last memory."""
    return x.flatten(-2).permute(0, 3, 1, 2)


def channels_per_head(heads: int, *, dim_qk: int, dim_out: int) -> int:
    """Channels of a query or key of one head; ValueError unless `heads` divides both widths."""
    for name, width in (("dim_qk", dim_qk), ("dim_out", dim_out)):
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide {name}, not {heads=} for {name}={width}")
    return dim_qk // heads
