"""Write the bundled images, src/parhelion/data/bundled/fashion_mnist.npz, from the original Fashion-MNIST files.

    apt-get install dataset-fashion-mnist
    python scripts/make_bundled.py [FOLDER]

Keeps the first 1,000 training and 200 test images of each class in the original order; the same input gives the same
bytes.
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from parhelion.cli import exit_code
from parhelion.data.sources.fashion import CLASS_NAMES, DEBIAN, fashion_images
from parhelion.errors import UserError

OUTPUT = Path(__file__).parents[1] / "src" / "parhelion" / "data" / "bundled" / "fashion_mnist.npz"


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices, rising, of the first `count` of each class."""
    kept = np.concatenate([np.flatnonzero(labels == number)[:count] for number in range(len(CLASS_NAMES))])
    if kept.size != count * len(CLASS_NAMES):
        raise UserError(f"{kept.size} images found, but {count} of each of {len(CLASS_NAMES)} classes are needed")
    return np.sort(kept)


def split(folder: Path, prefix: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The kept images (N, 28, 28) uint8 and labels (N,) int64 of one split."""
    images, labels = fashion_images(folder, prefix)
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
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN, help=f"the four files (default {DEBIAN})")
    folder = parser.parse_args().folder
    train_images, train_labels = split(folder, "train", 1_000)
    test_images, test_labels = split(folder, "t10k", 200)
    arrays = {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
        "class_names": np.array(CLASS_NAMES),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    save(OUTPUT, arrays)
    print(f"{OUTPUT}: {len(train_labels)} + {len(test_labels)} images, {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(exit_code(main))
