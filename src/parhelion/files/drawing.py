"""How every picture looks: colours, a figure with its title, axes without clutter, text as it is, a whole file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.errors import printable
from parhelion.files.atomic import replacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, PAPER, EMPTY, RULE = "#1f2430", "#8a90a0", "#ffffff", "#f5f6f9", "#e4e6ec"
BLUE, AMBER, GREEN, RED = "#2f6fb0", "#e08a1e", "#2e8b57", "#c8362f"


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, in inches, that finds room for everything drawn into it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor=PAPER)
    figure.suptitle(plain(title), color=INK, size=13, weight="bold")
    return figure


def dress(axes: Axes, title: str, across: str) -> None:
    """Give `axes` a title above, what is `across` below, and faint horizontal lines."""
    axes.set_title(title, color=INK, size=11, loc="left")
    axes.set_xlabel(across, color=INK)
    axes.grid(axis="y", color=RULE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, left=False)


def short(name: str, length: int) -> str:
    """`name`, cut to `length` characters."""
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def plain(text: str) -> str:
    """`text` as it is: matplotlib would read what stands between two dollars as a formula, and draws text only."""
    return printable(text).replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write `path` in one step; its ending says in which format."""
    with replacement(path) as temporary:
        figure.savefig(temporary, dpi=130)
