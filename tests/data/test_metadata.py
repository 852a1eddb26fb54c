"""Metadata never decides whether an image can be read; pixels do."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from parhelion.data.images import BadImage, as_mode, open_image
from parhelion.data.metadata import stripped

H, W = 14, 26
KINDS = [
    "JPEG",
    "PNG",
    "WEBP",
    "TIFF",
    pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF")),
]
MUTATIONS = 120


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Red above blue."""
    image = Image.new("RGB", (W, H), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, W, H // 2))
    return image


@pytest.fixture(scope="module")
def block() -> bytes:
    """An EXIF block of many types that turns the image by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Maker", 72.0
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9203: -1.5, 0x927C: b"maker note", 0x9286: b"ASCII\0\0\0hello"})
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 1.5)})
    return exif.tobytes()


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes, in_chans: int = 3) -> Image.Image:
    return open_image(io.BytesIO(data), in_chans)


def mutated(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """`data` with one to three wrong bytes between `start` and `end`, many times."""
    random = np.random.default_rng(2103)
    for _ in range(MUTATIONS):
        wrong = bytearray(data)
        for place in random.integers(start, end, int(random.integers(1, 4))):
            wrong[place] = int(random.integers(0, 256))
        yield bytes(wrong)


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def with_chunk(png: bytes, extra: bytes) -> bytes:
    """`png` with a chunk more after its header."""
    return png[:33] + extra + png[33:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_damaged_exif_blocks_leave_the_pixels(kind: str, picture: Image.Image, block: bytes) -> None:
    upright = 0
    for exif in mutated(block, 6, len(block)):
        try:
            data = stored(picture, kind, exif=exif)
        except (OSError, ValueError, TypeError, struct.error, SyntaxError):
            # The writer has to understand the block in some formats.
            continue
        image = read(data)
        assert image.size in ((W, H), (H, W))
        upright += image.size == (H, W)
    assert upright > MUTATIONS / 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not features.check("avif"), reason="no AVIF")
def test_damaged_exif_in_a_finished_avif_leaves_the_pixels(picture: Image.Image, block: bytes) -> None:
    data = stored(picture, "AVIF", exif=block)
    start = data.index(b"MM\0*")
    # The writer took the orientation out of the block.
    for wrong in mutated(data, start, start + len(block) - 20):
        assert read(wrong).size == (H, W)


def rational_of_the_wrong_sign() -> bytes:
    """EXIF whose resolution says it is unsigned, while the maker's number behind it is negative when written again."""
    entries = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16) + struct.pack(">HHIi", 0x9999, 4, 1, -1)
    entries += struct.pack(">HHII", 0x011A, 5, 1, 200)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 3) + entries + struct.pack(">I", 0) + b"\xff" * 400


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_written_again_still_turns_the_image(kind: str, picture: Image.Image) -> None:
    assert read(stored(picture, kind, exif=rational_of_the_wrong_sign())).size == (H, W)


def test_exif_text_that_is_not_hexadecimal_is_passed_over(picture: Image.Image) -> None:
    text = chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      12\nnot hexadecimal\n")
    assert read(with_chunk(stored(picture, "PNG"), text)).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"tEXt", b"Comment\0hello", crc=7),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0not compressed"),
        chunk(b"iCCP", b"profile\0\7what"),
        chunk(b"pHYs", b"\0"),
        chunk(b"gAMA", b""),
        chunk(b"cHRM", b"\0\0"),
        chunk(b"sRGB", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"eXIf", b"MM\0*", crc=9),
    ],
    ids=lambda extra: extra[4:8].decode(),
)
def test_damaged_chunks_beside_the_pixels_of_a_png_are_passed_over(damaged: bytes, picture: Image.Image) -> None:
    assert read(with_chunk(stored(picture, "PNG"), damaged)).tobytes() == picture.tobytes()


