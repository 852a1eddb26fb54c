"""Pictures of a detector: what it found in an image, a sheet beside the truth, curves of its training."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from parhelion.detection.detections import Found
from parhelion.detection.masks import Patch, patch
from parhelion.errors import UserError
from parhelion.files.drawing import AMBER, BLUE, FAINT, GREEN, INK, dress, new_figure, save_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

# A picture whose longer side has fewer pixels is enlarged by a whole number until it has as many.
READABLE_PX = 800
# Shares of the longer side, and of the height of the text.
TEXT, LINE = 1 / 45, 1 / 7
MASK_OPACITY = 0.45
LONGEST_NAME = 24
# A sheet, in inches: the width of a picture and its greatest height, the space between two, the lines of text.
PICTURE, TALLEST, GAP, CAPTION, TITLE = 3.6, 5.0, 0.12, 0.26, 0.42
PAIRS = 8
SHEET_DOTS, SHEET_TEXT_PX = 200, 20
# The metrics of a validation, the colour and the dashes of each one's curve.
CURVES = {
    "box_ap": ("box AP", BLUE, "-"),
    "box_ap50": ("box AP50", BLUE, ":"),
    "mask_ap": ("mask AP", GREEN, "-"),
    "mask_ap50": ("mask AP50", GREEN, ":"),
}

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One image of a sheet: the truth (see `parhelion.detection.detections.truth`) and what was found."""

    image: Image
    truth: Found
    found: Found


