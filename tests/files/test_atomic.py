import os

import pytest

from parhelion.errors import UserError
from parhelion.files.atomic import replacement, write_json, write_text


def _fail_half_way(target):
    with replacement(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half way")


def test_a_failing_block_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "notes.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    write_text(tmp_path / "notes.txt", "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "notes.txt"
    write_text(target, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*notes.txt: No space left on device"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_temporary_file_keeps_the_suffix_and_the_folder(tmp_path):
    with replacement(tmp_path / "sheet.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"1")


def test_json_never_holds_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "scores.json", {"loss": float("nan")})
