"""Small folders of images to train on in a second: noisy rectangles, one colour per class."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from parhelion.recipes.classification_recipe import ClassificationRecipe
from parhelion.recipes.small import small_images

COLOURS = {"blue": (40, 60, 200), "green": (40, 160, 60), "red": (200, 40, 40)}
TRAIN, VAL = 11, 5


def colour_folders(root: Path, *, colours: dict[str, tuple[int, int, int]] = COLOURS) -> Path:
    """`root` with train/ and val/ of a folder per colour; PNG and JPEG of many sizes."""
    generator = np.random.default_rng(3)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for name, colour in colours.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                h, w = generator.integers(17, 40, 2)
                noise = generator.normal(0, 50, (h, w, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root


def quick_recipe(**changes: object) -> ClassificationRecipe:
    """A recipe that trains on `colour_folders` within seconds."""
    quick = replace(small_images("resnet_tiny"), image_px=16, epochs=2, batch=10, warmup_epochs=0.5, seed=7)
    return replace(quick, **changes)


def truncate(image: Path) -> None:
    """Cut `image` short, as a broken download does."""
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
