import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from parhelion.data.sources import open_source
from parhelion.data.sources.held_out import HELD_OUT, check_same, held_out, of_run, record
from parhelion.errors import UserError

CLASSES = {"ant": 11, "bee": 5, "cow": 2, "doe": 1}


@pytest.fixture
def flat(tmp_path: Path, picture: Callable[[int], Image.Image]) -> Path:
    """A folder with 11 ants, 5 bees, 2 cows and a doe."""
    for name, count in CLASSES.items():
        (tmp_path / "flat" / name).mkdir(parents=True)
        for number in range(count):
            picture(number).save(tmp_path / "flat" / name / f"{number}.png")
    return tmp_path / "flat"


def files(samples: object) -> list[str]:
    return [file for file, _ in samples.files]


def test_a_share_of_every_class_is_held_out(flat: Path) -> None:
    source = open_source(str(flat), val_share=0.2)
    assert Counter(source.val.class_numbers()) == {0: 2, 1: 1, 2: 1}
    assert Counter(source.train.class_numbers()) == {0: 9, 1: 4, 2: 1, 3: 1}
    assert sorted(files(source.train) + files(source.val)) == sorted(map(str, flat.glob("*/*.png")))
    assert source.class_names == tuple(CLASSES)
    assert source.line() == f"{flat}: 4 classes, images: 15 in train, 4 in val"


def test_the_choice_follows_from_the_names_alone(flat: Path, tmp_path: Path) -> None:
    before = [Path(file).relative_to(flat) for file in files(open_source(str(flat), val_share=0.4).val)]
    shutil.move(flat, tmp_path / "moved")
    moved = open_source(str(tmp_path / "moved"), val_share=0.4)
    assert [Path(file).relative_to(tmp_path / "moved") for file in files(moved.val)] == before


def test_more_images_change_little() -> None:
    names = [(f"ant/{number}.png", 0) for number in range(100)]
    before = held_out(names, 0.2)
    after = held_out([*names, *((f"ant/new{number}.png", 0) for number in range(5))], 0.2)
    assert (len(before), len(after)) == (20, 21)
    assert len(before & after) >= 16


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2, float("nan")])
def test_a_share_that_cannot_be_is_refused(flat: Path, share: float) -> None:
    with pytest.raises(UserError, match="must be above 0 and below 1"):
        open_source(str(flat), val_share=share)


def test_what_cannot_be_split_is_refused(pets: Path, flat: Path) -> None:
    with pytest.raises(UserError, match=r"holds train/, val/; leave val_share out"):
        open_source(str(pets), val_share=0.2)
    shutil.rmtree(pets / "val")
    with pytest.raises(UserError, match=r"holds train/; give '.*pets/train'"):
        open_source(str(pets), val_share=0.2)
    with pytest.raises(UserError, match=r"train on '.*pets/train' with --val-share 0\.2"):
        open_source(str(pets))
    with pytest.raises(UserError, match=r"if these are class folders, --val-share 0\.2 validates on a fifth"):
        open_source(str(flat))
    with pytest.raises(UserError, match="for a folder that holds a folder per class, which 'bundled' is not"):
        open_source("bundled", val_share=0.2)
    for name in ("ant", "bee", "cow"):
        for file in list((flat / name).iterdir())[1:]:
            file.unlink()
    with pytest.raises(UserError, match="needs a class with two images"):
        open_source(str(flat), val_share=0.2)


@pytest.fixture
def run(flat: Path, tmp_path: Path) -> Path:
    """The folder of a run that held out a fifth of `flat`."""
    (tmp_path / "run").mkdir()
    held = record(open_source(str(flat), val_share=0.2).val, 0.2)
    (tmp_path / "run" / HELD_OUT).write_text(json.dumps(held))
    return tmp_path / "run"


def test_a_run_is_scored_on_what_it_held_out(flat: Path, run: Path, picture: Callable[[int], Image.Image]) -> None:
    expected = files(open_source(str(flat), val_share=0.2).val)
    scored = of_run(open_source(str(flat), splits=("val",)), run)
    assert files(scored.val) == expected
    assert f"left out: 15 images that the run in {run} did not hold out" in scored.line()
    for number in range(40):
        picture(number).save(flat / "ant" / f"new{number}.png")
    Path(expected[0]).unlink()
    later = of_run(open_source(str(flat), splits=("val",)), run)
    assert files(later.val) == expected[1:]
    assert "changed, or not there any more: 1 image that it held out" in later.line()


def test_other_images_are_scored_whole(pets: Path, flat: Path, run: Path, tmp_path: Path) -> None:
    assert len(of_run(open_source(str(pets / "val"), splits=("val",)), run).val) == 3
    assert len(of_run(open_source(str(pets), splits=("val",)), run).val) == 3
    assert len(of_run(open_source(str(flat), splits=("val",)), tmp_path).val) == 19
    assert of_run(open_source("bundled", splits=("val",)), run).line() == "bundled: 10 classes, images: 2,000 in val"
    (run / HELD_OUT).write_text("{}")
    with pytest.raises(UserError, match=r"held_out\.json is damaged"):
        of_run(open_source(str(flat), splits=("val",)), run)


def test_a_run_goes_on_with_the_images_that_it_held_out(flat: Path, run: Path) -> None:
    held = open_source(str(flat), val_share=0.2).val
    check_same(held, run / HELD_OUT)
    Path(held.files[0][0]).rename(flat / "ant" / "renamed.png")
    with pytest.raises(UserError, match=r"the run held out 4 images of .*, of which [1-4] are not held out now"):
        check_same(open_source(str(flat), val_share=0.2).val, run / HELD_OUT)
