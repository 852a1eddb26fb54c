import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parhelion.data.image_files import image_files
from parhelion.errors import UserError


@pytest.fixture
def album(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Path:
    """Images in two depths, hidden ones, and other files."""
    folder = tmp_path / "album"
    for name in ("img10.png", "img2.PNG", "a/3.jpg", "b10/1.webp", "b9/1.bmp", ".hidden/1.png", "a/._3.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).convert("RGB").save(folder / name)
    for name in ("a/notes.txt", "IMG_1.HEIC", "b9/IMG_2.heic", "README"):
        (folder / name).touch()
    return folder


def names(folder: Path, **options: object) -> list[str]:
    return [str(file.relative_to(folder)) for file in image_files([folder], **options).files]


def test_a_folder_means_all_images_below_it_in_natural_order(album: Path) -> None:
    assert names(album) == ["img2.PNG", "img10.png", "a/3.jpg", "b9/1.bmp", "b10/1.webp"]


def test_files_stand_as_they_are_given_whatever_their_ending(album: Path) -> None:
    given = [album / "b9/1.bmp", album / "a", album / "README", album / "b9/1.bmp"]
    assert image_files(given).files == (given[0], album / "a/3.jpg", *given[2:])


def test_other_files_are_counted_by_ending(album: Path) -> None:
    sentence = image_files([album]).left_out()
    counts = ".heic (2), no ending (1), .txt (1)"
    assert sentence.startswith(f"left out: 4 files whose ending is not that of an image: {counts} (")
    assert image_files([album / "a"]).left_out() == ("left out: 1 file whose ending is not that of an image: .txt (1)")
    assert image_files([album / "a/3.jpg"]).left_out() is None


def test_links_that_lead_back_are_followed_once(album: Path) -> None:
    (album / "a/up").symlink_to("..")
    (album / "b9/again").symlink_to(album / "b10")
    assert sorted(Path(name).name for name in names(album)) == ["1.bmp", "1.webp", "3.jpg", "img10.png", "img2.PNG"]


def test_a_folder_of_results_is_passed_over(album: Path) -> None:
    assert names(album, without=album / "b10") == ["img2.PNG", "img10.png", "a/3.jpg", "b9/1.bmp"]
    assert len(names(album, without=album / "not there yet")) == 5


def test_what_is_not_there_or_holds_no_image_is_named(album: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^there is no image {album}/img3\.png$"):
        image_files([album / "img10.png", album / "img3.png"])
    (tmp_path / "phone").mkdir()
    with pytest.raises(UserError, match=rf"^there are no images in {tmp_path}/phone; images are files that end in "):
        image_files([tmp_path / "phone"])
    (tmp_path / "phone/1.HEIC").touch()
    with pytest.raises(
        UserError,
        match=r"no images in .*/phone, but 1 file whose ending is not that of an image: \.heic \(1\)",
    ):
        image_files([tmp_path / "phone"])


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be read by root")
def test_a_folder_that_cannot_be_read_is_named(album: Path) -> None:
    (album / "a").chmod(0)
    try:
        with pytest.raises(UserError, match=rf"^cannot read the folder {album}/a: Permission denied"):
            image_files([album])
    finally:
        (album / "a").chmod(0o755)
