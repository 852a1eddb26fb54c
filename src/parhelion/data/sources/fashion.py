"""Fashion-MNIST (arXiv 1708.07747), MIT licence: 28 x 28 grey photographs of clothing in 10 classes.

The bundled part, for first runs and tests: 10,000 training and 2,000 test images, the first 1,000 and 200 of each class
in the original order. `scripts/make_bundled.py` writes the file.

The whole, 60,000 and 10,000 images: from Debian's package, a folder with its four files, or torchvision's download.
"""

import gzip
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from parhelion.data.images import as_mode
from parhelion.data.samples import Sample, Source, Split, opening_error
from parhelion.errors import UserError

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE_PX = 28
# Where Debian's package dataset-fashion-mnist puts the files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
# Where torchvision puts them, below the folder that it is told.
TORCHVISION = Path("FashionMNIST", "raw")
# The test images are what it is evaluated on.
NAMES: dict[Split, Literal["train", "test"]] = {"train": "train", "val": "test", "test": "test"}
PREFIXES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
FILES = tuple(f"{prefix}-{name}" for prefix in PREFIXES.values() for name in (IMAGES, LABELS))


class FashionImages(Dataset[Sample]):
    """Images in memory, as samples named `NAME/17`."""

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, in_chans: int) -> None:
        self.name, self.images, self.in_chans = name, images, in_chans
        self.targets: list[int] = labels.tolist()

    def class_numbers(self) -> list[int]:
        """The class number of every image."""
        return self.targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Sample:
        image = as_mode(Image.fromarray(self.images[index]), self.in_chans)
        return image, self.targets[index], f"{self.name}/{index}"


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


def open_bundled(*, in_chans: int, splits: Sequence[Split]) -> Source:
    """The bundled images, evaluated on the test images."""
    opened = {}
    for split in splits:
        images, labels, _ = bundled_images(NAMES[split])
        opened[split] = FashionImages(f"bundled:{NAMES[split]}", images, labels, in_chans)
    return Source("bundled", opened.get("train"), opened.get("val"), CLASS_NAMES, opened.get("test"))


def open_fashion(spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]) -> Source:
    """All of Fashion-MNIST, evaluated on the test images; raises UserError where files are missing or damaged.

    data_dir: a folder with the four files as Debian's package has them, or one that torchvision downloaded to;
        None: the folder of Debian's package.
    """
    folder = _folder(spec, data_dir, download)
    opened = {}
    for split in splits:
        images, labels = fashion_images(folder, PREFIXES[NAMES[split]])
        opened[split] = FashionImages(f"{spec}:{NAMES[split]}", images, labels, in_chans)
    return Source(spec, opened.get("train"), opened.get("val"), CLASS_NAMES, opened.get("test"))


def fashion_images(folder: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and class numbers (N,), both uint8 and read-only, of the two files in `folder`."""
    images, labels = (
        idx_values(_file(folder, name) or folder / f"{name}.gz", ndim)
        for name, ndim in ((f"{prefix}-{IMAGES}", 3), (f"{prefix}-{LABELS}", 1))
    )
    if images.shape != (len(labels), SIDE_PX, SIDE_PX):
        size = " x ".join(map(str, images.shape))
        raise UserError(
            f"{folder} holds {size} values in {prefix}-{IMAGES} and {len(labels)} in {prefix}-{LABELS}, but it should "
            f"hold as many images of {SIDE_PX} x {SIDE_PX} as class numbers"
        )
    if labels.size and labels.max() >= len(CLASS_NAMES):
        raise UserError(f"{folder}: {prefix}-{LABELS} holds the class number {labels.max()}, but 9 is the last")
    return images, labels


def idx_values(file: Path, ndim: int) -> np.ndarray:
    """The bytes of an IDX file, gzipped or not, as an array of `ndim` axes; raises UserError for a damaged one."""
    try:
        data = file.read_bytes()
        if file.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or f"it is damaged or cut short ({str(error).rstrip('.')})"
        raise UserError(f"cannot read {file}: {reason}") from error
    # The magic number: two zeros, 8 for unsigned bytes, the number of axes. Then the axes, then the values.
    start = 4 * (1 + ndim)
    if data[:4] != bytes([0, 0, 8, ndim]) or len(data) < start:
        raise UserError(f"{file} is not an IDX file of bytes along {ndim} axes; it begins with {data[:4].hex() or '-'}")
    shape = np.frombuffer(data, ">u4", count=ndim, offset=4).astype(np.int64)
    if len(data) - start != shape.prod():
        raise UserError(
            f"{file} is damaged: {shape.prod()} values should follow its header, but {len(data) - start} do"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _folder(spec: str, data_dir: Path | None, download: bool) -> Path:
    """The folder with the files, downloaded if that was asked for and they are not there."""
    if data_dir is None:
        if DEBIAN.is_dir():
            return DEBIAN
        raise UserError(
            f"'{spec}' needs the Debian package dataset-fashion-mnist in {DEBIAN}, or a data_dir: the folder where its "
            "files are or should be downloaded to"
        )
    places = (data_dir, data_dir / TORCHVISION)
    missing = [[name for name in FILES if _file(place, name) is None] for place in places]
    for place, names in zip(places, missing, strict=True):
        if not names:
            return place
    if download:
        return _downloaded(spec, data_dir)
    lacking = ", ".join(f"{name}.gz" for name in min(missing, key=len))
    raise UserError(f"'{spec}' is not whole in {data_dir} or its {TORCHVISION}: {lacking} missing; download fetches it")


def _downloaded(spec: str, data_dir: Path) -> Path:
    # Takes seconds, and only a download needs it.
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(data_dir), download=True)
    except (OSError, RuntimeError) as error:
        raise opening_error(spec, data_dir, error) from error
    return data_dir / TORCHVISION


def _file(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, unpacked or else gzipped."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
