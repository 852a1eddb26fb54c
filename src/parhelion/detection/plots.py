"""The pictures of a detection run: learning curves, a sheet of detections beside the truth, detections on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.annotated.instances import Instances
from parhelion.data.annotated.mask_drawing import View, each_drawn
from parhelion.data.annotated.transforms import detection_eval_transform
from parhelion.data.images import BadImage
from parhelion.detection.detections import Found, truth
from parhelion.detection.masks import Patch, patch
from parhelion.detection.saved import Detector
from parhelion.detection.scores import found_in
from parhelion.errors import UserError
from parhelion.files.drawing import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    INK,
    draw_curve,
    dress_curves,
    new_figure,
    save_figure,
    short,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

# Names of the files in a run's folder.
CURVES = "learning_curves.png"
SHEET = "detections.png"
# A picture whose longer side has fewer pixels is enlarged by a whole number until it has as many.
READABLE_PX = 800
# Height of the text as a share of the longer side; width of a line as a share of the text's height.
TEXT, LINE = 1 / 45, 1 / 7
MASK_OPACITY = 0.45
LONGEST_NAME = 24
# A sheet, in inches: the width of a picture and its greatest height, the space between two, the lines of text.
PICTURE, TALLEST, GAP, CAPTION, TITLE = 3.6, 5.0, 0.12, 0.26, 0.42
# Images of a sheet.
PAIRS = 8
# Longer side at which true masks are drawn: a sheet shows no more.
MASK_PX = 1024
SHEET_DOTS, SHEET_TEXT_PX = 200, 20
# The metrics whose curves are drawn: name, colour and dashes of each.
LOOKS = {
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


def draw_sheet(detector: Detector, images: CocoImages, path: Path, title: str) -> None:
    """Draw to `path` the annotated and the found objects in eight of `images`, evenly spaced."""
    pairs: list[Pair] = []
    for number in np.linspace(0, len(images) - 1, min(PAIRS, len(images))).astype(int).tolist():
        image, instances, _ = images[number]
        if isinstance(image, BadImage):
            continue
        target = instances.target(masks=False)
        tensor, seen = detection_eval_transform()(image, instances)
        ((found,),) = found_in(detector.model, [{"image": [tensor], "target": [seen]}])
        masks = _small_masks(instances) if detector.masks else None
        true = truth(instances.image_id, instances.size, target["boxes"], target["labels"], masks)
        pairs.append(Pair(image=image, truth=true, found=found))
    if pairs:
        detection_sheet(pairs, detector.class_names, path, title)


def draw_found(
    image: Image, found: Found, class_names: Sequence[str], *, min_score: float = 0.5, top: int = 50
) -> Image:
    """`image` with the best `top` objects that score at least `min_score`: masks, boxes, names and scores in percent.

    The picture is RGB. A small image is enlarged by a whole number, so that names can be read. A class has the same
    colour in every picture. Raises UserError where `image` and `found` differ in size, or a label has no name.
    """
    longer = max(image.size)
    scale = max(1, -(-READABLE_PX // longer))
    shown = found.above(min_score).best(top)
    return _drawn(image, shown, class_names, scale, text_px=round(TEXT * scale * longer))


def detection_sheet(
    pairs: Sequence[Pair], class_names: Sequence[str], path: Path, title: str, *, min_score: float = 0.5
) -> None:
    """Draw at most eight `pairs` to `path`: the truth on the left, on the right what was found with `min_score`.

    The pairs stand in two columns, each where the column is shorter. Raises UserError without a pair.
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


def learning_curves(rows: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Draw the training loss and average precision over the epochs of metrics.jsonl's `rows` to `path`.

    A curve has no point at an epoch that lacks its number.
    """
    figure = new_figure(10.0, 4.2, title)
    loss, precision = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    draw_curve(loss, *_known(rows, "train_loss"), color=AMBER, name="training")
    for key, (name, color, dashes) in LOOKS.items():
        known, values = _known(rows, key)
        if known:
            percent = [100 * value for value in values]
            draw_curve(
                precision, known, percent, color=color, dashes=dashes, name=f"{name}, {percent[-1]:.1f}% at last"
            )
    for axes, label in ((loss, "loss"), (precision, "validation AP, %")):
        dress_curves(axes, label, epochs)
        axes.set_ylim(bottom=0)
    if not precision.get_lines():
        precision.set_yticks([])
        precision.text(0.5, 0.5, "no validation yet", transform=precision.transAxes, ha="center", color=FAINT)
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


def _known(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """The epochs whose rows have the metric `key`, and its values."""
    known = [row for row in rows if key in row]
    return [row["epoch"] for row in known], [row[key] for row in known]


def _small_masks(instances: Instances) -> Iterator[Tensor]:
    """The masks of the objects, one at a time: those of a large photograph together would fill the memory."""
    scale = min(1.0, MASK_PX / max(instances.size))
    h, w = (max(1, round(side * scale)) for side in instances.size)
    return each_drawn(instances.objects().segmentations, View.whole(instances.size, scaled=(h, w)))
