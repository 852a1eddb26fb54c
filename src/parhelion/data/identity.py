"""What images are, wherever they lie: a digest that moves along with their files."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from torch.utils.data import Dataset

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.sources.folders import FolderImages
from parhelion.data.sources.shards import Shards

# Of so many files, evenly spread, the size is part of a digest: enough to notice that all images were scaled, and
# nothing for a file system that must be asked for each.
SIZES = 1000


def digest(images: Dataset) -> str | None:
    """Tells the images of one split from others by their files' names, in the split's folder, and sizes.

    No image is opened. Images of COCO have the size that their annotations say. None for images without files of
    their own: those of a named data set are what the name says.
    """
    if isinstance(images, FolderImages):
        files = sorted(file for file, _ in images.files)
        spread = set(files[:: -(-len(files) // SIZES) or 1])
        return _digest((os.path.relpath(file, images.folder), _bytes(file) if file in spread else 0) for file in files)
    if isinstance(images, Shards):
        return _digest((shard.file.name, shard.samples, _bytes(shard.file)) for shard in images.shards)
    if isinstance(images, CocoImages):
        sizes = images.sizes.tolist()
        return _digest((images.file_names[number].decode(), *sizes[number]) for number in range(len(images)))
    return None


def _digest(entries: Iterable[tuple[object, ...]]) -> str:
    total = hashlib.sha256()
    for entry in entries:
        # Names need not be Unicode.
        total.update(repr(entry).encode(errors="backslashreplace"))
    return total.hexdigest()


def _bytes(file: str | Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        # Gone since it was listed, or a link to nowhere: what reads it will say so.
        return -1
