"""The scenes of clothing: exact masks, the same bytes every time, no garment in both splits."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from parhelion.cli import exit_code
from parhelion.data.sources.fashion import CLASS_NAMES, bundled_images
from parhelion.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNTS = {"train": 53, "val": 26}
SIDES_PX = (67, 131)
PHOTOGRAPHS = {"train": "train", "val": "test"}


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        return importlib.import_module("scenes")


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """Small scenes of both splits."""
    out = tmp_path_factory.mktemp("scenes") / "made"
    scenes.make_scenes(out, **COUNTS, seed=3, sides_px=SIDES_PX)
    return out


@pytest.fixture(scope="module", params=list(COUNTS))
def split(request):
    return request.param


@pytest.fixture(scope="module")
def coco(folder, split):
    return COCO(folder / "annotations" / f"instances_{split}.json")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_image_is_there_in_colour_and_its_own_size(folder, split, coco):
    assert len(coco.imgs) == COUNTS[split] == len(list((folder / split).iterdir()))
    for entry in coco.imgs.values():
        with Image.open(folder / split / entry["file_name"]) as image:
            assert (image.mode, image.height, image.width) == ("RGB", entry["height"], entry["width"])
        assert entry["height"] != entry["width"]
        assert SIDES_PX[0] <= min(entry["height"], entry["width"])
        assert SIDES_PX[1] >= max(entry["height"], entry["width"])


def test_categories_are_the_classes_from_one_on(coco):
    assert {key: category["name"] for key, category in coco.cats.items()} == dict(enumerate(CLASS_NAMES, start=1))
    assert {entry["category_id"] for entry in coco.anns.values()} == set(coco.cats)


def test_masks_are_those_of_the_scene_and_boxes_are_tight(scenes, split, coco):
    for image_id in coco.imgs:
        _, placed = scenes.scene(3, split, image_id - 1, SIDES_PX)
        entries = coco.imgToAnns[image_id]
        assert len(entries) == len(placed)
        for entry, one in zip(entries, placed, strict=True):
            mask = coco.annToMask(entry)
            np.testing.assert_array_equal(mask, one.visible)
            rows, cols = np.nonzero(mask)
            size = np.ptp(cols) + 1, np.ptp(rows) + 1
            assert entry["bbox"] == [cols.min(), rows.min(), *size]
            assert (entry["area"], entry["iscrowd"]) == (mask.sum(), 0)


def test_garments_of_a_scene_share_no_pixel(coco):
    for image_id, image in coco.imgs.items():
        owners = np.zeros((image["height"], image["width"]), int)
        for entry in coco.imgToAnns[image_id]:
            owners += coco.annToMask(entry)
        assert owners.max() <= 1


def test_enough_of_every_garment_is_seen(scenes, split, coco):
    for image_id in coco.imgs:
        for one in scenes.scene(3, split, image_id - 1, SIDES_PX)[1]:
            assert one.visible.sum() >= scenes.SEEN_SHARE * one.garment.area


def test_an_uncovered_garment_is_as_large_as_its_photograph_enlarged(scenes):
    """The mask is neither a pixel too wide nor too narrow: its area is that of the outline, times the enlargement."""
    wide = (301, 307)
    shares = []
    for index in range(60):
        rng = np.random.default_rng(index)
        garment = scenes.random_garment(rng, "train")
        (one,) = scenes.with_garment(rng, np.zeros((*wide, 3), np.float32), [], garment)
        if not (one.visible[0].any() or one.visible[-1].any() or one.visible[:, [0, -1]].any()):
            shares.append(one.visible.sum() / garment.area)
    assert len(shares) > 20
    assert np.median(shares) == pytest.approx(1, abs=0.03)


def test_a_garment_is_painted_where_its_mask_is(scenes):
    rng = np.random.default_rng(5)
    canvas = np.full((151, 163, 3), -1.0, np.float32)
    # Without its shadow only the garment changes the ground; its edge fades within two pixels.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "SHADOW_STRENGTH", 0.0)
        (one,) = scenes.with_garment(rng, canvas, [], scenes.random_garment(rng, "val"))
    changed = (canvas > -1).any(axis=2)
    assert changed[one.visible].all()
    assert not changed[~scenes.largest(scenes.largest(one.visible))].any()


def test_splits_share_no_garment(scenes, split, coco, monkeypatch):
    assert all(entry["garment"].startswith(f"bundled:{PHOTOGRAPHS[split]}/") for entry in coco.anns.values())
    asked = set()
    monkeypatch.setattr(scenes, "bundled_images", lambda name: asked.add(name) or bundled_images(name))
    for index in range(5):
        scenes.scene(3, split, index, SIDES_PX)
    assert asked == {PHOTOGRAPHS[split]}


def test_some_scenes_are_empty_and_most_are_not(scenes, split, coco):
    empty = [image_id for image_id in coco.imgs if not coco.imgToAnns[image_id]]
    assert empty == list(range(scenes.EMPTY_EVERY, COUNTS[split] + 1, scenes.EMPTY_EVERY))
    assert max(map(len, coco.imgToAnns.values())) >= 4


def test_a_wide_hole_is_filled_unless_it_is_an_opening(scenes):
    ring = np.zeros((28, 28), np.uint8)
    ring[4:22, 6:24] = 200
    ring[9:15, 11:18] = 0
    assert scenes.silhouette(ring, CLASS_NAMES.index("Coat")).sum() == 18 * 18
    assert scenes.silhouette(ring, CLASS_NAMES.index("Bag")).sum() == 18 * 18 - 6 * 7


def test_the_same_command_gives_the_same_bytes(scenes, folder, tmp_path):
    scenes.make_scenes(tmp_path / "again", **COUNTS, seed=3, sides_px=SIDES_PX)
    assert content(tmp_path / "again") == content(folder)


def test_a_scene_depends_on_seed_split_and_number_alone(scenes, folder, tmp_path):
    scenes.make_scenes(tmp_path / "fewer", train=2, val=1, seed=3, sides_px=SIDES_PX)
    scenes.make_scenes(tmp_path / "other", train=2, val=1, seed=4, sides_px=SIDES_PX)
    whole, fewer, other = (content(path) for path in (folder, tmp_path / "fewer", tmp_path / "other"))
    for name in ("train/000002.jpg", "val/000001.jpg"):
        assert whole[name] == fewer[name] != other[name]


def test_scenes_that_are_there_stay(scenes, folder, capsys):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    scenes.make_scenes(folder, **COUNTS, seed=3, sides_px=SIDES_PX)
    assert "holds these scenes already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_another_folder_is_refused(scenes, folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="does not hold these scenes"):
        scenes.make_scenes(folder, **COUNTS, seed=4, sides_px=SIDES_PX)
    (tmp_path / "mine").write_text("keep")
    monkeypatch.setattr(sys, "argv", ["scenes.py", str(tmp_path), "--train", "1", "--val", "1"])
    assert exit_code(scenes.main) == 2
    assert "name another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"sides_px": (131, 131)}, {"sides_px": (9, 131)}])
def test_impossible_numbers_are_refused(scenes, tmp_path, wrong):
    with pytest.raises(UserError):
        scenes.make_scenes(tmp_path / "out", **{"train": 1, "val": 1, **wrong})
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_leaves_nothing(scenes, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "annotation", stop)
    with pytest.raises(KeyboardInterrupt):
        scenes.make_scenes(tmp_path / "out", train=3, val=1)
    assert not list(tmp_path.iterdir())


def test_settings_are_kept(folder):
    assert json.loads((folder / "scenes.json").read_text()) == {**COUNTS, "seed": 3, "sides_px": list(SIDES_PX)}