def test_the_orientation_counts_where_other_metadata_is_damaged(picture: Image.Image, block: bytes) -> None:
    data = with_chunk(stored(picture, "PNG", exif=block), chunk(b"tEXt", b"Comment\0hello", crc=7))
    assert read(data).size == (H, W)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "segment",
    [
        b"\xe0\x00\x04JF",
        b"\xe0\x00\x07JFIF\0",
        b"\xe2\x00\x10MPF\0MM\0*\0\0\0\x08\0\x09",
        b"\xe1\x00\x08Exif\0\0",
        b"\xe2\x00\x10ICC_PROFILE\0\1\0",
        b"\xed\x00\x14Photoshop 3.0\x008BIM",
        b"\xfe\x00\x02",
        b"\xee\x00\x07Adobe",
    ],
    ids=lambda segment: repr(segment[3:9]),
)
def test_damaged_segments_before_the_pixels_of_a_jpeg_are_passed_over(segment: bytes, picture: Image.Image) -> None:
    data = stored(picture, "JPEG")
    assert read(data[:2] + b"\xff" + segment + data[2:]).size == (W, H)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tag", [282, 305, 306, 700, 33432, 34665, 34675, 34853, 37724])
@pytest.mark.parametrize("kind", [2, 5, 10, 13, 99])
def test_damaged_tags_beside_the_pixels_of_a_tiff_are_passed_over(tag: int, kind: int, picture: Image.Image) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[305], tags[0x0112] = "software", 6
    data = bytearray(stored(picture, "TIFF", tiffinfo=tags, compression="tiff_lzw"))
    entry = data.index(struct.pack("<HH", 305, 2))
    data[entry : entry + 12] = struct.pack("<HHII", tag, kind, 1, len(data) - 3)
    assert read(bytes(data)).size == (H, W)


@pytest.mark.parametrize("kind", KINDS)
def test_without_metadata_pixels_are_the_same(kind: str, picture: Image.Image, block: bytes) -> None:
    icc = Image.open(io.BytesIO(stored(picture, kind))).info.get("icc_profile", b"profile" * 30)
    whole = stored(picture, kind, exif=block, xmp=b"<x:xmpmeta/>", icc_profile=icc)
    bare = stripped(whole)
    assert bare is not None
    assert b"Maker" not in bare.data or kind in ("TIFF", "AVIF")
    pixels = Image.open(io.BytesIO(bare.data))
    assert not {"exif", "icc_profile", "xmp"} & set(pixels.info) or kind == "AVIF"
    as_stored = Image.open(io.BytesIO(stored(picture, kind)))
    if kind not in ("TIFF", "AVIF"):
        assert pixels.tobytes() == as_stored.tobytes()
    assert read(bare.data).size == ((H, W) if kind in ("TIFF", "AVIF") else (W, H))


# Pillow cannot read the fourth combination.
@pytest.mark.parametrize(("big", "order"), [(False, "<"), (False, ">"), (True, "<")])
def test_a_tiff_of_either_byte_order_and_size_keeps_its_pixels(big: bool, order: str) -> None:
    grey = Image.fromarray(np.arange(H * W, dtype=np.uint16).reshape(H, W) * 150)
    if order == ">":
        grey = Image.fromarray(np.asarray(grey).astype(">u2"))
    tags = {305: "software", 0x0112: 8}
    data = stored(grey, "TIFF", tiffinfo=tags, big_tiff=big)
    assert data[:2] == (b"II" if order == "<" else b"MM")
    bare = stripped(data)
    assert bare is not None
    assert read(bare.data, 1).tobytes() == read(data, 1).tobytes()
    assert read(data, 1).size == (H, W)


def test_an_image_is_turned_once_only(picture: Image.Image, block: bytes) -> None:
    once = open_image(io.BytesIO(stored(picture, "JPEG", exif=block)))
    assert as_mode(once).size == once.size == (H, W)


def test_damaged_pixels_are_refused_all_the_same(picture: Image.Image, block: bytes) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8))
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        data = stored(noise, kind, exif=block)
        with pytest.raises(BadImage, match="cannot read the image"):
            read(data[: len(data) // 2])
    with pytest.raises(BadImage, match="no image format"):
        read(b"\x89PNG\r\n\x1a\n")
