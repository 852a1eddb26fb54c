"""Image files as a user names them: one by one, or by the folder that holds them."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from parhelion.data.images import endings
from parhelion.data.sources.class_folders import Found, natural_order
from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Image files, and the other files of the folders by ending, in lower case."""

    files: tuple[Path, ...]
    others: Counter[str]

    def left_out(self) -> str | None:
        """A sentence about the files that are no images by their ending; None where there are none."""
        clauses = Found(others=self.others).left_out()
        return f"left out: {', '.join(clauses)}" if clauses else None


def image_files(paths: Sequence[Path], *, without: Path | None = None) -> ImageFiles:
    """The files among `paths` as they are, and the images below its folders: no hidden ones, in natural order.

    Each real folder is visited once, whatever links lead to it.

    without: A folder that is passed over.

    Raises UserError for a path that is not there, a folder without images, and one that cannot be read.
    """
    files, image_endings = list[Path](), endings()
    others: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"there is no image {path}")
            files.append(path)
            continue
        inside = list(_inside(path, without))
        images = [file for file in inside if file.suffix.lower() in image_endings]
        there = Counter(file.suffix.lower() for file in inside if file.suffix.lower() not in image_endings)
        if not images:
            held = f", but {', '.join(Found(others=there).left_out())}" if there else ""
            wanted = " ".join(image_endings)
            raise UserError(f"there are no images in {path}{held}; images are files that end in {wanted}")
        files += images
        others += there
    return ImageFiles(files=tuple(files), others=others)


def _inside(folder: Path, without: Path | None) -> Iterator[Path]:
    """The files below `folder`, in natural order."""

    def in_order(names: list[str]) -> list[str]:
        return sorted((name for name in names if not name.startswith(".")), key=natural_order)

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    seen = {without.resolve()} if without is not None else set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = in_order(folders)
        yield from (Path(place, name) for name in in_order(names))
