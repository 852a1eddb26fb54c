import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from torch._utils import ExceptionWrapper

from parhelion.data import images
from parhelion.data.images import BadImage, as_mode, open_image
from parhelion.errors import UserError

H, W = 7, 13
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def stored(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP"])
@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (3, "RGB")])
def test_formats_are_read_in_the_asked_mode(kind: str, in_chans: int, mode: str) -> None:
    image = open_image(stored(Image.new("RGB", (W, H), RED), kind, lossless=True), in_chans)
    assert (image.mode, image.size) == (mode, (W, H))
    assert image.getpixel((W - 1, 0)) == (RED if in_chans == 3 else 76)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    image = Image.new("RGB", (2 * W, 2 * H), BLUE)
    image.paste(RED, (0, 0, W, 2 * H))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = open_image(stored(image, kind, exif=exif))
    assert upright.size == (2 * H, 2 * W)
    top, bottom = (upright.getpixel((H, row)) for row in (2, 2 * W - 3))
    assert top[0] > 240 > 15 > top[2]
    assert bottom[2] > 240 > 15 > bottom[0]


def test_a_meaningless_exif_block_does_not_hide_the_image() -> None:
    image = open_image(stored(Image.new("RGB", (W, H), GREEN), "PNG", exif=b"Exif\0\0nonsense, not TIFF"))
    assert (image.size, image.getpixel((3, 5))) == ((W, H), GREEN)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_full_transparency_shows_white(mode: str, in_chans: int) -> None:
    image = as_mode(Image.new(mode, (W, H)), in_chans)
    assert image.getpixel((W - 1, H - 1)) == (WHITE if in_chans == 3 else 255)


def test_half_transparency_mixes_with_white() -> None:
    image = open_image(stored(Image.new("RGBA", (W, H), (*RED, 102)), "PNG"))
    assert image.getpixel((0, 0)) == (255, 153, 153)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("P", 1), ("L", 1), ("RGB", (1, 1, 1)), ("I;16", 1)], ids=["P", "L", "RGB", "I;16"]
)
def test_a_transparent_colour_shows_white(mode: str, transparent: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (W, H))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.putpixel((2, 3), transparent)
    read = open_image(stored(image, "PNG", transparency=transparent), 1)
    assert read.getpixel((2, 3)) == 255
    assert read.getpixel((3, 2)) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.zeros((H, W), np.uint16)
    values[0, :4] = [257, 128 * 257, 65535, 40_000]
    image = open_image(stored(Image.fromarray(values), kind), 1)
    assert [image.getpixel((col, 0)) for col in range(5)] == [1, 128, 255, 156, 0]


def test_cmyk_jpeg_keeps_its_colour() -> None:
    red, green, blue = open_image(stored(Image.new("CMYK", (W, H), (0, 255, 255, 0)), "JPEG")).getpixel((5, 3))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (W, H), RED), Image.new("RGB", (W, H), BLUE)
    stream = stored(first, kind, save_all=True, append_images=[second], lossless=True)
    assert open_image(stream).getpixel((1, 2)) == RED


def test_a_truncated_jpeg_is_named(tmp_path: Path, broken: Callable[[Path], Path]) -> None:
    file = tmp_path / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 130), dtype=np.uint8)).save(file)
    with pytest.raises(BadImage, match=r"cannot read the image .*half\.jpg: .*truncated"):
        open_image(broken(file))


def test_files_that_are_no_images_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    reasons = {
        "note.png": "no image format",
        "empty.png": "it is empty",
        "absent.png": "No such file",
        ".": "directory",
    }
    for name, reason in reasons.items():
        with pytest.raises(BadImage, match=reason) as caught:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert isinstance(caught.value, UserError)


def test_an_image_without_an_agreed_white_is_refused() -> None:
    with pytest.raises(BadImage, match="floating point"):
        open_image(stored(Image.new("F", (W, H), 0.5), "TIFF"))
    image = Image.new("I", (W, H))
    image.putpixel((0, 0), 70_000)
    with pytest.raises(BadImage, match="from 0 to 70000, beyond 16 bits"):
        as_mode(image, 3)


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(UserError, match="in_chans is 4"):
        as_mode(Image.new("RGB", (W, H)), 4)


def test_the_sentence_survives_a_worker_process() -> None:
    sentence = "cannot read the image odd: name.png: it is empty: really"
    try:
        raise BadImage(sentence) from OSError("cause")
    except BadImage:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 1")
    with pytest.raises(BadImage) as caught:
        wrapped.reraise()
    assert str(caught.value) == sentence


def flat_png(h: int, w: int) -> io.BytesIO:
    """A black PNG with a bit for each pixel, made without the pixels."""
    rows = zlib.compress(bytes(h * (1 + -(-w // 8))), 1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", w, h, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    packed = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.slow
def test_an_image_beyond_pillows_limit_is_read() -> None:
    h, w = 12_000, 15_000
    assert h * w > 2 * (Image.MAX_IMAGE_PIXELS or 0)
    assert open_image(flat_png(h, w), 1).size == (w, h)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM"])
def test_pillows_limit_stays_for_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large = stored(Image.new("RGB", (3 * W, 5 * H), RED), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    size = open_image(large).size
    assert size == (3 * W, 5 * H)
    assert Image.MAX_IMAGE_PIXELS == 9
    large.seek(0)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(large)


def test_an_image_larger_than_the_memory_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_memory", lambda: 2**30)
    with pytest.raises(BadImage, match=r"it is 15000 x 12000 pixels, which take 1\.3 GiB to read, but .* has 1\.0 GiB"):
        open_image(flat_png(12_000, 15_000), 1)


def test_a_heif_image_gets_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = io.BytesIO(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(40))
    monkeypatch.setattr(images, "reads_heif", lambda: False)
    with pytest.raises(BadImage, match=r"it is a HEIF image, which .* JPEG or PNG, or .* pip install pillow-heif"):
        open_image(heif)


def test_a_heif_image_is_read_where_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("pillow_heif")
    installed.register_heif_opener = lambda: called.append(True)
    called: list[bool] = []
    monkeypatch.setitem(sys.modules, "pillow_heif", installed)
    monkeypatch.setattr(images, "reads_heif", lambda: True)
    # What is registered here reads nothing; that it is asked is what counts.
    with pytest.raises(BadImage, match="no image format"):
        open_image(io.BytesIO(struct.pack(">I", 24) + b"ftypheic" + bytes(40)))
    assert called
    assert images.endings()[-2:] == (".heic", ".heif")
