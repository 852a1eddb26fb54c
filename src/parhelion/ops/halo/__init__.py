"""Blocked local attention with halos (arXiv 2103.12731)."""

from parhelion.ops.halo.api import halo_attention
from parhelion.ops.halo.contract import Border, Offsets, Relative, Window, check_window, table_rows, table_widths
from parhelion.ops.halo.cpu import why_not_cpu
from parhelion.ops.halo.triton import why_not_triton

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
