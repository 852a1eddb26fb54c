"""Compose scenes of clothing, with a mask of each garment, to learn detection and segmentation on without a download.

    python scripts/scenes.py scenes

The garments are the bundled photographs, scaled, turned, mirrored, dyed and laid over one another on painted grounds.
"""

import argparse
import colorsys
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from PIL import Image, ImageFilter

from parhelion.cli import exit_code
from parhelion.data.sources.fashion import CLASS_NAMES, NAMES, bundled_images
from parhelion.errors import UserError
from parhelion.seeds import number

Random = np.random.Generator
SETTINGS = "scenes.json"
SIDES_PX = (112, 176)
SMALLEST_SIDE_PX = 64
# Every 25th scene is empty: a detector must also learn to find nothing.
EMPTY_EVERY = 25
# How often a scene is to have 1, 2, ... 6 garments; where no place is found there are fewer.
COUNT_SHARES = (0.15, 0.25, 0.25, 0.2, 0.1, 0.05)
TRIES = 12
SCALES = (1.6, 3.0)
TURN_DEGREES = 15.0
# Of each garment at least this share of its pixels stays in sight, within the image and under the later ones.
SEEN_SHARE = 0.7
# How far a garment may reach beyond the image, as a share of its height or width.
BEYOND_SHARE = 0.05
SILHOUETTE_GREY = 14
# The ground shows through these where their holes are wide; a hole in any other garment is a white print.
OPEN_CLASSES = (CLASS_NAMES.index("Sandal"), CLASS_NAMES.index("Bag"))
SHADOW_PX, SHADOW_BLUR_PX, SHADOW_STRENGTH = (2, 1), 1.6, 0.5
JPEG_QUALITY = 92


class Garment(NamedTuple):
    """A photograph as it will be laid: its pixels' coverage and grey (32, 32) uint8, and how it is enlarged and turned.

    turn: what takes an offset (row, column) in the photograph to one in the scene.
    """

    name: str
    label: int
    cover: np.ndarray
    grey: np.ndarray
    turn: np.ndarray

    @property
    def area(self) -> float:
        """Pixels in a scene where nothing hides the garment and no border cuts it."""
        return float((self.cover > 127).sum() * abs(np.linalg.det(self.turn)))


class Placed(NamedTuple):
    """A garment in a scene and the pixels (h, w) of the scene where it is seen."""

    garment: Garment
    visible: np.ndarray


def main() -> None:
    """Write the scenes that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make: train/, val/ and annotations/ as COCO has them")
    parser.add_argument("--train", type=int, default=2000, help="scenes to train on")
    parser.add_argument("--val", type=int, default=200, help="scenes to evaluate on, of other garments")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--sides", type=int, nargs=2, default=SIDES_PX, metavar="PX", help="lowest and highest side")
    given = parser.parse_args()
    make_scenes(given.out, train=given.train, val=given.val, seed=given.seed, sides_px=tuple(given.sides))


def make_scenes(
    out: Path, *, train: int = 2000, val: int = 200, seed: int = 0, sides_px: tuple[int, int] = SIDES_PX
) -> None:
    """Make the folder `out` with so many scenes; if it holds exactly these already, say so and leave it.

    A scene depends on the seed, its split and its number alone, not on how many there are. The folder appears whole
    or not at all. UserError: `out` is something else, the numbers make no sense or the disk refuses.

    sides_px: the lowest and highest height and width; the two of an image always differ.
    """
    if train < 1 or val < 1:
        raise UserError(f"each split needs at least one scene, but train is {train} and val is {val}")
    if not SMALLEST_SIDE_PX <= sides_px[0] < sides_px[1]:
        raise UserError(f"sides should rise from {SMALLEST_SIDE_PX} px or more, but are {sides_px[0]} to {sides_px[1]}")
    settings = {"train": train, "val": val, "seed": seed, "sides_px": list(sides_px)}
    if os.path.lexists(out):
        if settings_of(out) != settings:
            raise UserError(f"{out} exists and does not hold these scenes; name another folder or remove it")
        print(f"{out} holds these scenes already")
        return
    started = time.perf_counter()
    with new_folder(out) as folder:
        garments = sum(write_split(folder, split, settings) for split in ("train", "val"))
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    print(f"{out}: {train} + {val} scenes with {garments} garments in {time.perf_counter() - started:.0f} s")


def settings_of(folder: Path) -> Any:
    """What the scenes in `folder` were made with; None if it has none."""
    try:
        return json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which takes its name when the block ends well and is removed when not."""
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_split(folder: Path, split: str, settings: dict[str, Any]) -> int:
    """Write the images and the annotations of one split; the number of garments in them."""
    (folder / split).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(settings[split]):
        pixels, placed = scene(settings["seed"], split, index, tuple(settings["sides_px"]))
        name = f"{index + 1:06d}.jpg"
        Image.fromarray(pixels).save(folder / split / name, quality=JPEG_QUALITY, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]})
        for one in placed:
            annotations.append({"id": len(annotations) + 1, **annotation(index + 1, one)})
    content = {
        "info": {"description": "Scenes composed from Fashion-MNIST (MIT licence)"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASS_NAMES)],
    }
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return len(annotations)


