"""Images are found however annotation files spell their names, and it is told where they were sought."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from data.annotated.coco_folders import (
    SIZES,
    H,
    W,
    annotation,
    content,
    opened,
    refused,
    train_content,
    write_coco,
    write_split,
)

OBJECTS = [annotation(1, 11, 3, [4, 2, 10, 12]), annotation(2, 8, 7, [2, 1, 9, 7])]
COMPOSED = unicodedata.normalize("NFC", "Tür.png")


def renamed(folder: Path, *, written: str, there: str) -> str:
    """A data set of which the file of image 8 is `there`, and `written` in the annotations; what opens it."""
    what = content(SIZES, OBJECTS)
    write_split(folder / "annotations/instances_train.json", folder / "train", what)
    target = folder / "train" / there
    target.parent.mkdir(exist_ok=True)
    (folder / "train/000000000008.png").rename(target)
    what["images"][2]["file_name"] = written
    write_split(folder / "annotations/instances_train.json", folder / "train", what, draw=False)
    return f"coco:{folder}"


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "train", "images/train", "images", "."])
def test_images_are_found_in_every_usual_place(tmp_path: Path, place: str) -> None:
    write_split(tmp_path / "annotations/instances_train2017.json", tmp_path / place, train_content())
    # Neither of these distracts: no image of the file is in them.
    (tmp_path / "train2017").mkdir(exist_ok=True)
    (tmp_path / "images").mkdir(exist_ok=True)
    image, _, path = opened(tmp_path, splits=("train",)).train[0]
    assert image.size == (W, H)
    assert Path(path) == tmp_path / place / "000000000011.png"


def test_images_in_folders_of_their_own_are_found(tmp_path: Path) -> None:
    what = train_content()
    for image in what["images"]:
        image["file_name"] = f"{image['id'] % 2}/{image['id']}.png"
    (tmp_path / "train/0").mkdir(parents=True)
    (tmp_path / "train/1").mkdir()
    write_split(tmp_path / "annotations/instances_train.json", tmp_path / "train", what)
    assert opened(tmp_path, splits=("train",)).train[2][0].size == (29, 13)


def test_images_that_are_nowhere_are_told_where_to_be(tmp_path: Path) -> None:
    write_split(tmp_path / "annotations/instances_train2017.json", tmp_path / "pictures", train_content())
    sentence = refused(tmp_path, splits=("train",))
    assert "none of the images in" in sentence
    assert f"should be in {tmp_path}/train2017, {tmp_path}/images/train2017, {tmp_path}/train, " in sentence


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("day 1\\a.png", "day 1/a.png"),
        ("day%201/b%C3%BC.png", "day 1/bü.png"),
        ("day%201\\c.png", "day 1/c.png"),
        (unicodedata.normalize("NFD", COMPOSED), COMPOSED),
        (COMPOSED, unicodedata.normalize("NFD", COMPOSED)),
    ],
)
def test_a_name_that_is_spelled_otherwise_on_disk_is_found_and_told(tmp_path: Path, written: str, there: str) -> None:
    images = opened(renamed(tmp_path, written=written, there=there), splits=("train",)).train
    image, _, path = images[2]
    assert (image.size, path) == ((29, 13), f"{tmp_path}/train/{there}")
    (note,) = images.report.notes()
    assert note.startswith(f"1 names of images in {images.file} are spelled otherwise than the files")
    assert note.endswith(f": {written}")


@pytest.mark.parametrize(
    "name", ["a%20b.png", "a\\b.png", COMPOSED, "50%.png", b"\xff.png".decode(errors="surrogateescape")]
)
def test_a_name_that_is_there_as_it_is_written_is_taken_so(tmp_path: Path, name: str) -> None:
    spec = renamed(tmp_path, written=name, there=name)
    # Nor does a file in the other spelling distract.
    shutil.copy(tmp_path / "train/000000000011.png", tmp_path / "train/a b.png")
    images = opened(spec, splits=("train",)).train
    assert images[2][0].size == (29, 13)
    assert images.ground_truth()["images"][2]["file_name"] == name
    assert images.report.notes() == ()


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    spec = renamed(tmp_path, written="\ud83d\x00.png", there="8.png")
    assert "images whose file is missing: 1" in refused(spec, splits=("train",))


def test_missing_files_are_named_with_the_folder_that_was_searched(tmp_path: Path) -> None:
    what = content(SIZES, OBJECTS)
    write_split(tmp_path / "annotations/instances_train.json", tmp_path / "images", what)
    for name in ("5", "8"):
        (tmp_path / f"images/00000000000{name}.png").unlink()
    sentence = refused(tmp_path, splits=("train",))
    assert "missing: 2 (000000000005.png, 000000000008.png, searched in" in sentence
    assert f"searched in '{tmp_path}/images'), but" in sentence
    images = opened(tmp_path, splits=("train",), on_bad_annotation="drop").train
    assert "left out of" in images.report.notes()[0]
    assert "(000000000005.png, 000000000008.png)" in images.report.notes()[0]


def lvis(what: dict[str, Any], *folders: str) -> dict[str, Any]:
    """`what` as LVIS writes it: addresses in place of names, in the folders of COCO's images; no crowds."""
    for image, folder in zip(what["images"], folders, strict=True):
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/{image.pop('file_name')}"
        image |= {"not_exhaustive_category_ids": [7], "neg_category_ids": [90]}
    for entry in what["annotations"]:
        entry.pop("iscrowd")
    return what


