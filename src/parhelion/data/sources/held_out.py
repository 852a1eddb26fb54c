"""A share of each class that is held out of training to validate on, for folders that are not split yet."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from parhelion.data.samples import Source
from parhelion.data.sources.class_folders import counted
from parhelion.data.sources.folders import FolderImages
from parhelion.errors import UserError

HELD_OUT = "held_out.json"
"""In a run's folder: which images it held out."""


def held_out(names: Sequence[tuple[str, int]], share: float) -> set[str]:
    """Which of the images `names`, each with the number of its class, are held out: `share` of every class, rounded.

    Of a class with two images or more at least one is held out and one is not; of a class with a single one none is.
    The choice follows from the names alone: it is the same for every seed of training, so that runs can be compared
    and continued, and adding images changes it little. Raises UserError where it cannot be made.
    """
    if not 0 < share < 1:
        raise UserError(f"val_share is {share:g}; it must be above 0 and below 1, such as 0.2")
    by_class = defaultdict(list)
    for name, number in names:
        by_class[number].append(name)
    chosen: set[str] = set()
    for members in by_class.values():
        count = min(max(1, int(share * len(members) + 0.5)), len(members) - 1)
        chosen.update(sorted(members, key=_rank)[:count])
    if not chosen:
        raise UserError("val_share needs a class with two images or more, of which one can be held out")
    return chosen


def split(images: FolderImages, share: float) -> tuple[FolderImages, FolderImages]:
    """`images` to train on, and those that are held out."""
    chosen = held_out([(images.relative(file), number) for file, number in images.files], share)
    return (
        images.where(lambda file: images.relative(file) not in chosen),
        images.where(lambda file: images.relative(file) in chosen),
    )


def record(images: FolderImages, share: float) -> dict[str, Any]:
    """What tells the held-out `images` from others later, ready for JSON: their names and lengths in bytes."""
    return {"share": share, "images": {images.relative(file): os.path.getsize(file) for file, _ in images.files}}


def of_run(source: Source, run: Path) -> Source:
    """`source`, without images that the run in the folder `run` was trained on.

    Where the run held out a share of a folder, and `source` holds some of those images, they are what is left. All
    images stay where there are none of them, as in a folder that the run knows nothing of.
    """
    images, file = source.val, run / HELD_OUT
    # Only a folder of class folders can be what was split.
    if not isinstance(images, FolderImages) or images.folder != Path(source.name) or not file.is_file():
        return source
    known = read(file)
    kept = images.where(lambda path: known.get(images.relative(path)) == os.path.getsize(path))
    if not kept.files:
        return source
    remarks = [f"left out: {counted(len(images) - len(kept), 'image')} that the run in {run} did not hold out"]
    if len(kept) < len(known):
        remarks.append(f"changed, or not there any more: {counted(len(known) - len(kept), 'image')} that it held out")
    return replace(source, val=kept, remarks=(*source.remarks, *remarks))


def read(file: Path) -> Mapping[str, int]:
    """The lengths by name of the images that a run held out. Raises UserError where `file` is damaged."""
    try:
        images = json.loads(file.read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error})") from error
    if not isinstance(images, dict):
        raise UserError(f"{file} is damaged (it lists no images)")
    return images


def check_same(images: FolderImages, file: Path) -> None:
    """Raise UserError where `images` are not those that the run whose `file` this is held out when it began."""
    before, now = set(read(file)), {images.relative(path) for path, _ in images.files}
    if before != now:
        raise UserError(
            f"the run held out {len(before)} images of {images.folder}, of which {len(before - now)} are not held out "
            "now, because files were added, removed or renamed; resume with the images it was begun with"
        )


def _rank(name: str) -> bytes:
    return hashlib.sha256(b"held out " + os.fsencode(name)).digest()
