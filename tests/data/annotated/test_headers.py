"""Headers tell, before the first pixel is read, which images have another size than their annotations say."""

from pathlib import Path

import pytest
from data.annotated.coco_folders import opened, write_coco
from PIL import Image

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.annotated.headers import described, misfits, refuse_misfits
from parhelion.data.images import BadImage, Exif, open_image
from parhelion.data.metadata import ORIENTATION
from parhelion.errors import UserError

PHOTO = "train2017/000000000008.png"


def turned(folder: Path, *, stored: tuple[int, int], orientation: int = 6, format: str = "JPEG") -> str:
    """A data set whose image 8 is annotated with 13 x 29 (h, w), and stored otherwise, or turned; what opens it."""
    spec = write_coco(folder)
    h, w = stored
    pixels = Image.linear_gradient("L").resize((w, h))
    pixels.getexif()[ORIENTATION] = orientation
    pixels.save(folder / PHOTO, format, exif=pixels.getexif())
    return spec


def training(spec: str, exif: Exif = "upright") -> CocoImages:
    images = opened(spec, splits=("train",), exif=exif).train
    assert images is not None
    return images


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_photos_annotated_as_stored_are_listed_with_their_tag_and_taken_so_on_demand(
    tmp_path: Path, format: str
) -> None:
    spec = turned(tmp_path, stored=(13, 29), format=format)
    images = training(spec)
    with pytest.raises(UserError) as caught:
        refuse_misfits(images)
    assert str(caught.value) == (
        f"'{images.file}' does not fit its images: 1 of its 3 images are turned upright by their EXIF orientation, but "
        "annotated with their size as stored (--exif stored takes images as they are stored): "
        "000000000008.png (orientation 6)"
    )
    bad = images[2][0]
    assert isinstance(bad, BadImage)
    assert str(bad) == (
        f"the image {tmp_path / PHOTO} is 13 x 29 pixels, but its annotations say 29 x 13 (EXIF orientation 6): they "
        "are of the image as stored, see --exif stored"
    )
    stored = training(spec, "stored")
    refuse_misfits(stored)
    image, instances, _ = stored[2]
    assert image.size == (29, 13)
    # The gradient of the file: dark above, not to the right.
    assert image.getpixel((14, 0))[0] < 30 < 200 < image.getpixel((14, 12))[0]
    assert instances.boxes.tolist() == [[2, 1, 24.5, 12]]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_as_stored_is_the_same_whatever_its_orientation(tmp_path: Path, format: str, orientation: int) -> None:
    gradient = Image.linear_gradient("L").resize((29, 13))
    for number in (1, orientation):
        gradient.getexif()[ORIENTATION] = number
        gradient.save(tmp_path / f"{number}", format, exif=gradient.getexif())
    plain, turned = (open_image(tmp_path / f"{number}", 1, exif="stored") for number in (1, orientation))
    assert turned.size == (29, 13)
    assert turned.tobytes() == plain.tobytes()


def test_upright_annotations_are_refused_where_photos_are_taken_as_stored(tmp_path: Path) -> None:
    spec = turned(tmp_path, stored=(29, 13), orientation=8)
    refuse_misfits(training(spec))
    stored = training(spec, "stored")
    with pytest.raises(UserError, match=r"annotated with their upright size \(--exif upright turns them\): .*tation 8"):
        refuse_misfits(stored)
    assert "turned upright, see --exif upright" in str(stored[2][0])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_image_of_another_size_is_listed_with_both(tmp_path: Path, orientation: int) -> None:
    images = training(turned(tmp_path, stored=(17, 31), orientation=orientation))
    (misfit,) = misfits(images, range(3))
    assert misfit == ("size", "000000000008.png (31 x 17 for 29 x 13)")
    assert "EXIF" not in str(images[2][0])
    assert misfits(images, [0, 1]) == []


def test_all_misfits_come_in_one_sentence(tmp_path: Path) -> None:
    images = training(turned(tmp_path, stored=(13, 29)))
    (tmp_path / "train2017/000000000005.png").write_bytes(b"not an image")
    Image.new("L", (9, 7)).save(tmp_path / "train2017/000000000011.png")
    sentence = described(images, misfits(images, range(3)))
    assert "000000000008.png (orientation 6); 1 of its 3 images have another size" in sentence
    assert "000000000011.png (9 x 7 for 37 x 23); 1 of its 3 images cannot be read: " in sentence
    assert sentence.endswith("000000000005.png (it is empty or in no image format that Pillow reads)")


def test_damaged_metadata_is_no_reason_to_refuse(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    for exif in (b"Exif\x00\x00nonsense", b"x"):
        Image.new("RGB", (29, 13)).save(tmp_path / PHOTO, "JPEG", exif=exif)
        assert misfits(training(spec), range(3)) == []


def test_another_way_to_read_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exif is 'ignored', but it should be 'upright' or 'stored'"):
        opened(write_coco(tmp_path), exif="ignored")