@pytest.mark.parametrize("folders", [("train2017", "val2017", "train2017"), ("train", "train", "train")])
def test_files_of_lvis_name_their_images_by_address(tmp_path: Path, folders: tuple[str, ...]) -> None:
    what = content(SIZES, [dict(entry) for entry in OBJECTS])
    for number, folder in enumerate(folders):
        part = {**what, "images": [what["images"][number]]}
        write_split(tmp_path / "annotations/instances_train.json", tmp_path / folder, part)
    # The address may name another folder than that in which the images lie.
    mixed = ("train2017", "val2017", "train2017")
    write_split(tmp_path / "annotations/instances_train.json", tmp_path, lvis(what, *mixed), draw=False)
    images = opened(tmp_path, splits=("train",)).train
    assert [images[number][0].size[::-1] for number in range(3)] == list(SIZES.values())
    assert images.labels.tolist() == [1, 2]
    (note,) = images.report.notes()
    assert "as LVIS does, which categories were not annotated" in note


def test_an_address_that_is_no_text_is_told(tmp_path: Path) -> None:
    what = content(SIZES, OBJECTS)
    del what["images"][1]["file_name"]
    what["images"][1]["coco_url"] = 7
    write_split(tmp_path / "annotations/instances_train.json", tmp_path / "train", what, draw=False)
    sentence = refused(tmp_path, splits=("train",))
    assert "images[1] in" in sentence
    assert "has the coco_url 7, but it should be a text" in sentence


def test_of_several_years_one_is_chosen_by_its_digits(tmp_path: Path) -> None:
    spec = write_coco(tmp_path)
    older = train_content()
    older["annotations"].pop()
    write_split(tmp_path / "annotations/instances_train2014.json", tmp_path / "train2014", older)
    sentence = refused(spec)
    assert "instances_train2014.json, annotations/instances_train2017.json, but there should be one" in sentence
    assert f"choose by the digits, as in coco:{tmp_path}:2017, or rename the others" in sentence
    source = opened(f"{spec}:2017")
    assert (source.train.file.name, source.val.file.name) == ("instances_train2017.json", "instances_val2017.json")
    images = opened(f"{spec}:2014", splits=("train",)).train
    assert (images.folder.name, len(images.annotation_ids)) == ("train2014", 3)
    assert "should hold annotations/instances_NAME2014.json" in refused(f"{spec}:2014", splits=("val",))
    assert "there is no data source" in refused(f"coco:{tmp_path}/absent:2017")


def test_a_folder_whose_name_ends_like_a_year_is_a_folder(tmp_path: Path) -> None:
    assert len(opened(write_coco(tmp_path / "mine:2017")).train) == 3


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("coco:~/mine").val.folder == tmp_path / "mine/val2017"
