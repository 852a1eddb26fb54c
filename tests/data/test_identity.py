import os
from pathlib import Path

import pytest
from data.annotated.coco_folders import H, W, opened, train_content, write_coco

from parhelion.data.identity import absolute, digest, path_of
from parhelion.data.sources import open_source
from parhelion.data.sources.shards import Shard, Shards


def test_one_place_has_many_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, link = tmp_path / "a" / "photos", tmp_path / "link"
    photos.mkdir(parents=True)
    link.symlink_to(photos)
    monkeypatch.setenv("HOME", str(tmp_path))
    for spelled in ("a/photos", "a/photos/", "./a//photos", str(photos), "a/../a/photos", "link", "~/a/photos"):
        assert place(spelled, tmp_path) == str(photos)
        assert place(f"coco:{spelled}", tmp_path) == f"coco:{photos}"
        assert place(f"hfds/{spelled}", tmp_path) == f"hfds/{photos}"
    # A link may point elsewhere tomorrow.
    assert absolute("link", tmp_path) == str(link)
    assert absolute("../photos", photos) == str(photos)


def test_names_of_data_sets_are_no_places(tmp_path: Path) -> None:
    for name in ("bundled", "fashion-mnist", "torch/cifar10", "wds/mine", "hfds/cats", "tfds/mnist"):
        assert absolute(name, tmp_path) == place(name, tmp_path) == name
        assert path_of(name) is None
    assert path_of("coco:a/b") == path_of("a/b") == Path("a/b")


def test_a_digest_moves_along_with_the_files_and_notices_other_ones(pets: Path, tmp_path: Path) -> None:
    def now(folder: Path) -> str | None:
        return digest(open_source(str(folder)).train)

    first = now(pets)
    assert first is not None
    moved = pets.rename(tmp_path / "moved")
    assert now(moved) == first
    file = moved / "train" / "cat" / "1.png"
    before = file.read_bytes()
    file.write_bytes(before + b"0")
    assert now(moved) != first
    file.write_bytes(before)
    os.utime(file, (0, 0))
    assert now(moved) == first
    file.rename(file.with_name("9.png"))
    assert now(moved) != first


def test_shards_have_a_digest_and_named_data_sets_have_none(tmp_path: Path) -> None:
    def shards(folder: Path, samples: int) -> str | None:
        folder.mkdir(exist_ok=True)
        (folder / "0.tar").write_bytes(b"0123")
        shard = Shard(folder / "0.tar", samples)
        return digest(Shards([shard], train=True, in_chans=3, class_count=2, label_field=""))

    assert shards(tmp_path / "a", 3) == shards(tmp_path / "b", 3) != shards(tmp_path / "a", 4)
    assert digest(open_source("bundled").train) is None


def test_annotated_images_have_a_digest_of_names_and_sizes(tmp_path: Path) -> None:
    first, second = opened(write_coco(tmp_path / "a")).train, opened(write_coco(tmp_path / "b", layout="beside")).train
    assert digest(first) == digest(second) is not None
    what = train_content()
    what["images"][0]["height"], what["images"][0]["width"] = W, H
    other = opened(write_coco(tmp_path / "c", train={**what, "annotations": []})).train
    assert digest(other) != digest(first)
