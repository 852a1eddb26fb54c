import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parhelion.data.images import BadImage
from parhelion.data.sources import open_source
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


def test_different_class_folders_are_named_up_to_five(pets: Path, picture: Picture) -> None:
    (pets / "val/cat").rename(pets / "val/kat")
    for number in range(7):
        (pets / "train" / f"extra{number}").mkdir()
        picture(0).save(pets / "train" / f"extra{number}" / "0.png")
    sentence = refused(pets)
    assert f"cat, extra0, extra1, extra2, extra3 and 3 more only in '{pets / 'train'}'" in sentence
    assert f"kat only in '{pets / 'val'}'" in sentence


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
