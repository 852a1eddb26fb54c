"""Small folders of images to train on in a second: noisy rectangles, one colour per class."""

import io
import json
import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from parhelion.classification.recipe import ClassificationRecipe
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


def colour_shards(images: Path, folder: Path, **lengths: tuple[int, ...]) -> Path:
    """`folder` with shards for `wds/`, made of the PNGs of `images`; `lengths`: of the shards of each split."""
    folder.mkdir()
    splits = {}
    for split, counts in lengths.items():
        files = iter(sorted((images / split).rglob("*.png")))
        names = [f"{split}-{number}.tar" for number in range(len(counts))]
        for name, count in zip(names, counts, strict=True):
            with tarfile.open(folder / name, "w") as tar:
                for number, file in enumerate(islice(files, count)):
                    label = str(list(COLOURS).index(file.parent.name)).encode()
                    for ending, data in (("png", file.read_bytes()), ("cls", label)):
                        member = tarfile.TarInfo(f"{number}.{ending}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
        splits[split] = {"filenames": names, "shard_lengths": counts}
    (folder / "_info.json").write_text(json.dumps({"class_names": list(COLOURS), "splits": splits}))
    return folder


def quick_recipe(**changes: object) -> ClassificationRecipe:
    """A recipe that trains on `colour_folders` within seconds."""
    quick = replace(small_images("resnet_tiny"), image_px=16, epochs=2, batch=10, warmup_epochs=0.5, seed=7)
    return replace(quick, **changes)


def truncate(image: Path) -> None:
    """Cut `image` short, as a broken download does."""
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
