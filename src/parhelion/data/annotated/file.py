"""What stands in a COCO annotation file, checked entry by entry."""

import json
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from parhelion.data.annotated.annotations import Annotation, Checks, Unusable, is_side
from parhelion.data.annotated.paths import ImageFiles, written_name
from parhelion.data.samples import few
from parhelion.errors import UserError

REQUIRED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
# LVIS gives addresses in place of names.
REQUIRED_OF_LVIS_IMAGES = {"id": int, "coco_url": str}
IN_WORDS = {int: "a whole number of at most 64 bits", str: "a text"}
LARGEST_ID = 2**63 - 1

IMAGE_TWICE = "images whose id comes twice"
IMAGE_SIZE = "images without a positive width and height"
IMAGE_FILE = "images whose file is missing"


class ListedImage(NamedTuple):
    """An image that a file lists and that is there."""

    identifier: int
    path: str
    """Below the folder of images, as it is spelled on disk."""
    respelled: str | None
    """How the file spells it, where that is otherwise."""
    size: tuple[int, int]
    """h, w as the file says."""


def content(file: Path, *, annotated: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The JSON of `file`, in which every entry has the keys that it must have; raises UserError.

    annotated: Whether the file must have annotations; where it has none, the list of them is empty.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the annotations in '{file}': {error}") from error
    if not annotated and isinstance(content, dict):
        content.setdefault("annotations", [])
    for part, keys in REQUIRED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"'{file}' has no list of {part}, but it should be a COCO file with {', '.join(REQUIRED)}")
        if not entries and part != "annotations":
            raise UserError(f"'{file}' has no {part}, but there should be at least one")
        for number, entry in enumerate(entries):
            is_lvis = part == "images" and isinstance(entry, dict) and "file_name" not in entry and "coco_url" in entry
            _require_keys(entry, REQUIRED_OF_LVIS_IMAGES if is_lvis else keys, f"{part}[{number}] in '{file}'")
    if twice := _twice(content["categories"]):
        raise UserError(f"the categories in '{file}' should have ids of their own, but some share {few(sorted(twice))}")
    return content


def _require_keys(entry: Any, keys: Mapping[str, type], where: str) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {reprlib.repr(entry)}, but it should be an object with {', '.join(keys)}")
    for key, kind in keys.items():
        value = entry.get(key)
        if type(value) is not kind or (isinstance(value, int) and abs(value) > LARGEST_ID):
            found = f"has the {key} {reprlib.repr(value)}, but it" if key in entry else f"lacks the {key}, which"
            raise UserError(f"{where} {found} should be {IN_WORDS[kind]}")


def _twice(entries: Iterable[dict[str, Any]]) -> set[int]:
    return {identifier for identifier, count in Counter(entry["id"] for entry in entries).items() if count > 1}


def usable_images(
    entries: list[dict[str, Any]], files: ImageFiles, dropped: dict[str, list[int | str]]
) -> list[ListedImage]:
    """The images that can be used; the others come under the kind of their problem into `dropped`, by id or name."""
    twice = _twice(entries)
    usable = []
    for entry in entries:
        if entry["id"] in twice:
            dropped.setdefault(IMAGE_TWICE, []).append(entry["id"])
        elif not (is_side(entry.get("height")) and is_side(entry.get("width"))):
            dropped.setdefault(IMAGE_SIZE, []).append(entry["id"])
        elif (path := files.path_of(entry)) is None:
            dropped.setdefault(IMAGE_FILE, []).append(written_name(entry))
        else:
            name = entry.get("file_name", path)
            size = int(entry["height"]), int(entry["width"])
            usable.append(ListedImage(entry["id"], path, name if name != path else None, size))
    return usable


def usable_annotations(
    entries: list[dict[str, Any]], checks: Checks, dropped: dict[str, list[int | str]]
) -> list[Annotation]:
    """The annotations that can be used, in the order of the images; the ids of others come into `dropped`."""
    usable = []
    for entry in entries:
        try:
            usable.append(checks.usable(entry))
        except Unusable as problem:
            dropped.setdefault(str(problem), []).append(entry["id"])
    return sorted(usable, key=attrgetter("image"))
