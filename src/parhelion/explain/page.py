"""Writes attention maps as one page of HTML that needs nothing beside it: no network, no other file.

The page holds queries, keys and tables, and computes the weights of a pixel when it is asked for, as `HaloLayer` and
`GlobalLayer` do: weights of all pixels would take a hundred times the space.
"""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from parhelion.explain.gsa import GlobalLayer
from parhelion.explain.halo import HaloLayer
from parhelion.explain.maps import AttentionMaps
from parhelion.explain.recorded import Layer
from parhelion.explain.summary import Summary

# Above so many bytes of queries and keys, numbers are rounded to 16 bits.
EXACT_BYTES = 6_000_000
LEVELS = 2**15 - 1
# Larger pictures are stored as JPEG.
PNG_PIXELS = 300_000
# Queries along each axis at which the error of rounding is measured.
PROBES = 4


class Numbers:
    """Arrays beside the page's description, by which they are named, so that a browser decodes only what it shows."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.texts: list[str] = []

    def add(self, tensor: Tensor, *, exact: bool = False) -> dict[str, Any]:
        """Store a tensor whose last two axes are heads and channels; `exact` keeps it in float32 in any case."""
        scale, stored = None, tensor.float()
        if self.bits == 16 and not exact:
            whole, step = sixteen_bits(stored)
            stored, scale = whole.to(torch.int16), step.flatten().tolist()
        # Little-endian, as browsers run on such processors only.
        self.texts.append(base64.b64encode(stored.contiguous().numpy().tobytes()).decode("ascii"))
        return {"at": len(self.texts) - 1, "scale": scale}


def sixteen_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers for (h, w, heads, channels), and the step of each head and channel."""
    step = tensor.abs().amax(dim=(0, 1)).clamp_min(1e-30) / LEVELS
    return (tensor / step).round(), step


def page(models: Sequence[AttentionMaps]) -> str:
    """The page of one model, or of several on the same image side by side."""
    size = sum(4 * tensor.numel() for maps in models for layer in maps.layers for tensor in _maps(layer))
    numbers = Numbers(32 if size <= EXACT_BYTES else 16)
    described = [_model(maps, numbers) for maps in models]
    web = files("parhelion.explain") / "web"
    filled = web.joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "<!-- style -->": f"<style>\n{web.joinpath('page.css').read_text(encoding='utf-8')}</style>",
        "<!-- data -->": "\n".join(_scripts(described, numbers)),
        "<!-- script -->": "\n".join(
            f"<script>\n{web.joinpath(name).read_text(encoding='utf-8')}</script>" for name in ("weights.js", "page.js")
        ),
    }
    for mark, part in parts.items():
        filled = filled.replace(mark, part)
    return filled


def _scripts(described: list[dict[str, Any]], numbers: Numbers) -> Iterator[str]:
    # A name could hold what ends a script.
    text = json.dumps(described, allow_nan=False).replace("<", "\\u003c")
    yield f'<script type="application/json" id="models">{text}</script>'
    for place, array in enumerate(numbers.texts):
        yield f'<script type="text/plain" id="numbers{place}">{array}</script>'


def _model(maps: AttentionMaps, numbers: Numbers) -> dict[str, Any]:
    height, width = maps.picture.height, maps.picture.width
    rounded = max(_rounding(layer) for layer in maps.layers) if numbers.bits == 16 else 0.0
    occlusion = maps.occlusion
    return {
        "title": maps.title,
        "note": maps.note,
        "picture": _data_uri(maps.picture),
        "size": [height, width],
        "top": maps.top,
        "rounding": rounded,
        "layers": [
            _layer(maps, layer, summary, numbers) for layer, summary in zip(maps.layers, maps.summaries, strict=True)
        ],
        "rollout": None if maps.rollout is None else _rounded(maps.rollout),
        "occlusion": None
        if occlusion is None
        else {
            "class": occlusion.class_name,
            "probability": occlusion.probability,
            "patch": occlusion.patch_px,
            "losses": _rounded(occlusion.losses),
        },
    }


