import json

import pytest

from parhelion.errors import UserError
from parhelion.files import run_folder
from parhelion.files.environment import environment
from parhelion.files.run_folder import RunRecord, check_out


def test_a_run_folder_holds_recipe_environment_and_a_line_per_epoch(tmp_path):
    run = RunRecord(tmp_path / "a" / "run", recipe={"epochs": 2}, environment=environment(seed=7))
    run.add({"epoch": 1, "val_loss": 0.75})
    run.add({"epoch": 2, "val_loss": 0.5})
    lines = (tmp_path / "a" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["val_loss"] for line in lines] == [0.75, 0.5]
    assert json.loads((run.folder / "recipe.json").read_text()) == {"epochs": 2}
    known = json.loads((run.folder / "environment.json").read_text())
    assert known["seed"] == 7
    assert known["versions"]["torch"]
    assert known["hardware"]["cores"] >= 1
    assert known.keys() >= {"commit", "command", "time", "python"}


def test_losses_that_do_not_reach_the_disk_are_one_sentence(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    kept = RunRecord(tmp_path, recipe={}, environment={})
    kept.add_losses([{"update": 1}])
    monkeypatch.setattr(run_folder, "flush_to_disk", full)
    with pytest.raises(UserError, match=f"^cannot write {tmp_path / 'losses.jsonl'}: No space left on device$"):
        kept.flush_losses()


@pytest.mark.parametrize("name", ["recipe.json", "metrics.jsonl", "weights.safetensors"])
def test_a_folder_with_a_run_is_never_written_to(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"already holds a run \\({name}\\)"):
        RunRecord(tmp_path, recipe={}, environment={})
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_an_empty_folder_may_become_a_run_and_is_not_touched_by_the_check(tmp_path):
    check_out(tmp_path)
    check_out(tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="is a file"):
            check_out(out)
