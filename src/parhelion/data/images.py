"""One image file, whatever its format, as 8-bit RGB or grey."""

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from parhelion.data.metadata import TURNS_BACK, orientation, stripped, upright
from parhelion.errors import UserError

BinaryFile: TypeAlias = IO[bytes] | BytesIO
"""Checked while the program runs, a BytesIO is not taken for an IO[bytes]."""

Exif: TypeAlias = Literal["upright", "stored"]
"""Whether images are turned as their EXIF orientation says, or taken as they are stored."""

MODES = {1: "L", 3: "RGB"}
WHITE = 65535

ENDINGS = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What marks a file as an image, in any case."""

HEIF_ENDINGS = (".heic", ".heif")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_ADVICE = "convert such images to JPEG or PNG, or install what reads them: pip install pillow-heif"

# The second where warnings are errors.
BEYOND_LIMIT = (Image.DecompressionBombError, Image.DecompressionBombWarning)

# Pillow takes 4 bytes for a pixel in colour, and as many for the copy that is turned or in another mode.
BYTES_PER_PIXEL = 8

# What Pillow's decoders raise on damaged files.
DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


# Also a value: datasets hand it out in place of the image that it stands for.
class BadImage(UserError):  # noqa: N818
    """An image that cannot be used: one sentence that names the file, where it is known, and the reason."""

    def __init__(self, message: str) -> None:
        # A loader's worker process hands an error on as "Caught BadImage in ...", the traceback in that process,
        # and the sentence on the last line; what arrives should be the sentence.
        if message.startswith("Caught BadImage ") and "\n" in message:
            message = message.rstrip("\n").rpartition("\n")[2].partition(": ")[2]
        super().__init__(message)

    # torch raises an error with a `message` again without keeping it in a variable. Without that, the error, its
    # traceback and the loader would keep each other alive, and ending each worker would take 5 seconds.
    @property
    def message(self) -> str:
        """The sentence."""
        return str(self)


def open_image(
    file: str | Path | BinaryFile, in_chans: int = 3, *, name: str | None = None, exif: Exif = "upright"
) -> Image.Image:
    """The image in `file`, fully decoded: mode RGB for `in_chans` 3, L (grey) for 1.

    Any format that Pillow reads, and HEIF where pillow-heif is installed; the first frame of an animation; upright
    (EXIF orientation applied) or as stored. Damaged metadata is passed over, damaged pixels are not. Pillow's limit of
    179 million pixels does not hold here; the memory of the machine does. See `as_mode` for what becomes of
    transparency, 16-bit grey and CMYK. `name` is what an error calls the file (default: its path). Raises BadImage.
    """
    if isinstance(file, str | Path):
        name = name or str(file)
        try:
            with open(file, "rb") as stream:
                return open_image(stream, in_chans, name=name, exif=exif)
        except OSError as error:
            raise _bad(name, error) from error
    check_channels(in_chans)
    name = name or _file_name(file)
    try:
        return _read(file, in_chans, exif)
    except DECODING_ERRORS as error:
        # Damaged metadata does not make an image unreadable.
        image = _without_metadata(file, in_chans, exif)
        if image is None:
            raise _bad(name, error) from error
        return image


def try_open_image(
    file: str | Path | BinaryFile, in_chans: int = 3, *, name: str | None = None, exif: Exif = "upright"
) -> "Image.Image | BadImage":
    """What `open_image` returns, or the BadImage that it raises, to be passed on as data."""
    try:
        return open_image(file, in_chans, name=name, exif=exif)
    except BadImage as bad:
        # A traceback would keep the file's bytes alive.
        return bad.with_traceback(None)


def _read(file: BinaryFile, in_chans: int, exif: Exif, exif_block: bytes | None = None) -> Image.Image:
    """The image in `file`; its EXIF block, where that is not in the file. Raises whatever Pillow does."""
    with opened(file) as image:
        if exif_block is not None:
            image.info["exif"] = exif_block
        return _in_mode(image, in_chans, exif)


def _without_metadata(file: BinaryFile, in_chans: int, exif: Exif) -> Image.Image | None:
    """The image in `file`, read without its metadata; None where that does not help."""
    try:
        file.seek(0)
        bare = stripped(file.read())
        return None if bare is None else _read(BytesIO(bare.data), in_chans, exif, bare.exif)
    except DECODING_ERRORS:
        return None


def as_mode(image: Image.Image, in_chans: int = 3, *, name: str | None = None, exif: Exif = "upright") -> Image.Image:
    """`image` in mode RGB (`in_chans` 3) or L (`in_chans` 1), upright (EXIF orientation applied) or as stored.

    Transparent pixels show white. 16-bit grey is scaled to 8 bits, not clipped; the integer mode "I" is taken as
    16-bit, as Pillow writes it. Raises BadImage, which names `name`, when the pixels cannot be decoded or have no
    agreed white (floating point, integers beyond 16 bits).
    """
    check_channels(in_chans)
    try:
        return _in_mode(image, in_chans, exif)
    except DECODING_ERRORS as error:
        raise _bad(name, error) from error


def check_channels(in_chans: int) -> None:
    """Raise UserError where images cannot be read with so many channels."""
    if in_chans not in MODES:
        raise UserError(f"in_chans is {in_chans}, but images are read with 3 channels (RGB) or 1 (grey)")


def _in_mode(image: Image.Image, in_chans: int, exif: Exif) -> Image.Image:
    """`image` as `as_mode` returns it; whatever Pillow raises, and ValueError with the reason."""
    if 0 in image.size:
        raise ValueError(f"it is {image.width} x {image.height} pixels")
    # Pillow turns a TIFF while it loads it.
    turned = orientation(image) if exif == "stored" and image.format == "TIFF" else 1
    _load(image)
    if exif == "upright":
        image = upright(image)
    elif turned in TURNS_BACK:
        image = image.transpose(TURNS_BACK[turned])
    if image.mode == "F":
        raise ValueError("its values are floating point, with no agreed white; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = _over_white(image)
    if image.mode == "LAB":
        # Pillow knows no direct way from LAB to grey.
        image = image.convert("RGB")
    return image if image.mode == MODES[in_chans] else image.convert(MODES[in_chans])


def opened(file: BinaryFile) -> Image.Image:
    """`file` as Pillow opens it, whatever its size, without its pixels yet. Raises one of DECODING_ERRORS."""
    try:
        return Image.open(file)
    except BEYOND_LIMIT:
        file.seek(0)
        with _any_size():
            image = Image.open(file)
        _check_memory(image.size)
        return image
    except UnidentifiedImageError:
        file.seek(0)
        beginning = file.read(12)
        if beginning[4:8] != b"ftyp" or beginning[8:] not in HEIF_BRANDS:
            raise
        if not reads_heif():
            raise ValueError(f"it is a HEIF image, which Pillow cannot read alone; {HEIF_ADVICE}") from None
        import_module("pillow_heif").register_heif_opener()
        file.seek(0)
        return Image.open(file)


def _load(image: Image.Image) -> None:
    """Decode the pixels of `image`, whatever its size; some formats compare it with Pillow's limit here, too."""
    try:
        image.load()
    except BEYOND_LIMIT:
        with _any_size():
            image.load()


