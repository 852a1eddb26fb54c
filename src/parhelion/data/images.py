"""One image file, whatever its format, as 8-bit RGB or grey."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from parhelion.errors import UserError

BinaryFile: TypeAlias = IO[bytes] | BytesIO
"""Checked while the program runs, a BytesIO is not taken for an IO[bytes]."""

Exif: TypeAlias = Literal["upright", "stored"]
"""Whether photos are turned as their EXIF orientation says, or taken as their pixels are stored."""

ORIENTATION = 0x0112
TURNS_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By EXIF's orientation, from the upright image to the stored one; for TIFF, which Pillow turns when it is loaded."""

MODES = {1: "L", 3: "RGB"}
WHITE = 65535

ENDINGS = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What marks a file as an image, in any case."""

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

    Any format that Pillow reads; the first frame of an animation; upright (EXIF orientation applied) or as stored.
    See `as_mode` for what becomes of transparency, 16-bit grey and CMYK. `name` is what an error calls the file
    (default: its path). Raises BadImage.
    """
    if isinstance(file, str | Path):
        name = name or str(file)
        try:
            with open(file, "rb") as stream:
                return open_image(stream, in_chans, name=name, exif=exif)
        except OSError as error:
            raise _bad(name, error) from error
    name = name or _file_name(file)
    try:
        with Image.open(file) as image:
            return as_mode(image, in_chans, name=name, exif=exif)
    except BadImage:
        raise
    except DECODING_ERRORS as error:
        raise _bad(name, error) from error


def as_mode(image: Image.Image, in_chans: int = 3, *, name: str | None = None, exif: Exif = "upright") -> Image.Image:
    """`image` in mode RGB (`in_chans` 3) or L (`in_chans` 1), upright (EXIF orientation applied) or as stored.

    Transparent pixels show white. 16-bit grey is scaled to 8 bits, not clipped; the integer mode "I" is taken as
    16-bit, as Pillow writes it. Raises BadImage, which names `name`, when the pixels cannot be decoded or have no
    agreed white (floating point, integers beyond 16 bits).
    """
    if in_chans not in MODES:
        raise UserError(f"in_chans is {in_chans}, but images are read with 3 channels (RGB) or 1 (grey)")
    try:
        if 0 in image.size:
            raise ValueError(f"it is {image.width} x {image.height} pixels")
        image = _upright(image) if exif == "upright" else _as_stored(image)
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
    except UserError:
        raise
    except DECODING_ERRORS as error:
        raise _bad(name, error) from error


def _as_stored(image: Image.Image) -> Image.Image:
    orientation = image.getexif().get(ORIENTATION, 1) if image.format == "TIFF" else 1
    image.load()
    return image.transpose(TURNS_BACK[orientation]) if orientation in TURNS_BACK else image


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except SyntaxError:
        # The EXIF block is not one, so that it says nothing about the orientation; the pixels are in order.
        return image


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
