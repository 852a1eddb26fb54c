"""Small data sets in COCO's format to train a detector on in a second: coloured rectangles on noise, none square."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from data.annotated.coco_folders import annotation, run_lengths
from PIL import Image

from parhelion.detection.recipe import DetectionRecipe
from parhelion.recipes.table import recipe

COLOURS = {"green": (40, 160, 60), "red": (200, 40, 40), "blue": (40, 60, 200)}
CATEGORIES = {3: "green", 7: "red", 90: "blue"}
"""Names by id, with gaps."""
TRAIN, VAL = 9, 5
EMPTY, CROWDED = 3, 4
"""Of each split the number of the image without objects, and of the one with a crowd."""
TINY = {"fpn_width": 8, "box_width": 16, "mask_width": 8, "proposals": 20, "sampled_boxes": 8}
"""Sizes at which a detector trains within a second."""


def tiny_scenes(
    root: Path, *, categories: dict[int, str] = CATEGORIES, masks: bool = True, train: int = TRAIN, val: int = VAL
) -> str:
    """A data set in the folder `root`, without segmentations unless `masks`; what opens it."""
    generator = np.random.default_rng(3)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            # Ids that neither begin at 1 nor rise.
            image = {"id": 1000 - 7 * number, "file_name": f"{number}.{'png' if number % 2 else 'jpg'}"}
            pixels, objects = _scene(generator, number, list(categories.values()))
            Image.fromarray(pixels).save(root / split / image["file_name"])
            images.append({**image, "height": pixels.shape[0], "width": pixels.shape[1]})
            for name, box, crowd in objects:
                category = next(identifier for identifier, other in categories.items() if other == name)
                other = _crowd(box, pixels.shape[:2]) if crowd else {} if masks else {"segmentation": None}
                annotations.append(annotation(len(annotations) + 1, image["id"], category, box, **other))
        named = [{"id": identifier, "name": name} for identifier, name in categories.items()]
        content = {"images": images, "annotations": annotations, "categories": named}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return f"coco:{root}"


def quick_detector(**changes: object) -> DetectionRecipe:
    """A recipe that trains on `tiny_scenes` within seconds."""
    small = recipe("mask_rcnn_halonet_tiny")
    quick = replace(small, **TINY, image_px=64, epochs=2, batch=4, warmup_epochs=0.5, seed=7)
    return replace(quick, **changes)


def annotations_of(data: str, split: str) -> Path:
    """The annotation file of a split of what `tiny_scenes` made."""
    return Path(data.removeprefix("coco:")) / "annotations" / f"instances_{split}.json"


def change(data: str, split: str, **parts: Any) -> None:
    """Replace parts of an annotation file: annotations=, images=, categories=; each a function of what was there."""
    file = annotations_of(data, split)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {name: act(content[name]) for name, act in parts.items()}))


def _scene(
    generator: np.random.Generator, number: int, names: list[str]
) -> tuple[np.ndarray, list[tuple[str, list[float], bool]]]:
    """Pixels, and the name, box and whether it is a crowd of each object in them."""
    h, w = int(generator.integers(40, 50)), int(generator.integers(52, 65))
    if number % 3 == 2:
        h, w = w, h
    pixels = generator.normal(128, 20, (h, w, 3))
    objects = []
    for place in range(0 if number == EMPTY else 1 + number % 2):
        # One in the left half and one in the right.
        half = w // 2
        height, width = generator.integers(14, 30), generator.integers(10, half - 2)
        top, left = generator.integers(0, h - height), generator.integers(0, half - width) + place * half
        name = names[(number + place) % len(names)]
        pixels[top : top + height, left : left + width] = COLOURS.get(name, (220, 200, 60))
        objects.append((name, [float(value) for value in (left, top, width, height)], number == CROWDED))
    return np.clip(pixels + generator.normal(0, 9, pixels.shape), 0, 255).astype("uint8"), objects


def _crowd(box: list[float], size: tuple[int, ...]) -> dict[str, Any]:
    left, top, width, height = (int(value) for value in box)
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width : 2] = 1
    return {"iscrowd": 1, "segmentation": run_lengths(mask), "area": int(mask.sum())}
