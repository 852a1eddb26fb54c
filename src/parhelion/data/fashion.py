"""The bundled images: a part of Fashion-MNIST (arXiv 1708.07747), MIT licence, for first runs and tests.

10,000 training and 2,000 test images, 28 x 28 grey, 10 classes in equal parts: the first 1,000 and 200 of each class
in the original order. `scripts/make_bundled.py` writes the file.
"""

from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from parhelion.data.images import as_mode
from parhelion.data.samples import Sample


def bundled_images(split: Literal["train", "test"]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images (N, 28, 28) uint8, 0 is black; class numbers (N,) int64; the class names. The arrays are read-only."""
    arrays = _arrays()
    return arrays[f"{split}_images"], arrays[f"{split}_labels"], tuple(arrays["class_names"].tolist())


@cache
def _arrays() -> dict[str, np.ndarray]:
    file = files("parhelion.data") / "bundled" / "fashion_mnist.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


class BundledImages(Dataset[Sample]):
    """The bundled images of one split as samples named `bundled:test/17`."""

    def __init__(self, split: Literal["train", "test"], in_chans: int) -> None:
        self.split, self.in_chans = split, in_chans
        self.images, labels, self.class_names = bundled_images(split)
        self.targets: list[int] = labels.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = as_mode(Image.fromarray(self.images[index]), self.in_chans)
        return image, self.targets[index], f"bundled:{self.split}/{index}"