def _layer(maps: AttentionMaps, layer: Layer, summary: Summary, numbers: Numbers) -> dict[str, Any]:
    described = {
        "name": layer.name,
        "kind": layer.kind,
        "heads": layer.heads,
        "size": layer.size,
        "querySize": layer.query_size,
        "stride": layer.stride,
        "keyPx": maps.key_px(layer),
        "parts": layer.parts,
        "summary": {name: None if value is None else _rounded(value) for name, value in summary._asdict().items()},
    }
    return described | (_windows(layer, numbers) if isinstance(layer, HaloLayer) else _branches(layer, numbers))


def _windows(layer: HaloLayer, numbers: Numbers) -> dict[str, Any]:
    geometry = layer.window.geometry
    return {
        **geometry._asdict(),
        "scale": layer.window.scale,
        "channels": layer.q.shape[-1],
        "q": numbers.add(layer.q),
        "k": numbers.add(layer.k),
        "tables": None if layer.tables is None else [_table(table, numbers) for table in layer.tables],
        "firstOffset": -(geometry.block - 1) - geometry.halo,
    }


def _branches(layer: GlobalLayer, numbers: Numbers) -> dict[str, Any]:
    (h, w), content, positional = layer.size, layer.content, layer.columns is not None
    tables = None
    if layer.columns is not None and layer.rows is not None:
        tables = [
            _table(_middle(call.table, length), numbers) for call, length in ((layer.columns, h), (layer.rows, w))
        ]
    return {
        "channels": layer.q.shape[-1],
        "q": numbers.add(layer.q),
        "k": None if content is None else numbers.add(layer.content_keys),
        "normalizeQueries": content is not None and content.normalize_queries,
        "positional": positional,
        "normScale": layer.norm_scale.float().mean(dim=-1).tolist(),
        "tables": tables,
    }


def _table(table: Tensor, numbers: Numbers) -> dict[str, Any]:
    return {"rows": table.shape[0], "channels": table.shape[1], "numbers": numbers.add(table, exact=True)}


def _middle(table: Tensor, length: int) -> Tensor:
    """The rows of a table that an axis of `length` pixels reads."""
    first = table.shape[0] // 2 - (length - 1)
    return table[first : first + 2 * length - 1]


def _maps(layer: Layer) -> list[Tensor]:
    """What the page holds for each pixel."""
    if isinstance(layer, HaloLayer):
        return [layer.q, layer.k]
    return [layer.q] if layer.content is None else [layer.q, layer.content.k]


def _rounding(layer: Layer) -> float:
    """The largest difference of a weight by rounding to 16 bits, over some queries, relative to the row's largest."""
    rows, cols = ([round((place + 0.5) * size / PROBES - 0.5) for place in range(PROBES)] for size in layer.query_size)
    rough = _sixteen(layer)
    worst = 0.0
    for row, col in {(row, col) for row in rows for col in cols}:
        exact = _weights(layer, row, col)
        error = (_weights(rough, row, col) - exact).abs().amax(dim=(-1, -2))
        worst = max(worst, (error / exact.abs().amax(dim=(-1, -2)).clamp_min(1e-30)).max().item())
    return worst


def _weights(layer: Layer, row: int, col: int) -> Tensor:
    """The weights of a query, those outside the image as well."""
    return layer.window_weights(row, col) if isinstance(layer, HaloLayer) else layer.weights(row, col)


def _sixteen(layer: Layer) -> Layer:
    """The layer with queries and keys as the page holds them in 16 bits."""

    def rounded(tensor: Tensor) -> Tensor:
        whole, step = sixteen_bits(tensor.float())
        return whole * step

    if isinstance(layer, HaloLayer):
        return replace(layer, q=rounded(layer.q), k=rounded(layer.k))
    content, columns, rows = layer.content, layer.columns, layer.rows
    if content is not None:
        content = content._replace(q=rounded(content.q))
    if columns is not None and rows is not None:
        columns, rows = columns._replace(q=rounded(columns.q)), rows._replace(q=rounded(rows.q))
    rough: Any = replace(layer, content=content, columns=columns, rows=rows)
    if content is not None:
        vars(rough)["content_keys"] = rounded(layer.content_keys)
    return rough


def _rounded(tensor: Tensor) -> list[Any]:
    """Numbers with six digits, to save space."""

    def short(value: Any) -> Any:
        return [short(one) for one in value] if isinstance(value, list) else float(f"{value:.6g}")

    return short(tensor.tolist())


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    kind = "PNG" if picture.width * picture.height <= PNG_PIXELS else "JPEG"
    picture.save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
