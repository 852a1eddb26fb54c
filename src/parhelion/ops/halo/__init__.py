"""Blocked local attention with halos (arXiv 2103.12731)."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.ops.halo.api import halo_attention
    from parhelion.ops.halo.contract import Border, Offsets, Relative, Window, check_window, table_rows, table_widths
    from parhelion.ops.halo.cpu import why_not_cpu
    from parhelion.ops.halo.triton import why_not_triton
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Border": "parhelion.ops.halo.contract",
            "Offsets": "parhelion.ops.halo.contract",
            "Relative": "parhelion.ops.halo.contract",
            "Window": "parhelion.ops.halo.contract",
            "check_window": "parhelion.ops.halo.contract",
            "halo_attention": "parhelion.ops.halo.api",
            "table_rows": "parhelion.ops.halo.contract",
            "table_widths": "parhelion.ops.halo.contract",
            "why_not_cpu": "parhelion.ops.halo.cpu",
            "why_not_triton": "parhelion.ops.halo.triton",
        },
    )

__all__ = [
    "Border",
    "Offsets",
    "Relative",
    "Window",
    "check_window",
    "halo_attention",
    "table_rows",
    "table_widths",
    "why_not_cpu",
    "why_not_triton",
]
