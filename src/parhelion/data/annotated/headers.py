"""Whether images have the size that their annotations say, by the headers of their files."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from PIL import Image

from parhelion.data.images import DECODING_ERRORS, BadImage, open_image, opened
from parhelion.data.metadata import ORIENTATION
from parhelion.data.samples import few
from parhelion.errors import UserError

if TYPE_CHECKING:
    from parhelion.data.annotated.coco import CocoImages

# With these rows become columns.
TURNED = (5, 6, 7, 8)
# Reading headers is mostly waiting, above all where the folder is on another machine.
THREADS = 16

Kind: TypeAlias = Literal["stored", "upright", "size", "unreadable"]
IN_WORDS: dict[Kind, str] = {
    "stored": "are turned upright by their EXIF orientation, but annotated with their size as stored (--exif stored "
    "takes images as they are stored)",
    "upright": "are taken as stored, but annotated with their upright size (--exif upright turns them)",
    "size": "have another size than their annotations say",
    "unreadable": "cannot be read",
}


class Header(NamedTuple):
    """What an image file says before its pixels."""

    size: tuple[int, int]
    """h, w as stored."""
    orientation: int
    """Of EXIF, 1 to 8; 1 is upright."""

    @property
    def upright(self) -> tuple[int, int]:
        """h, w when it is turned as its orientation says."""
        h, w = self.size
        return (w, h) if self.orientation in TURNED else (h, w)


class Misfit(NamedTuple):
    """An image that cannot be used, and why."""

    kind: Kind
    shown: str
    """The name of the file with what is wrong."""


def header(path: str) -> Header:
    """Size and orientation of an image file, whose pixels are not decoded; raises one of DECODING_ERRORS."""
    with open(path, "rb") as file, opened(file) as image:
        found = Header((image.height, image.width), _orientation(image))
        # Of TIFF Pillow tells the upright size.
        return Header(found.upright, found.orientation) if image.format == "TIFF" else found


def size_mismatch(path: str, found: tuple[int, int], said: tuple[int, int]) -> BadImage:
    """The sentence for an image of `found` (h, w) pixels whose annotations say `said`, and how EXIF explains it."""
    (h, w), (said_h, said_w) = found, said
    try:
        seen = header(path)
    except DECODING_ERRORS:
        seen = Header(found, 1)
    reason = ""
    if seen.orientation in TURNED and found == (said_w, said_h):
        reason = f" (EXIF orientation {seen.orientation}): they are of the image "
        reason += "as stored, see --exif stored" if found == seen.upright else "turned upright, see --exif upright"
    return BadImage(f"the image {path} is {w} x {h} pixels, but its annotations say {said_w} x {said_h}{reason}")


def misfits(images: "CocoImages", numbers: Iterable[int]) -> list[Misfit]:
    """Those of the images `numbers` whose file has no header, or another size than the annotations say.

    A header takes 0.05 to 0.2 ms on a local disk. Pixels are not decoded, so that an image may still be damaged.
    """
    chosen = list(numbers)
    Image.preinit()
    with ThreadPoolExecutor(THREADS) as threads:
        found = threads.map(lambda number: _misfit(images, number), chosen)
        return [misfit for misfit in found if misfit is not None]


def described(images: "CocoImages", found: Sequence[Misfit]) -> str:
    """One sentence for all misfits of one file."""
    parts = []
    for kind, words in IN_WORDS.items():
        shown = [misfit.shown for misfit in found if misfit.kind == kind]
        if shown:
            parts.append(f"{len(shown)} of its {len(images)} images {words}: {few(shown)}")
    return f"'{images.file}' does not fit its images: {'; '.join(parts)}"


def refuse_misfits(images: "CocoImages") -> None:
    """Raise UserError, one sentence for all, where headers show that images cannot be used."""
    if found := misfits(images, range(len(images))):
        raise UserError(described(images, found))


def _misfit(images: "CocoImages", number: int) -> Misfit | None:
    path, name = images.path(number), images.name(number)
    said = (int(images.sizes[number, 0]), int(images.sizes[number, 1]))
    try:
        seen = header(path)
    except DECODING_ERRORS:
        return _unreadable(path, name)
    if (seen.upright if images.exif == "upright" else seen.size) == said:
        return None
    if seen.orientation in TURNED and said in (seen.upright, seen.size):
        kind: Kind = "upright" if said == seen.upright else "stored"
        return Misfit(kind, f"{name} (orientation {seen.orientation})")
    (h, w), (said_h, said_w) = seen.size, said
    return Misfit("size", f"{name} ({w} x {h} for {said_w} x {said_h})")


def _unreadable(path: str, name: str) -> Misfit | None:
    try:
        open_image(path)
    except BadImage as bad:
        return Misfit("unreadable", f"{name} ({str(bad).partition(f'{path}: ')[2]})")
    return None


def _orientation(image: Image.Image) -> int:
    """What the EXIF block before the pixels says, 1 where there is none or it cannot be read."""
    if not image.info.get("exif") and image.format == "PNG":
        # Pillow would decode the pixels to look behind them.
        return 1
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DECODING_ERRORS:
        return 1
    return orientation if orientation in TURNED else 1