_limit = threading.Lock()


@contextmanager
def _any_size() -> Iterator[None]:
    """Let Pillow read images of any size in this block.

    Pillow refuses them because a stranger's file could fill the memory. Here the user has named the files. Its limit
    is a variable of its module, so it is lifted for as short as possible, and never by two threads at once.
    """
    with _limit:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_memory(size: tuple[int, int]) -> None:
    needed, memory = size[0] * size[1] * BYTES_PER_PIXEL, _memory()
    if memory is not None and needed > memory:
        raise ValueError(
            f"it is {size[0]} x {size[1]} pixels, which take {needed / 2**30:.1f} GiB to read, but this machine has "
            f"{memory / 2**30:.1f} GiB; scale it down"
        )


def _memory() -> int | None:
    """The memory of this machine in bytes; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def reads_heif() -> bool:
    """Whether HEIF images can be read: the package pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def endings() -> tuple[str, ...]:
    """What marks a file in a folder as an image, in any case: `ENDINGS`, and those of HEIF where it can be read."""
    return ENDINGS + HEIF_ENDINGS if reads_heif() else ENDINGS


def _eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image (modes I;16 and I) with 0..65535 scaled to 0..255; its transparent grey becomes white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > WHITE:
        raise ValueError(
            f"its values run from {values.min()} to {values.max()}, beyond 16 bits; save it with 8 or 16 bits"
        )
    if isinstance(image.info.get("transparency"), int):
        values[values == image.info["transparency"]] = WHITE
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    # Pillow leads from La (premultiplied) to RGBA by way of LA only.
    layers = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _file_name(file: BinaryFile) -> str | None:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else None


def _bad(name: str | None, error: Exception) -> BadImage:
    """The sentence for `error`: on one line, because a worker process hands on the last line only."""
    if isinstance(error, UnidentifiedImageError):
        reason = "it is empty or in no image format that Pillow reads"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return BadImage(" ".join(f"cannot read the image {name or '(no file name)'}: {reason}".splitlines()))
