"""Small images on disk, none of them square."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

H, W = 7, 13


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """Noise, 7 rows and 13 columns, that differs from seed to seed."""
    return lambda seed: Image.fromarray(np.random.default_rng(seed).integers(0, 256, (H, W, 3), dtype=np.uint8))


@pytest.fixture
def pets(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Path:
    """train/ with 3 cats and 4 dogs, val/ with 1 cat and 2 dogs."""
    for split, counts in {"train": {"cat": 3, "dog": 4}, "val": {"cat": 1, "dog": 2}}.items():
        for name, count in counts.items():
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture(number).save(folder / f"{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def broken() -> Callable[[Path], Path]:
    """Cuts the end off a file."""

    def cut(file: Path) -> Path:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return file

    return cut
