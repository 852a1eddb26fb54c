import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parhelion.data.images import BadImage
from parhelion.data.sources import open_source
from parhelion.data.sources.class_folders import natural_order
from parhelion.errors import UserError

Picture = Callable[[int], Image.Image]


def refused(spec: str | Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(dataset: object, folder: Path) -> list[str]:
    return [str(Path(dataset[index][2]).relative_to(folder)) for index in range(len(dataset))]


def test_a_folder_gives_images_with_their_class_and_path(pets: Path, picture: Picture) -> None:
    source = open_source(str(pets))
    assert source.class_names == ("cat", "dog")
    assert names(source.val, pets) == ["val/cat/0.png", "val/dog/0.png", "val/dog/1.png"]
    image, target, _ = source.val[2]
    assert (image.mode, image.size, target) == ("RGB", (13, 7), 1)
    assert image.tobytes() == picture(1).tobytes()
    assert open_source(str(pets), in_chans=1).train[0][0].mode == "L"


def test_classes_and_files_are_in_natural_order(tmp_path: Path, picture: Picture) -> None:
    for name in ("10", "9", "B", "a"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in (11, 2):
            picture(0).save(tmp_path / "train" / name / f"{number}.png")
    source = open_source(str(tmp_path), splits=("train",))
    assert source.class_names == ("9", "10", "a", "B")
    assert names(source.train, tmp_path)[:3] == ["train/9/2.png", "train/9/11.png", "train/10/2.png"]


@pytest.mark.parametrize("present", [("val", "validation"), ("validation", "test"), ("valid", "test"), ("test",)])
def test_evaluation_images_are_taken_from_the_preferred_name(pets: Path, present: tuple[str, ...]) -> None:
    (pets / "val").rename(pets / "spare")
    for name in present:
        shutil.copytree(pets / "spare", pets / name)
    assert names(open_source(str(pets)).val, pets)[0] == f"{present[0]}/cat/0.png"


def test_class_folders_alone_will_do_for_evaluation(pets: Path) -> None:
    source = open_source(str(pets / "val"), splits=("val",))
    assert (len(source.val), source.train, source.class_names) == (3, None, ("cat", "dog"))
    assert "has no train/ inside; it holds cat/, dog/" in refused(pets / "val")


def test_the_test_split_is_the_folder_of_that_name(pets: Path) -> None:
    assert "has no test/ inside; it holds train/, val/" in refused(pets, splits=("test",))
    shutil.copytree(pets / "val", pets / "test")
    source = open_source(str(pets), splits=("test",))
    assert names(source.images("test"), pets) == ["test/cat/0.png", "test/dog/0.png", "test/dog/1.png"]
    assert (source.train, source.val, source.class_names) == (None, None, ("cat", "dog"))
    # Where there is no other, it is also what is evaluated while training.
    shutil.rmtree(pets / "val")
    both = open_source(str(pets), splits=("val", "test"))
    assert names(both.val, pets) == names(both.test, pets)


def test_only_the_asked_splits_must_exist(pets: Path) -> None:
    shutil.rmtree(pets / "val")
    assert len(open_source(str(pets), splits=("train",)).train) == 7
    for splits in (("train", "val"), ("val",)):
        sentence = refused(pets, splits=splits)
        assert "no evaluation images: it holds train/, but should hold one of val/, validation/" in sentence


def test_endings_count_in_any_case_and_other_files_do_not(pets: Path, picture: Picture) -> None:
    picture(0).save(pets / "val/cat/LOUD.JPG")
    picture(0).save(pets / "val/cat/web.webp")
    (pets / "val/cat/notes.txt").touch()
    (pets / "val/readme.png").touch()
    found = names(open_source(str(pets)).val, pets / "val")
    assert found[:3] == ["cat/0.png", "cat/LOUD.JPG", "cat/web.webp"]
    assert len(open_source(str(pets)).val) == 5


def test_nested_images_belong_to_the_class_folder_at_the_top(pets: Path, picture: Picture) -> None:
    (pets / "train/cat/2020/may").mkdir(parents=True)
    picture(8).save(pets / "train/cat/2020/may/deep.png")
    source = open_source(str(pets))
    assert source.class_names == ("cat", "dog")
    assert [source.train[index][1] for index in range(len(source.train))] == [0] * 4 + [1] * 4


def test_hidden_files_and_folders_do_not_count(pets: Path, picture: Picture) -> None:
    for hidden in (".cache", "cat/.ipynb_checkpoints"):
        (pets / "train" / hidden).mkdir()
        picture(0).save(pets / "train" / hidden / "copy.png")
    (pets / "train/dog/._0.png").touch()
    source = open_source(str(pets))
    assert (source.class_names, len(source.train)) == (("cat", "dog"), 7)


def test_an_unreadable_image_comes_as_a_value_with_its_class(pets: Path, broken: Callable[[Path], Path]) -> None:
    file = broken(pets / "val/dog/0.png")
    image, target, name = open_source(str(pets)).val[1]
    assert isinstance(image, BadImage)
    assert str(file) in str(image)
    assert (target, name) == (1, str(file))


def test_a_class_without_images_is_named(pets: Path) -> None:
    for split in ("train", "val"):
        (pets / split / "eel").mkdir()
        (pets / split / "eel/picture.heic").touch()
    sentence = refused(pets)
    assert "1 class folder without images in" in sentence
    assert "train': eel; images are files that end in .avif" in sentence


def test_an_evaluation_class_may_be_empty(pets: Path) -> None:
    (pets / "val/cat/0.png").unlink()
    source = open_source(str(pets))
    assert source.class_names == ("cat", "dog")
    assert [source.val[index][1] for index in range(2)] == [1, 1]


def test_different_class_folders_are_all_named(pets: Path, picture: Picture) -> None:
    (pets / "val/cat").rename(pets / "val/kat")
    for number in range(7):
        (pets / "train" / f"extra{number}").mkdir()
        picture(0).save(pets / "train" / f"extra{number}" / "0.png")
    sentence = refused(pets)
    lacking = "cat, extra0, extra1, extra2, extra3, extra4, extra5, extra6"
    assert f"'{pets / 'val'}' lacks 8 of the 9 class folders of '{pets / 'train'}': {lacking} (where" in sentence
    assert f"'{pets / 'val'}' holds class folders that '{pets / 'train'}' does not have: kat" in sentence


def test_an_empty_folder_is_enough_for_a_class_without_evaluation_images(pets: Path) -> None:
    shutil.rmtree(pets / "val/cat")
    assert "lacks 1 of the 2 class folders" in (sentence := refused(pets))
    assert "cat (where a class has no images, an empty folder is enough)" in sentence
    (pets / "val/cat").mkdir()
    source = open_source(str(pets))
    assert (source.class_names, len(source.val)) == (("cat", "dog"), 2)
    assert f"; no images of cat in '{pets / 'val'}'" in source.line()


def test_folders_laid_out_otherwise_are_described(tmp_path: Path, pets: Path, picture: Picture) -> None:
    (tmp_path / "void").mkdir()
    assert "has no train/ inside; it holds nothing" in refused(tmp_path / "void")
    assert "holds nothing, but it should hold a folder per class" in refused(tmp_path / "void", splits=("val",))
    (tmp_path / "flat/train").mkdir(parents=True)
    picture(0).save(tmp_path / "flat/train/0.png")
    assert "holds 0.png, but it should hold a folder per class" in refused(tmp_path / "flat")
    for file in (pets / "val").rglob("*.png"):
        file.unlink()
    assert "no images in" in refused(pets)


def test_what_is_no_source_is_told_what_one_is(tmp_path: Path) -> None:
    (tmp_path / "file.zip").touch()
    assert "is a file, but it should be a folder" in refused(tmp_path / "file.zip")
    sentence = refused(tmp_path / "absent")
    assert f"there is no data source '{tmp_path / 'absent'}': it should be an existing folder with train/" in sentence
    assert "torch/NAME, hfds/NAME, wds/NAME, tfds/NAME" in sentence
    assert "did you mean bundled" in refused("bundeld")
    assert "there is no data source ''" in refused("")
    assert "in_chans is 2" in refused("bundled", in_chans=2)


# links


def test_a_link_that_leads_back_is_not_followed(pets: Path) -> None:
    for number, target in enumerate(("..", "../..", "../dog", ".", "/")):
        (pets / f"train/cat/back{number}").symlink_to(target, target_is_directory=True)
    (pets / "train/dog/year").mkdir()
    (pets / "train/dog/year/up").symlink_to("..", target_is_directory=True)
    source = open_source(str(pets))
    assert [source.train[index][1] for index in range(len(source.train))] == [0] * 3 + [1] * 4
    assert "6 links not followed, because the folder is read elsewhere" in source.line()
    assert f"{pets / 'train/cat/back0'}" in source.line()


def test_folders_elsewhere_are_read_once(pets: Path, tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "pool/deep").mkdir(parents=True)
    picture(9).save(tmp_path / "pool/deep/9.png")
    (tmp_path / "pool/deep/loop").symlink_to("..", target_is_directory=True)
    for link in ("pool", "same", "part"):
        target = tmp_path / ("pool/deep" if link == "part" else "pool")
        (pets / f"train/cat/{link}").symlink_to(target, target_is_directory=True)
    (pets / "val/dog/1.png").unlink()
    (pets / "val/dog/1.png").symlink_to(pets / "train/dog/0.png")
    source = open_source(str(pets))
    assert sum(name.endswith("9.png") for name in names(source.train, pets)) == 1
    assert len(source.val) == 3
    (pets / "train/dog/pool").symlink_to(tmp_path / "pool", target_is_directory=True)
    sentence = refused(pets)
    assert "are the same folder, but would be of two classes; remove one of the links" in sentence
    assert str(pets / "train/dog/pool") in sentence


def test_a_class_that_is_a_link_to_another_class_is_refused(pets: Path) -> None:
    for split in ("train", "val"):
        (pets / split / "puppy").symlink_to("dog", target_is_directory=True)
    assert f"'{pets / 'train/dog'}' and '{pets / 'train/puppy'}' are the same folder" in refused(pets)


def test_a_class_folder_may_lie_elsewhere(pets: Path, tmp_path: Path) -> None:
    (pets / "train/cat").rename(tmp_path / "cats")
    (pets / "train/cat").symlink_to(tmp_path / "cats", target_is_directory=True)
    assert names(open_source(str(pets)).train, pets)[:3] == ["train/cat/0.png", "train/cat/1.png", "train/cat/2.png"]


def test_a_folder_that_cannot_be_read_is_named(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "train/cat/secret").mkdir()
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert f"cannot read the folder '{pets / 'train/cat/secret'}': Permission denied" in refused(pets)


# what was found


def test_what_was_found_and_left_out_is_one_line(pets: Path) -> None:
    assert open_source(str(pets)).line() == f"{pets}: 2 classes, images: 7 in train, 3 in val"
    for name in ("a.HEIC", "b.heic", "a.jpe", "b.jpe", "c.jpe", "a.tga", "bare"):
        (pets / "train/cat" / name).touch()
    (pets / "train/stray.png").touch()
    (pets / "val/dog/notes.txt").touch()
    line = open_source(str(pets)).line()
    assert "\n" not in line
    assert (
        f"; left out in '{pets / 'train'}': 7 files whose ending is not that of an image: .jpe (3), .heic (2)" in line
    )
    assert ", .tga (1), no ending (1) (.heic: convert such images to JPEG or PNG, or install" in line
    assert "pip install pillow-heif), 1 image beside the class folders; left out in" in line
    assert line.endswith(f"'{pets / 'val'}': 1 file whose ending is not that of an image: .txt (1)")
    assert open_source("bundled").line() == "bundled: 10 classes, images: 10,000 in train, 2,000 in val"


def test_one_class_is_nothing_to_learn(pets: Path) -> None:
    for split in ("train", "val"):
        (pets / split).rename(pets / "classes")
        (pets / split).mkdir()
        (pets / "classes").rename(pets / split / "classes")
    sentence = refused(pets)
    assert (
        f"'{pets / 'train'}' holds one class folder, classes, and with one class there is nothing to learn" in sentence
    )
    assert f"if its folders are the classes (cat, dog), move them up into '{pets / 'train'}'" in sentence
    assert len(open_source(str(pets), splits=("val",)).val) == 3


def test_class_folders_that_are_no_text_are_refused(pets: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (pets / split / odd).mkdir()
    assert r"class folders whose names are not UTF-8: caf\udce9; rename them" in refused(pets)


def test_files_whose_names_are_no_text_are_images_like_others(pets: Path, broken: Callable[[Path], Path]) -> None:
    odd = os.fsencode(pets / "val/cat") + b"/caf\xe9.png"
    os.rename(pets / "val/cat/0.png", odd)
    image, _, name = open_source(str(pets)).val[0]
    assert image.size == (13, 7)
    assert os.fsencode(name) == odd
    broken(Path(os.fsdecode(odd)))
    bad, _, _ = open_source(str(pets)).val[0]
    assert r"caf\udce9.png: image file is truncated" in str(bad).replace("Truncated File Read", "truncated")


# how folders are written and split


@pytest.mark.parametrize("train", ["Train", "TRAIN"])
@pytest.mark.parametrize("val", ["Val", "VALIDATION", "Test"])
def test_split_folders_may_be_written_with_capitals(pets: Path, train: str, val: str) -> None:
    (pets / "train").rename(pets / train)
    (pets / "val").rename(pets / val)
    source = open_source(str(pets))
    assert names(source.train, pets)[0] == f"{train}/cat/0.png"
    assert names(source.val, pets)[0] == f"{val}/cat/0.png"


def test_two_folders_for_one_split_are_refused(pets: Path) -> None:
    (pets / "Val").mkdir()
    assert len(open_source(str(pets)).val) == 3
    (pets / "val").rename(pets / "VAL")
    assert "holds VAL, Val, but only one can be val/" in refused(pets)


def test_the_order_of_files_is_that_of_numbers_then_letters() -> None:
    found = sorted(
        ["b10.png", "B9.png", "b²3.png", "A.png", "a.png", "1/2.png", "1/10.png", "01/2.png"], key=natural_order
    )
    assert found == ["01/2.png", "1/2.png", "1/10.png", "A.png", "a.png", "B9.png", "b10.png", "b²3.png"]
