"""The files below class folders: which are images, of which class, and what is left out."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parhelion.data.images import HEIF_ADVICE, HEIF_ENDINGS, endings
from parhelion.data.samples import few
from parhelion.errors import UserError


@dataclass
class Found:
    """What lies below the class folders of one split."""

    files: list[tuple[str, int]] = field(default_factory=list)
    """The images, each with the number of its class."""
    others: Counter[str] = field(default_factory=Counter)
    """How many files are no images by their ending, by ending in lower case."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are read elsewhere, which are not followed."""
    beside: int = 0
    """Images beside the class folders, which have no class."""

    def left_out(self) -> list[str]:
        """A clause about each kind of what is left out, with its count."""
        clauses = []
        if self.others:
            counts = ", ".join(f"{ending or 'no ending'} ({count})" for ending, count in self.others.most_common())
            advice = f" (.heic: {HEIF_ADVICE})" if any(self.others[ending] for ending in HEIF_ENDINGS) else ""
            clauses.append(
                f"{counted(self.others.total(), 'file')} whose ending is not that of an image: {counts}{advice}"
            )
        if self.beside:
            clauses.append(f"{counted(self.beside, 'image')} beside the class folders")
        if self.links:
            links = counted(len(self.links), "link")
            clauses.append(f"{links} not followed, because the folder is read elsewhere: {few(self.links)}")
        return clauses


def find_images(folder: Path, class_names: Sequence[str]) -> Found:
    """What lies below the folders `class_names` of `folder`: images by class, each class in natural order.

    Hidden files and folders do not count. Links to folders are followed, but each real folder is read once: a link
    to where images have a class of their own, or to where it lies itself, is not followed. Raises UserError where one
    folder would belong to two classes, or cannot be read.
    """
    found, image_endings = Found(), endings()
    real, owners = os.path.realpath(folder), dict[str, tuple[int, str]]()
    for number, name in enumerate(class_names):
        images = []
        for place, files in _places(os.path.join(folder, name), number, real, owners, found.links):
            for file in files:
                ending = os.path.splitext(file)[1].lower()
                if ending in image_endings:
                    images.append(os.path.join(place, file))
                else:
                    found.others[ending] += 1
        found.files += [(file, number) for file in sorted(images, key=natural_order)]
    found.beside = sum(
        child.suffix.lower() in image_endings and child.is_file() and not child.name.startswith(".")
        for child in folder.iterdir()
    )
    return found


def natural_order(name: str) -> tuple[list[int | str], str]:
    """What to sort by so that img2 comes before img10, whatever the case of letters."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name.lower()))], name


def counted(count: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _places(
    top: str, number: int, split: str, owners: dict[str, tuple[int, str]], links: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """The folders below `top`, itself included, each with its files.

    number: Of the class that they belong to.
    split: The real path of the folder that holds all class folders.
    owners: By real path, the class of each folder that was read and how it was reached; grows.
    links: Those that are not followed; grows.
    """
    for place, folders, files in os.walk(top, followlinks=True, onerror=_refuse):
        real = os.path.realpath(place)
        owner, first = owners.setdefault(real, (number, place))
        if owner != number:
            raise UserError(
                f"'{first}' and '{place}' are the same folder, but would be of two classes; remove one of the links"
            )
        if first != place:
            links.append(place)
            folders.clear()
            continue
        shown = [name for name in folders if not _hidden(name)]
        back = [name for name in shown if _leads_back(os.path.join(place, name), split)]
        links += [os.path.join(place, name) for name in back]
        folders[:] = [name for name in shown if name not in back]
        yield place, [file for file in files if not _hidden(file)]


def _leads_back(folder: str, split: str) -> bool:
    """Whether `folder` is a link into the folder `split`, or to one that holds it."""
    if not os.path.islink(folder):
        return False
    real = Path(os.path.realpath(folder))
    return real.is_relative_to(split) or Path(split).is_relative_to(real)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot read the folder '{error.filename}': {error.strerror}") from error


def _hidden(name: str) -> bool:
    return name.startswith(".")
