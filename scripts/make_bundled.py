"""Write the bundled images, src/parhelion/data/bundled/fashion_mnist.npz, from the original Fashion-MNIST files.

    apt-get install dataset-fashion-mnist
    python scripts/make_bundled.py [FOLDER]

Keeps the first 1,000 training and 200 test images of each class in the original order; the same input gives the same
bytes.
"""

import argparse
import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
OUTPUT = Path(__file__).parents[1] / "src" / "parhelion" / "data" / "bundled" / "fashion_mnist.npz"
CLASSES = (
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
IMAGES_MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801


def values(file: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """The bytes of an IDX file as `shape`, after checking the magic number, the counts and the length."""
    data = gzip.decompress(file.read_bytes())
    header = np.frombuffer(data, ">u4", count=1 + len(shape)).tolist()
    if header != [magic, *shape]:
        sys.exit(f"{file}: the header is {header}, but it should be {[magic, *shape]}")
    body = np.frombuffer(data, np.uint8, offset=4 * len(header))
    if body.size != np.prod(shape):
        sys.exit(f"{file}: {body.size} values follow the header, but {np.prod(shape)} should")
    return body.reshape(shape)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, rising, of the first `count` of each class."""
    kept = np.concatenate([np.flatnonzero(labels == number)[:count] for number in range(len(CLASSES))])
    if kept.size != count * len(CLASSES):
        sys.exit(f"{kept.size} images found, but {count} of each of {len(CLASSES)} classes are needed")
    return np.sort(kept)


def split(folder: Path, prefix: str, total: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The kept images (N, 28, 28) uint8 and labels (N,) int64 of one split."""
    images = values(folder / f"{prefix}-images-idx3-ubyte.gz", IMAGES_MAGIC, (total, 28, 28))
    labels = values(folder / f"{prefix}-labels-idx1-ubyte.gz", LABELS_MAGIC, (total,))
    kept = first_of_each_class(labels, per_class)
    return images[kept], labels[kept].astype(np.int64)


def save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz that numpy reads without pickle; dates are fixed, so that the bytes repeat."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), stream.getvalue(), zipfile.ZIP_DEFLATED, 9)


def main() -> None:
    """Read the folder named on the command line and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"the four files (default {FOLDER})")
    folder = parser.parse_args().folder
    train_images, train_labels = split(folder, "train", 60_000, 1_000)
    test_images, test_labels = split(folder, "t10k", 10_000, 200)
    arrays = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "class_names": np.array(CLASSES),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    save(OUTPUT, arrays)
    print(f"{OUTPUT}: {len(train_labels)} + {len(test_labels)} images, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