def draw_found(
    image: Image, found: Found, class_names: Sequence[str], *, min_score: float = 0.5, top: int = 50
) -> Image:
    """`image` with the best `top` of those that score at least `min_score`: masks, boxes, names and scores in percent.

    Comes back as RGB; a small image is enlarged by a whole number, so that the names can be read. A class
    has one colour in every picture. Raises UserError where `image` has not the size of `found`, or a label has
    no name.
    """
    longer = max(image.size)
    scale = max(1, -(-READABLE_PX // longer))
    shown = found.above(min_score).best(top)
    return _drawn(image, shown, class_names, scale, text_px=round(TEXT * scale * longer))


def detection_sheet(
    pairs: Sequence[Pair], class_names: Sequence[str], path: Path, title: str, *, min_score: float = 0.5
) -> None:
    """Draw at most the first eight `pairs` to `path`: the truth left, what was found with `min_score` right.

    The pairs stand in two columns, each next one where there is more room. Raises UserError without a pair.
    """
    if not pairs:
        raise UserError("there is no image to draw a sheet of detections from")
    pairs = pairs[:PAIRS]
    ends = [TITLE] * min(2, len(pairs))
    corners = []
    for pair in pairs:
        column = ends.index(min(ends))
        corners.append((GAP + 2 * column * (PICTURE + GAP), ends[column] + CAPTION))
        ends[column] += CAPTION + _scale(pair.image) * pair.image.height + GAP
    figure = new_figure(GAP + 2 * len(ends) * (PICTURE + GAP), max(ends), title)
    # Every picture has its place in inches, so there is none to find.
    figure.set_layout_engine("none")
    figure.texts[0].set_y(1 - GAP / max(ends))
    for pair, (left, top) in zip(pairs, corners, strict=True):
        dots = SHEET_DOTS * _scale(pair.image)
        shown = pair.found.above(min_score)
        true = _drawn(pair.image, pair.truth, class_names, dots, text_px=SHEET_TEXT_PX, scores=False)
        found = _drawn(pair.image, shown, class_names, dots, text_px=SHEET_TEXT_PX)
        _show(figure, true, f"truth: {len(pair.truth)}", left, top)
        _show(figure, found, f"found: {len(shown)}", left + PICTURE + GAP, top)
    save_figure(figure, path)


def detection_curves(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Draw the training loss and average precision over the epochs of metrics.jsonl's `rows` to `path`.

    An epoch without a validation, or without a number of it, has no point on that curve.
    """
    figure = new_figure(10.0, 4.2, title)
    loss, precision = figure.subplots(1, 2)
    _curve(loss, rows, "train_loss", 1.0, ("training", AMBER, "-"))
    _dress(loss, "loss", rows)
    for key, (name, color, dashes) in CURVES.items():
        values = [row[key] for row in rows if key in row]
        if values:
            _curve(precision, rows, key, 100.0, (f"{name}, {100 * values[-1]:.1f}% at last", color, dashes))
    _dress(precision, "validation AP, %", rows)
    save_figure(figure, path)


def class_color(label: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of a class in every picture; labels in a row are far apart."""
    # Steps of the golden ratio never come back to a hue.
    hue = (0.58 + 0.618034 * (label - 1)) % 1.0
    saturation, value = ((0.85, 0.95), (0.65, 1.0), (0.95, 0.75))[(label - 1) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _drawn(
    image: Image, found: Found, class_names: Sequence[str], scale: float, *, text_px: int, scores: bool = True
) -> Image:
    """`image`, `scale` times as large, as RGB, with everything of `found` on it."""
    from PIL import ImageDraw

    picture, found = _scaled(image, found, scale)
    # From the least sure to the surest, which then lies on top.
    order = range(len(found))[::-1]
    labels = found.labels.tolist()
    if found.masks is not None:
        picture = _tinted(picture, found, found.masks, order)
    canvas = ImageDraw.Draw(picture)
    line_px = max(2, round(LINE * text_px))
    boxes = [_inside(box, found.size, line_px) for box in found.boxes.tolist()]
    for number in order:
        canvas.rectangle(boxes[number], outline=class_color(labels[number]), width=line_px)
    names = [short(name, LONGEST_NAME) for name in found.names(class_names)]
    if scores:
        names = [f"{name} {_percent(score)}" for name, score in zip(names, found.scores.tolist(), strict=True)]
    _name_boxes(canvas, boxes, names, labels, text_px)
    return picture


def _scaled(image: Image, found: Found, scale: float) -> tuple[Image, Found]:
    from PIL import Image as Images

    if (image.height, image.width) != found.size:
        raise UserError(
            f"the picture has {image.height} x {image.width} pixels (h x w), "
            f"but the detections are of one with {found.size[0]} x {found.size[1]}"
        )
    picture = image.convert("RGB")
    if scale == 1:
        return picture, found
    size = (max(1, round(scale * image.height)), max(1, round(scale * image.width)))
    picture = picture.resize(size[::-1], Images.Resampling.LANCZOS)
    return picture, replace(found, boxes=found.boxes * scale, size=size)


def _percent(score: float) -> str:
    # Cut, not rounded: 100% is for what is certain.
    return f"{int(100 * score + 1e-4)}%"


def _tinted(picture: Image, found: Found, masks: Tensor, order: Sequence[int]) -> Image:
    from PIL import Image as Images

    pixels = np.array(picture)
    for number in order:
        # One instance at a time, and only around its box.
        small = patch(masks[number], found.boxes[number], found.size)
        _tint(pixels, small, class_color(int(found.labels[number])))
    return Images.fromarray(pixels)


def _tint(pixels: np.ndarray, small: Patch, color: tuple[int, int, int]) -> None:
    window, here = pixels[small.window()], small.pixels.numpy()
    window[here] = ((1 - MASK_OPACITY) * window[here] + MASK_OPACITY * np.array(color)).astype(np.uint8)


def _inside(box: Sequence[float], size: tuple[int, int], line_px: int) -> Box:
    """The box in whole pixels, inside the picture, with room for its line."""
    h, w = size
    left, top, right, bottom = (round(side) for side in box)
    left, top = max(0, min(left, w - line_px)), max(0, min(top, h - line_px))
    return left, top, max(left + line_px - 1, min(right, w - 1)), max(top + line_px - 1, min(bottom, h - 1))


def _name_boxes(
    canvas: ImageDraw, boxes: Sequence[Box], names: Sequence[str], labels: Sequence[int], text_px: int
) -> None:
    """Write a name on each box: the first ones where they like, later ones where they hide the least of these."""
    w, h = canvas.im.size
    font = _font(text_px)
    margin = max(2, text_px // 5)
    taken: list[Box] = []
    for box, name, label in zip(boxes, names, labels, strict=True):
        wide, high = round(canvas.textlength(name, font=font)) + 2 * margin, round(1.2 * text_px) + margin
        place = _place(box, (high, wide), (h, w), taken)
        taken.append(place)
        color = class_color(label)
        canvas.rectangle(place, fill=color)
        middle = (place[0] + margin, (place[1] + place[3]) / 2)
        canvas.text(middle, name, font=font, fill=_ink_on(color), anchor="lm")


def _place(box: Box, text: tuple[int, int], size: tuple[int, int], taken: Sequence[Box]) -> Box:
    (high, wide), (h, w) = text, size
    left, top, right, bottom = box
    wishes = [(left, top - high), (left, top), (right - wide, top - high), (left, bottom - high), (left, bottom)]
    places = []
    for across, down in wishes:
        across, down = max(0, min(across, w - wide)), max(0, min(down, h - high))
        places.append((across, down, across + wide - 1, down + high - 1))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(one: Box, other: Box) -> int:
    across = min(one[2], other[2]) - max(one[0], other[0]) + 1
    down = min(one[3], other[3]) - max(one[1], other[1]) + 1
    return max(0, across) * max(0, down)


def _ink_on(color: tuple[int, int, int]) -> str:
    red, green, blue = color
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


@lru_cache(maxsize=8)
def _font(text_px: int) -> FreeTypeFont:
    from matplotlib import get_data_path
    from PIL import ImageFont

    # Comes with matplotlib and, unlike Pillow's own, has Greek, Cyrillic and accents.
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), text_px)


def _scale(image: Image) -> float:
    """Inches of a sheet for each pixel of `image`."""
    return min(PICTURE / image.width, TALLEST / image.height)


def _show(figure: Figure, picture: Image, caption: str, left: float, top: float) -> None:
    """Put `picture` into `figure`, its upper left corner so many inches from that of the figure."""
    width, height = figure.get_size_inches()
    across, down = picture.width / SHEET_DOTS, picture.height / SHEET_DOTS
    axes = figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))
    axes.imshow(picture, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    axes.set_title(caption, color=INK, size=9, loc="left", pad=3)


def _curve(axes: Axes, rows: Sequence[Mapping[str, float]], key: str, scale: float, look: tuple[str, str, str]) -> None:
    name, color, dashes = look
    there = [row for row in rows if key in row]
    across, values = [row["epoch"] for row in there], [scale * row[key] for row in there]
    axes.plot(across, values, color=color, ls=dashes, lw=2, marker="o", ms=4, label=name)


def _dress(axes: Axes, label: str, rows: Sequence[Mapping[str, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    dress(axes, label, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(rows[0]["epoch"] - 0.3, rows[-1]["epoch"] + 0.3)
    axes.set_ylim(bottom=0)
    if axes.get_lines():
        axes.legend(frameon=False, labelcolor=INK)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no validation yet", transform=axes.transAxes, ha="center", color=FAINT)
