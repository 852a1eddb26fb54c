"""What images are, however they are spelled: where a source lies, and a digest that moves along with its files."""

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from torch.utils.data import Dataset

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.sources import FASHION, NAMED
from parhelion.data.sources.folders import FolderImages
from parhelion.data.sources.shards import Shards

COCO, BUNDLED = "coco", "bundled"
# Of so many files, evenly spread, the size is part of a digest: enough to notice that all images were scaled, and
# nothing for a file system that must be asked for each.
SIZES = 1000


def absolute(spec: str, folder: Path) -> str:
    """The source `spec`, spelled in `folder`, as it can be opened from any folder."""
    return _with_path(spec, folder, os.path.abspath)


def place(spec: str, folder: Path) -> str:
    """The source `spec`, spelled in `folder`, in the one way that all spellings of it have in common."""
    return _with_path(spec, folder, os.path.realpath)


def path_of(spec: str) -> Path | None:
    """The folder that `spec` names, where it names one rather than a data set."""
    kind, colon, path = spec.partition(":")
    if colon and kind == COCO:
        return Path(path)
    kind, slash, _ = spec.partition("/")
    return None if spec in (BUNDLED, FASHION) or (slash and kind in NAMED) else Path(spec)


def _with_path(spec: str, folder: Path, act: Callable[[Path], str]) -> str:
    path = path_of(spec)
    if path is None:
        # hfds/ also reads folders; what else follows a kind is a name.
        kind, _, name = spec.partition("/")
        local = folder / Path(name).expanduser()
        return f"{kind}/{act(local)}" if kind == "hfds" and local.is_dir() else spec
    whole = act(folder / path.expanduser())
    return f"{COCO}:{whole}" if spec.startswith(f"{COCO}:") else whole


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