def annotation(image_id: int, placed: Placed) -> dict[str, Any]:
    """What COCO says of one object, without its id; `garment` names the photograph it was made from."""
    visible = placed.visible
    rows, cols = (np.flatnonzero(visible.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(cols[0])
    runs = coco_mask.encode(np.asfortranarray(visible, dtype=np.uint8))
    return {
        "image_id": image_id,
        "category_id": placed.garment.label + 1,
        "bbox": [left, top, int(cols[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(visible.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(visible.shape), "counts": runs["counts"].decode("ascii")},
        "garment": placed.garment.name,
    }


def scene(seed: int, split: str, index: int, sides_px: tuple[int, int]) -> tuple[np.ndarray, list[Placed]]:
    """Pixels (h, w, 3) uint8 of one scene, and its garments from the lowest to the one on top."""
    rng = np.random.default_rng(number("scenes", seed, split, index))
    h, w = rng.choice(np.arange(sides_px[0], sides_px[1] + 1), size=2, replace=False).tolist()
    canvas = background(rng, h, w)
    count = 0 if (index + 1) % EMPTY_EVERY == 0 else 1 + rng.choice(len(COUNT_SHARES), p=COUNT_SHARES)
    placed: list[Placed] = []
    for _ in range(count):
        placed = with_garment(rng, canvas, placed, random_garment(rng, split))
    grain = 0.008 * rng.standard_normal((h, w, 1), np.float32)
    return (255 * (canvas + grain).clip(0, 1) + 0.5).astype(np.uint8), placed


def with_garment(rng: Random, canvas: np.ndarray, placed: list[Placed], garment: Garment) -> list[Placed]:
    """`placed` with the garment on top, painted into `canvas`; as it was if no place leaves enough of all in sight."""
    size = np.array(canvas.shape[:2])
    corners = (np.argwhere(garment.cover > 127) + 0.5 - garment.cover.shape[0] / 2) @ garment.turn.T
    beyond = BEYOND_SHARE * np.ptp(corners, axis=0)
    limits = np.sort([-corners.min(axis=0) - beyond, size - corners.max(axis=0) + beyond], axis=0)
    for _ in range(TRIES):
        centre = rng.uniform(*limits)
        cover = warp(garment.cover, garment.turn, centre, size).astype(np.float32) / 255
        # Steep where it passes one half, so that an edge is about a pixel wide at any scale.
        cover = ((cover - 0.5) * np.linalg.norm(garment.turn[0]) + 0.5).clip(0, 1)
        mask = cover >= 0.5
        found = [*(Placed(one.garment, one.visible & ~mask) for one in placed), Placed(garment, mask)]
        if all(one.visible.sum() >= SEEN_SHARE * one.garment.area for one in found):
            paint(rng, canvas, garment, centre, cover)
            return found
    return placed


def paint(rng: Random, canvas: np.ndarray, garment: Garment, centre: np.ndarray, cover: np.ndarray) -> None:
    """Darken `canvas` (h, w, 3) by the garment's shadow, then lay the garment on, in a random dye."""
    # Nothing changes further away; the shadow fades within 8 pixels.
    reached = np.argwhere(cover > 0)
    low, high = (reached.min(axis=0) - 8).clip(0), reached.max(axis=0) + 9
    part = np.s_[low[0] : high[0], low[1] : high[1]]
    canvas, cover, centre, size = canvas[part], cover[part], centre - low, cover[part].shape
    shadow = Image.fromarray(warp(garment.cover, garment.turn, centre + SHADOW_PX, size))
    shadow = np.asarray(shadow.filter(ImageFilter.GaussianBlur(SHADOW_BLUR_PX)), np.float32) / 255
    canvas *= 1 - SHADOW_STRENGTH * shadow[..., None]
    colour = dyed(rng, warp(garment.grey, garment.turn, centre, size).astype(np.float32) / 255)
    canvas += cover[..., None] * (colour - canvas)


def random_garment(rng: Random, split: str) -> Garment:
    """A garment of the split, to be enlarged, turned and perhaps mirrored."""
    images, labels, _ = bundled_images(NAMES[split])
    index = int(rng.integers(len(images)))
    scale, angle = rng.uniform(*SCALES), math.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
    mirror = np.diag([1, rng.choice([-1, 1])])
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ mirror
    cover, grey = coverage(images[index], silhouette(images[index], int(labels[index])))
    return Garment(f"bundled:{NAMES[split]}/{index}", int(labels[index]), cover, grey, turn)


def silhouette(image: np.ndarray, label: int) -> np.ndarray:
    """The garment's pixels (28, 28): all that are not black, with the holes filled that are no openings."""
    solid = np.pad(image > SILHOUETTE_GREY, 1)
    # A speck of one or two pixels is dust on the photograph.
    solid &= np.asarray(Image.fromarray(solid.astype(np.uint8) * 252).filter(ImageFilter.BoxBlur(1))) > 2.5 * 28
    outside = np.zeros_like(solid)
    outside[[0, -1]] = outside[:, [0, -1]] = True
    reached = 0
    while reached != (reached := int(outside.sum())):
        for part, wall in ((outside, solid), (outside.T, solid.T)):
            part[1:] |= part[:-1] & ~wall[1:]
            part[:-1] |= part[1:] & ~wall[:-1]
    filled = ~outside[1:-1, 1:-1]
    if label in OPEN_CLASSES:
        filled &= ~largest(~largest(solid[1:-1, 1:-1] | ~filled))
    return filled


def coverage(image: np.ndarray, outline: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel the garment fills, and its grey carried on beyond its edge; both (32, 32) uint8.

    The photographs are smooth along the edge: a pixel there is as dark as it is empty.
    """
    outline, image = np.pad(outline, 2), np.pad(image, 2)
    inner = ~largest(~outline)
    around = largest(np.where(outline, image, 0).astype(np.uint8))
    filled = np.where(outline, image / np.maximum(around, 1), 0)
    cover = np.where(inner, 255, 255 * filled).astype(np.uint8)
    return cover, np.where(inner, image, around)


def largest(values: np.ndarray) -> np.ndarray:
    """Of each pixel (h, w) of bytes or booleans and its eight neighbours the highest."""
    return np.asarray(Image.fromarray(values.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))).astype(values.dtype)


def warp(values: np.ndarray, turn: np.ndarray, centre: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Bytes of `size` (h, w) with the square `values` laid at `centre` (row, column), as `turn` says."""
    back = np.linalg.inv(turn)
    # From where in the square each pixel of the result is taken; Pillow counts columns first.
    where = np.column_stack([back, values.shape[0] / 2 - back @ centre])[::-1, [1, 0, 2]].ravel().tolist()
    image, (h, w) = Image.fromarray(values), (int(side) for side in size)
    return np.asarray(image.transform((w, h), Image.Transform.AFFINE, where, Image.Resampling.BICUBIC))


def dyed(rng: Random, grey: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) for greys (h, w): from a dark shade of one hue to a light one."""
    hue, saturation = rng.random(), rng.uniform(0.1, 0.6)
    light = hsv(hue, saturation * 0.85, rng.uniform(0.85, 1.0))
    dark = hsv(hue + rng.uniform(-0.06, 0.06), saturation, rng.uniform(0.3, 0.45))
    return dark + grey[..., None] * (light - dark)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Red, green and blue in 0 to 1; the hue goes round, so that any number is one."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def background(rng: Random, h: int, w: int) -> np.ndarray:
    """A painted ground (h, w, 3) in 0 to 1: one of GROUNDS in two related colours, unevenly lit."""
    ground = GROUNDS[rng.integers(len(GROUNDS))]
    pattern = ground.pattern(rng, h, w)[..., None].astype(np.float32)
    hue, saturation = rng.uniform(*ground.hues), rng.uniform(*ground.saturations)
    value, contrast = rng.uniform(0.15, 0.4), rng.uniform(*ground.contrasts)
    first = hsv(hue, saturation, value)
    second = hsv(hue + rng.normal(0, ground.hue_change), saturation * rng.uniform(0.6, 1.3), value * (1 - contrast))
    light = 0.92 + 0.16 * linear(rng, h, w)[..., None].astype(np.float32)
    return ((first + pattern * (second - first)) * light + 0.03 * (clouds(rng, h, w)[..., None] - 0.5)).clip(0, 1)


def linear(rng: Random, h: int, w: int) -> np.ndarray:
    """From 0 at one side to 1 at the other, in any direction."""
    across = turned(h, w, rng.uniform(0, 2 * math.pi))[0]
    return (across - across.min()) / np.ptp(across)


def clouds(rng: Random, h: int, w: int) -> np.ndarray:
    """Noise from 0 to 1 that changes slowly, with finer and fainter parts."""
    total = sum(noise(rng, h, w, (h / cell, w / cell)) * cell for cell in (48, 24, 12))
    return (total - total.min()) / np.ptp(total)


def cloth(rng: Random, h: int, w: int) -> np.ndarray:
    """Stripes in any direction, two sets of them across one another as in a tablecloth, or a chessboard."""
    period = rng.uniform(10, 36)
    first, second = (edged(axis, period, rng.uniform(0.4, 0.6)) for axis in turned(h, w, rng.uniform(0, math.pi)))
    return (first, (first + second) / 2, first + second - 2 * first * second)[rng.integers(3)]


def wood(rng: Random, h: int, w: int) -> np.ndarray:
    """Lying boards: each of its own shade, waves of grain, a dark joint between two."""
    height = rng.uniform(20, 44)
    rows = np.arange(h)[:, None]
    board = ((rows + rng.uniform(0, height)) // height).astype(int)
    shift = rng.uniform(0, 500, size=board.max() + 1)[board]
    warped = rows * rng.uniform(0.35, 0.7) + 7 * noise(rng, h, w, (h / 14, w / 60)) + shift
    grain = 0.25 + 0.18 * np.sin(warped) + 0.12 * noise(rng, h, w, (h / 2, w / 30))
    return np.where(np.diff(board, axis=0, append=board[-1:]) > 0, 1.0, grain + 0.04 * np.sin(3 * shift))


def paving(rng: Random, h: int, w: int) -> np.ndarray:
    """Stones in rows, each of its own shade, every second row shifted, with joints."""
    tall = rng.uniform(14, 30)
    wide = tall * rng.uniform(1.0, 2.2)
    across, down = turned(h, w, rng.choice([0.0, math.pi / 4]) + rng.uniform(-0.1, 0.1))
    row = np.floor(down / tall)
    across = across + (row % 2) * wide * 0.5
    col = np.floor(across / wide)
    shades = rng.random(size=(64, 64))[row.astype(int) % 64, col.astype(int) % 64]
    to_joint = np.minimum(np.minimum(down % tall, -down % tall), np.minimum(across % wide, -across % wide))
    return np.where(to_joint < 1.0, 1.0, 0.35 * shades + 0.25 * clouds(rng, h, w))


def pebbles(rng: Random, h: int, w: int) -> np.ndarray:
    """Stones of any shape, each of its own shade: the nearest of scattered points."""
    count = int(rng.integers(25, 70))
    points = rng.uniform(size=(count, 2, 1, 1)) * np.reshape([h, w], (2, 1, 1))
    rows, cols = np.ogrid[:h, :w]
    distances = np.hypot(rows - points[:, 0], cols - points[:, 1])
    nearest = np.partition(distances, 1, axis=0)
    shades = rng.uniform(0, 0.6, size=count)[distances.argmin(axis=0)]
    return np.where(nearest[1] - nearest[0] < 1.6, 1.0, shades)


def turned(h: int, w: int, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (h, w) in pixels across and down, turned by `angle` about a point far outside the image."""
    rows, cols = np.mgrid[1000 : 1000 + h, 1000 : 1000 + w]
    cos, sin = math.cos(angle), math.sin(angle)
    return cols * cos + rows * sin, rows * cos - cols * sin


def edged(across: np.ndarray, period: float, share: float) -> np.ndarray:
    """1 on the first `share` of each period and 0 on the rest, with edges one pixel wide."""
    from_middle = np.abs(across / period % 1 - 0.5)
    return ((share / 2 - from_middle) * period + 0.5).clip(0, 1)


def noise(rng: Random, h: int, w: int, cells: tuple[float, float]) -> np.ndarray:
    """Smooth noise (h, w) around 0 with so many bumps down and across."""
    rows, cols = (max(2, round(side)) for side in cells)
    coarse = Image.fromarray(rng.normal(size=(rows, cols)).astype(np.float32))
    return np.asarray(coarse.resize((w, h), Image.Resampling.BICUBIC))


class Ground(NamedTuple):
    """A pattern (0 to 1) and the ranges that its two colours are drawn from."""

    pattern: Callable[[Random, int, int], np.ndarray]
    contrasts: tuple[float, float] = (0.15, 0.45)
    hues: tuple[float, float] = (0.0, 1.0)
    saturations: tuple[float, float] = (0.08, 0.5)
    hue_change: float = 0.06


GROUNDS = (
    Ground(linear, contrasts=(0.3, 0.7), hue_change=0.12),
    Ground(clouds, contrasts=(0.3, 0.6)),
    *[Ground(cloth)] * 3,  # Three patterns in one.
    Ground(wood, contrasts=(0.5, 0.7), hues=(0.05, 0.11), saturations=(0.25, 0.6), hue_change=0.01),
    Ground(paving, contrasts=(0.4, 0.6), hues=(0.02, 0.14), saturations=(0.03, 0.4), hue_change=0.01),
    Ground(pebbles, contrasts=(0.35, 0.6), saturations=(0.03, 0.25), hue_change=0.03),
)


if __name__ == "__main__":
    sys.exit(exit_code(main))
