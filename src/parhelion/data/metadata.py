"""What an image file holds besides its pixels: which way up it is, and the file without the rest.

Metadata is written by cameras and edited by programs that know a part of it, so it is often damaged where the pixels
are in order. It never decides here whether an image can be read.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation: what turns the stored pixels upright."""
TURNS_BACK = {**TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
"""By EXIF orientation: what turns the upright image as it is stored."""

# Where Pillow keeps what may tell the orientation.
SOURCES = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# TIFF tags that say how pixels are stored, the orientation among them.
PIXEL_TAGS = {
    *(254, 256, 257, 258, 259, 262, 266, 273, ORIENTATION, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532),
}


def upright(image: Image.Image) -> Image.Image:
    """A copy of `image`, turned as its EXIF or XMP orientation says; as it is stored where that cannot be read."""
    turn = TURNS.get(orientation(image))
    if turn is None:
        return image.copy()
    turned = image.transpose(turn)
    for key in SOURCES:
        # Else whoever reads the orientation again would turn the image again.
        turned.info.pop(key, None)
    return turned


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of `image`, 1 to 8; 1, which is upright, where none can be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    # Whatever Pillow runs into: the block can be any bytes.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


@dataclass(frozen=True)
class Stripped:
    """An image file with little more than its pixels, and its EXIF block where it has one apart."""

    data: bytes
    exif: bytes | None = None


def stripped(data: bytes) -> Stripped | None:
    """The image file `data` without metadata; None where there is none, or it is in another format.

    JPEG, PNG, WebP, TIFF and AVIF. What is damaged besides stays as it is.
    """
    if data.startswith(JPEG):
        bare = _jpeg(data)
    elif data.startswith(PNG):
        bare = _png(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        bare = _webp(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        bare = Stripped(_tiff(data))
    elif data[4:8] == b"ftyp":
        bare = Stripped(_avif(data))
    else:
        return None
    return None if bare.data == data else bare


def _jpeg(data: bytes) -> Stripped:
    """Without application segments and comments, but for two that say what the channels mean."""
    kept, exif, at = [data[:2]], None, 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"", b"\xda"):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        says_channels = segment[4:9] in (b"JFIF\0", b"Adobe") and marker in (0xE0, 0xEE) and length >= 14
        if not is_metadata or says_channels:
            kept.append(segment)
        at += 2 + length
    return Stripped(b"".join(kept) + data[at:], exif)


def _png(data: bytes) -> Stripped:
    """Without chunks that a reader may leave out, but for transparency."""
    kept, exif = [data[:8]], None
    for kind, start, end in _png_chunks(data):
        if kind == b"eXIf":
            exif = b"Exif\0\0" + data[start + 8 : end - 4]
        # The case of the first letter tells what a reader must know.
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(data[start:end])
    return Stripped(b"".join(kept), exif)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at, end
        at = end


def _webp(data: bytes) -> Stripped:
    kept, exif, at = [], None, 12
    while at < len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        chunk = data[at : at + 8 + length + length % 2]
        if kind == b"EXIF":
            exif = chunk[8 : 8 + length]
        elif kind == b"VP8X":
            # Bits that announce a colour profile, EXIF and XMP.
            kept.append(chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:])
        elif kind not in (b"ICCP", b"XMP "):
            kept.append(chunk)
        at += len(chunk)
    body = b"WEBP" + b"".join(kept)
    return Stripped(b"RIFF" + len(body).to_bytes(4, "little") + body, exif)


def _tiff(data: bytes) -> bytes:
    """With another directory at the end, which lists only the tags that pixels need."""
    order, big = "<" if data[:2] == b"II" else ">", b"+" in data[2:4]
    # Where the place of the directory stands; then formats of its place, its number of entries, and their length.
    header, place, number, length = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    try:
        (directory,) = struct.unpack_from(order + place, data, header)
        (count,) = struct.unpack_from(order + number, data, directory)
    except struct.error:
        return data
    first = directory + struct.calcsize(number)
    entries = [data[at : at + length] for at in range(first, min(first + count * length, len(data)), length)]
    needed = [entry for entry in entries if struct.unpack_from(order + "H", entry.ljust(2, b"\0"))[0] in PIXEL_TAGS]
    if len(needed) == count:
        return data
    # A directory begins at an even place.
    padded = data + b"\0" * (len(data) % 2)
    start = padded[:header] + struct.pack(order + place, len(padded)) + padded[header + struct.calcsize(place) :]
    return start + struct.pack(order + number, len(needed)) + b"".join(needed) + struct.pack(order + place, 0)


def _avif(data: bytes) -> bytes:
    """With EXIF, XMP and colour profile under names that no reader knows; lengths and places stay."""
    nameless = re.sub(rb"(infe.{4}(?:.{4}|.{6}))(?:Exif|mime)", rb"\1skip", data, flags=re.DOTALL)
    return re.sub(rb"colr(?=prof|rICC)", b"skip", nameless)
