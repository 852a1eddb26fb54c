"""Where the images of a COCO annotation file lie, also where their names are spelled otherwise than on disk."""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from parhelion.data.samples import few
from parhelion.errors import UserError

BESIDE_THE_IMAGES = "_annotations.coco.json"


def written_name(entry: Mapping[str, Any]) -> str:
    """The name that an entry of `images` gives its file; LVIS gives an address only, whose last part it is."""
    return str(entry["file_name"] if "file_name" in entry else urlsplit(entry["coco_url"]).path.rpartition("/")[2])


def spellings(entry: Mapping[str, Any]) -> Iterator[str]:
    """The paths at which the image of `entry` may lie in the folder of images, the most literal first.

    As it is written; with / for the \\ of Windows; with the %20 of addresses decoded; with accents composed and
    decomposed, as file systems differ. LVIS mixes COCO's folders of 2017, so that the folder in its address counts.
    """
    name = written_name(entry)
    if "file_name" not in entry:
        folder = urlsplit(entry["coco_url"]).path.split("/")[-2:-1]
        yield "/".join([*folder, name])
    yield name
    tried = {name}
    slashes = name.replace("\\", "/")
    for other in (slashes, unquote(slashes)):
        for form in (other, unicodedata.normalize("NFC", other), unicodedata.normalize("NFD", other)):
            if form not in tried:
                tried.add(form)
                yield form


def images_folder(file: Path, folder: Path, subsets: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Path:
    """The first folder in which one of the images of `file` lies; raises UserError.

    folder: that of the data set. subsets: what the folder of these images may be called.
    """
    if file.name == BESIDE_THE_IMAGES:
        places = [file.parent]
    else:
        places = [folder / above / subset for subset in dict.fromkeys(subsets) for above in ("", "images")]
        places += [folder / "images", folder]
    for entry in entries:
        for name in spellings(entry):
            for place in places:
                if os.path.isfile(place / name):
                    return place
    names = few([written_name(entry) for entry in entries])
    raise UserError(f"none of the images in '{file}' is there: {names} should be in {few(places, len(places))}")


class ImageFiles:
    """The files in one folder of images."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # A listing, because asking for each file takes minutes where the folder is on another machine.
        self._listed = set(os.listdir(folder))

    def path_of(self, entry: Mapping[str, Any]) -> str | None:
        """The path in the folder of the image of `entry`; None where it is not there in any spelling."""
        return next((name for name in spellings(entry) if self._has(name)), None)

    def _has(self, name: str) -> bool:
        return name in self._listed or os.path.isfile(self._folder / name)
