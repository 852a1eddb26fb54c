"""Attention maps as one picture, for papers: a row for each layer, a column for each head, the weights of one pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parhelion.errors import UserError
from parhelion.explain.halo import HaloLayer
from parhelion.explain.maps import AttentionMaps
from parhelion.explain.recorded import Layer
from parhelion.files.drawing import INK, new_figure, plain, save_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LAYERS, MOST_HEADS = 6, 8
QUERY, PAPER = "#ff3b8d", "#ffffff"
# In inches.
TILE, HEADING, GAP = 1.5, 0.5, 0.2


def draw_sheet(maps: AttentionMaps, path: Path, *, pixel: tuple[int, int] | None = None) -> None:
    """Draw what one pixel attends to in up to six layers and eight heads to `path`; its ending says in which format.

    pixel: Row and column in the picture; the middle if None. Raises UserError where it lies outside.
    """
    height, width = maps.picture.height, maps.picture.width
    row, col = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= row < height and 0 <= col < width):
        raise UserError(
            f"the pixel {row} {col} is not in the image as the network sees it, which is {height} x {width}"
        )
    layers = evenly(maps.layers, MOST_LAYERS)
    columns = 1 + min(MOST_HEADS, max(layer.heads for layer in layers))
    figure = new_figure(TILE * columns, HEADING + (TILE + GAP) * len(layers), _title(maps))
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for axes, layer in zip(grid, layers, strict=True):
        query = _query(layer, maps.key_px(layer), (row, col))
        _draw_picture(axes[0], maps, layer, query)
        for head, one in enumerate(axes[1:]):
            if head < layer.heads:
                _draw_head(one, maps, layer, query, head)
            else:
                one.set_axis_off()
    save_figure(figure, path)


def evenly(layers: Sequence[Layer], most: int) -> list[Layer]:
    """At most `most` layers, evenly spaced, the first and the last among them."""
    if len(layers) <= most:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (most - 1))] for place in range(most)]


def _title(maps: AttentionMaps) -> str:
    best = f": {maps.top[0][0]} {100 * maps.top[0][1]:.1f}%" if maps.top else ""
    return f"{short(maps.title, 60)}{best}"


def _query(layer: Layer, key_px: tuple[float, float], pixel: tuple[int, int]) -> tuple[int, int]:
    """The query of a layer that lies at a pixel of the picture."""
    places = (int(place / (px * layer.stride)) for place, px in zip(pixel, key_px, strict=True))
    row, col = (min(place, size - 1) for place, size in zip(places, layer.query_size, strict=True))
    return row, col


def _draw_picture(axes: Axes, maps: AttentionMaps, layer: Layer, query: tuple[int, int]) -> None:
    _draw_image(axes, maps, layer)
    (tall, wide), stride = maps.key_px(layer), layer.stride
    if isinstance(layer, HaloLayer):
        top, left = layer.corner(*query)
        side, halo, block = layer.window.geometry.side, layer.window.halo, layer.window.block
        _frame(axes, (left * wide, top * tall), (side * wide, side * tall), PAPER, "-")
        _frame(axes, ((left + halo) * wide, (top + halo) * tall), (block * wide, block * tall), PAPER, ":")
    _frame(axes, (query[1] * stride * wide, query[0] * stride * tall), (wide, tall), QUERY, "-")
    axes.set_title(plain(short(layer.name, 26)), color=INK, size=7.5)


def _draw_head(axes: Axes, maps: AttentionMaps, layer: Layer, query: tuple[int, int], head: int) -> None:
    _draw_image(axes, maps, layer)
    weights, (top, left), (tall, wide) = *_keys(layer, query, head), maps.key_px(layer)
    rows, cols = weights.shape
    edges = (left * wide, (left + cols) * wide, (top + rows) * tall, top * tall)
    most = weights.abs().max().item()
    how: dict[str, Any] = (
        {"cmap": "cividis", "vmin": 0} if isinstance(layer, HaloLayer) else {"cmap": "PuOr_r", "vmin": -most}
    )
    axes.imshow(weights.numpy(), extent=edges, vmax=most, alpha=0.8, interpolation="nearest", zorder=2, **how)
    stride = layer.stride
    _frame(axes, (query[1] * stride * wide, query[0] * stride * tall), (wide, tall), QUERY, "-")
    sign = "" if isinstance(layer, HaloLayer) else "±"
    axes.set_title(f"head {head}, max {sign}{most:.2g}", color=INK, size=7.5)


def _keys(layer: Layer, query: tuple[int, int], head: int) -> tuple[Tensor, tuple[int, int]]:
    """The weights of a query's keys, and the place of the first of them."""
    if isinstance(layer, HaloLayer):
        return layer.window_weights(*query)[head], layer.corner(*query)
    return layer.weights(*query)[head], (0, 0)


def _draw_image(axes: Axes, maps: AttentionMaps, layer: Layer) -> None:
    """The picture, and room round it for what lies outside: as far as windows reach."""
    height, width = maps.picture.height, maps.picture.width
    gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if maps.picture.mode == "L" else {}
    axes.imshow(maps.picture, extent=(0, width, height, 0), interpolation="nearest", zorder=1, **gray)
    bottom, right, halo = float(height), float(width), torch.zeros(2)
    if isinstance(layer, HaloLayer):
        window, px = layer.window, maps.key_px(layer)
        halo = torch.tensor(px) * window.halo
        bottom, right = (
            -(-size // window.block) * window.block * one + window.halo * one
            for size, one in zip(layer.size, px, strict=True)
        )
    axes.set_xlim(-halo[1].item(), right)
    axes.set_ylim(bottom, -halo[0].item())
    axes.set_facecolor("#b8bdc9")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _frame(axes: Axes, corner: tuple[float, float], size: tuple[float, float], color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linestyle=style, linewidth=1.2, zorder=3))
