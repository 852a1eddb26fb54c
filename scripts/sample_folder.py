"""Write a small folder of class folders with mixed PNGs and JPEGs, some turned by EXIF, to try the commands on.

python scripts/sample_folder.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from parhelion.data.sources.fashion import bundled_images

CLASSES = {"boots": 9, "dresses": 3, "trousers": 1}
ORIENTATION, TURN_CLOCKWISE = 0x0112, 6
COUNTS = {"train": 16, "val": 6}


def main(folder: Path) -> None:
    """Fill `folder`/train and /val with bundled photographs, enlarged to sizes that differ."""
    for split, count in COUNTS.items():
        images, labels, _ = bundled_images("train" if split == "train" else "test")
        for name, label in CLASSES.items():
            (folder / split / name).mkdir(parents=True)
            for number, pixels in enumerate(images[np.asarray(labels) == label][:count]):
                image = Image.fromarray(pixels).resize((40 + 3 * number, 61 - 2 * number))
                ending, mode = ("png", "RGBA") if number % 2 else ("jpg", "L" if number % 4 else "RGB")
                exif = Image.Exif()
                if number % 6 == 4:
                    # Stored on its side, with the tag that tells viewers to turn it back.
                    image, exif[ORIENTATION] = image.transpose(Image.Transpose.ROTATE_90), TURN_CLOCKWISE
                image.convert(mode).save(folder / split / name / f"{number}.{ending}", exif=exif)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/sample_folder.py FOLDER")
    main(Path(sys.argv[1]))
