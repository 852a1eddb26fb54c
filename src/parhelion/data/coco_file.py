"""What stands in a COCO annotation file, checked entry by entry."""

import json
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from parhelion.data.annotations import Annotation, Checks, Unusable, is_side
from parhelion.data.samples import few
from parhelion.errors import UserError

REQUIRED: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
IN_WORDS = {int: "a whole number", str: "a text"}
LARGEST_ID = 2**63 - 1

IMAGE_TWICE = "images whose id comes twice"
IMAGE_SIZE = "images without a positive width and height"
IMAGE_FILE = "images whose file is missing"
TWICE = "annotations whose id comes twice"


def content(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The JSON of `file`, in which every entry has the keys that it must have; raises UserError."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the annotations in '{file}': {error}") from error
    for part, keys in REQUIRED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"'{file}' has no list of {part}, but it should be a COCO file with {', '.join(REQUIRED)}")
        if not entries and part != "annotations":
            raise UserError(f"'{file}' has no {part}, but there should be at least one")
        for number, entry in enumerate(entries):
            _require_keys(entry, keys, f"{part}[{number}] in '{file}'")
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


def usable_images(entries: list[dict[str, Any]], folder: Path, dropped: dict[str, list[int]]) -> list[dict[str, Any]]:
    twice, listed = _twice(entries), set(os.listdir(folder))
    usable = []
    for entry in entries:
        if entry["id"] in twice:
            problem = IMAGE_TWICE
        elif not (is_side(entry.get("height")) and is_side(entry.get("width"))):
            problem = IMAGE_SIZE
        # A listing, because asking for each file takes minutes where the folder is on another machine.
        elif entry["file_name"] not in listed and not os.path.isfile(folder / entry["file_name"]):
            problem = IMAGE_FILE
        else:
            usable.append(entry)
            continue
        dropped.setdefault(problem, []).append(entry["id"])
    return usable


def usable_annotations(
    entries: list[dict[str, Any]], checks: Checks, dropped: dict[str, list[int]]
) -> list[Annotation]:
    """In the order of the images."""
    seen: set[int] = set()
    usable = []
    for entry in entries:
        try:
            if entry["id"] in seen:
                raise Unusable(TWICE)
            seen.add(entry["id"])
            usable.append(checks.usable(entry))
        except Unusable as problem:
            dropped.setdefault(str(problem), []).append(entry["id"])
    return sorted(usable, key=attrgetter("image"))
