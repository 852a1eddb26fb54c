"""A run that is killed, stopped or out of space, and goes on: the same weights and metrics to the last bit."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe, truncate
from runs.interrupted_runs import assert_same_run, saved, stop_at
from runs.pictures import without_pictures

from parhelion.classification import plots, scores
from parhelion.cli import main
from parhelion.errors import UserError
from parhelion.files.lock import LOCK, RunLock
from parhelion.files.run_folder import saved_recipe
from parhelion.runs.request import Request
from parhelion.runs.resume import Begun, check_images
from parhelion.runs.task import Images
from parhelion.runs.trainer import train
from parhelion.train import checkpoint
from parhelion.train.checkpoint import Checkpoint
from parhelion.train.stopping import Stopped

# All that draws random numbers or remembers, at once.
CHANGES = {
    "model": "halonet_tiny",
    "batch": 8,
    "epochs": 3,
    "accumulate": 2,
    "ema_decay": 0.75,
    "mixup": 0.2,
    "cutmix": 0.5,
    "dropout": 0.25,
    "drop_path": 0.25,
    "erase": 0.5,
    "clip_norm": 1.0,
    "checkpoint_updates": 1,
}
UPDATES = 3 * (33 // 8)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    with without_pictures():
        train(quick_recipe(**CHANGES), Request(data=str(data), out=out, quiet=True))
    return out


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_a_run_killed_at_random_instants_ends_as_if_it_had_not_been(data, whole, tmp_path, workers):
    out, kills, instants = tmp_path / "run", 0, random.Random(5 + workers)
    recipe = quick_recipe(**CHANGES, workers=workers)
    # A copy of this process, since a new one would need seconds to start.
    fork = multiprocessing.get_context("fork")
    while True:
        before = time.time()
        process = fork.Process(target=train, args=(recipe, Request(data=str(data), out=out, resume=True, quiet=True)))
        process.start()
        if kills < 4:
            while process.is_alive() and not has_saved_since(out, before):
                time.sleep(0.01)
            time.sleep(instants.uniform(0, 0.3))
            process.kill()
            kills += 1
        process.join(timeout=60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert len(json.loads((out / "environment.json").read_text())["before"]) >= 2
    assert_same_run(out, whole)


def has_saved_since(out, instant):
    return any(folder.stat().st_mtime > instant for folder in out.glob("checkpoints/0*"))


@pytest.mark.usefixtures("no_pictures", "ctrl_c_heard")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_says_so_and_goes_on(data, whole, tmp_path, monkeypatch, number, code):
    out, recipe = tmp_path / "run", replace(quick_recipe(**CHANGES), checkpoint_updates=0)
    stop_at(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match=rf"stopped; parhelion train --resume {out} goes on") as stopped:
        train(recipe, Request(data=str(data), out=out, quiet=True))
    assert stopped.value.code == code
    assert saved(out) == ["000000004", "000000006"]
    train(recipe, Request(data=str(data), out=out, resume=True, quiet=True))
    assert_same_run(out, whole)


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_stops_at_once_and_is_done_again(data, whole, tmp_path, monkeypatch):
    out, evaluate, seen = tmp_path / "run", scores.outcome, []

    def asked(model, loader):
        for number, batch in enumerate(loader):
            seen.append(number)
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(scores, "outcome", lambda model, loader: evaluate(model, asked(model, loader)))
    with pytest.raises(Stopped):
        train(quick_recipe(**CHANGES), Request(data=str(data), out=out, quiet=True))
    assert seen == [0]
    monkeypatch.setattr(scores, "outcome", evaluate)
    train(quick_recipe(**CHANGES), Request(data=str(data), out=out, resume=True, quiet=True))
    assert_same_run(out, whole)


@pytest.mark.usefixtures("no_pictures")
def test_a_damaged_checkpoint_costs_the_updates_since_the_one_before(data, whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / plots.SHEET).unlink()
    truncate(next((out / "checkpoints" / f"{UPDATES:09d}").glob("*.safetensors")))
    train(quick_recipe(**CHANGES), Request(data=str(data), out=out, resume=True))
    said = capsys.readouterr()
    assert "is damaged" in said.err
    assert f"going on with {out} after update {UPDATES - 1} of {UPDATES}" in said.out
    assert_same_run(out, whole)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("place", ["a checkpoint", "the weights"])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(data, whole, tmp_path, monkeypatch, place):
    out, flush = tmp_path / "run", checkpoint.flush_to_disk

    def full(path):
        if path.name == ".000000006" or (place == "the weights" and (out / "metrics.jsonl").exists()):
            raise OSError(28, "No space left on device")
        flush(path)

    module = "train.checkpoint" if place == "a checkpoint" else "files.atomic"
    monkeypatch.setattr(f"parhelion.{module}.flush_to_disk", full)
    with pytest.raises(UserError, match=r"^cannot write .*No space left on device"):
        train(quick_recipe(**CHANGES), Request(data=str(data), out=out, quiet=True))
    monkeypatch.setattr(f"parhelion.{module}.flush_to_disk", flush)
    assert not list(out.rglob(".*"))
    assert all(checkpoint.why_not_whole(folder) is None for folder in (out / "checkpoints").iterdir())
    train(quick_recipe(**CHANGES), Request(data=str(data), out=out, resume=True, quiet=True))
    assert_same_run(out, whole)


def test_a_finished_run_and_another_recipe_are_not_gone_on_with(data, whole):
    again = {"data": str(data), "out": whole, "resume": True, "quiet": True}
    with pytest.raises(UserError, match=f"is finished; to train on, start another one with --init-from {whole}"):
        train(quick_recipe(**CHANGES), Request(**again))
    with pytest.raises(
        UserError, match=r"another recipe: epochs was 3 and is 4, mixup was 0.2 and is 0.0; resume with"
    ):
        train(replace(quick_recipe(**CHANGES), epochs=4, mixup=0.0), Request(**again))
    with pytest.raises(UserError, match="knows 3 classes, but bundled has 10"):
        train(quick_recipe(**CHANGES), Request(**(again | {"data": "bundled"})))


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_another_process_trains_is_left_alone(data, whole, tmp_path):
    out, recipe = tmp_path / "run", quick_recipe(**CHANGES)
    shutil.copytree(whole, out)
    (out / plots.SHEET).unlink()
    # What the other process is writing.
    (out / "checkpoints" / ".000000013").mkdir()
    with RunLock(out) as other:
        other.take()
        before = contents(out)
        with pytest.raises(UserError, match=rf"the run in {out} is in use by process {os.getpid()} on .* since 20"):
            train(recipe, Request(data=str(data), out=out, resume=True, quiet=True))
        assert contents(out) == before
    # A run that two processes begin at once.
    new = tmp_path / "new"
    with RunLock(new) as other:
        other.take()
        before = contents(new)
        for resume in (False, True):
            with pytest.raises(UserError, match=f"the run in {new} is in use"):
                train(recipe, Request(data=str(data), out=new, resume=resume, quiet=True))
        assert contents(new) == before
    train(recipe, Request(data=str(data), out=out, resume=True, quiet=True))
    assert_same_run(out, whole)
    assert not (out / LOCK).exists()


def test_other_images_are_not_gone_on_with(data, whole, tmp_path):
    images, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(data, images)
    shutil.copytree(whole, out)
    (out / plots.SHEET).unlink()
    saved_recipe = json.loads((out / "recipe.json").read_text()) | {"data": str(images)}
    (out / "recipe.json").write_text(json.dumps(saved_recipe))
    again = {"data": str(images), "out": out, "resume": True, "quiet": True}
    shutil.copy(images / "train" / "red" / "1.png", images / "train" / "red" / "again.png")
    with pytest.raises(UserError, match=r"begun with 33 training images, but .* has 34; resume with the images"):
        train(quick_recipe(**CHANGES), Request(**again))
    for split in ("train", "val"):
        (images / split / "red").rename(images / split / "scarlet")
    with pytest.raises(UserError, match=r"class 2 of the checkpoint is 'red', but .* 'scarlet'"):
        train(quick_recipe(**CHANGES), Request(**again))


@pytest.mark.usefixtures("no_pictures")
def test_images_are_known_by_what_they_are_not_by_how_they_are_spelled(data, whole, tmp_path, monkeypatch, capsys):
    out, work, recipe = tmp_path / "run", tmp_path / "work", quick_recipe(**CHANGES)
    shutil.copytree(whole, out)
    shutil.copytree(data, work / "photos")
    begun = json.loads((out / "recipe.json").read_text()) | {"data": "photos", "begun_in": str(work)}
    (out / "recipe.json").write_text(json.dumps(begun))

    def resume(*words):
        """The exit code, what is said, and where the images then are."""
        (out / plots.SHEET).unlink(missing_ok=True)
        code = main(["train", "--resume", str(out), *words])
        return code, capsys.readouterr().err, [saved_recipe(out)[name] for name in ("data", "begun_in")]

    for folder, spelled in ((work, "photos/"), (tmp_path, "work/photos")):
        monkeypatch.chdir(folder)
        (out / plots.SHEET).unlink()
        train(recipe, Request(data=spelled, out=out, resume=True, quiet=True))
    assert resume() == (0, "", ["photos", str(work)])

    (work / "photos").rename(tmp_path / "moved")
    code, said, _ = resume()
    assert (code, said.count("\n")) == (2, 1)
    assert f"no longer at {work / 'photos'}; where they were moved, parhelion train --resume {out} --data PLACE" in said
    assert resume("--data", "moved") == (0, "", ["moved", str(tmp_path)])
    monkeypatch.chdir(work)
    assert resume() == (0, "", ["moved", str(tmp_path)])
    assert_same_run(out, whole)

    (tmp_path / "moved" / "train" / "red" / "1.png").rename(tmp_path / "moved" / "train" / "red" / "01.png")
    code, said, _ = resume()
    assert code == 2
    assert "begun with other training images" in said
    assert "they are as many, but names or sizes of files differ" in said


def test_without_files_the_name_says_which_images_they_are(tmp_path):
    facts = {"train_images": 5, "class_names": ["a"], "digest": None, "readers": None}
    images = Images(source="hfds/other", facts=facts, val_images=3)
    begun = Begun(
        folder=tmp_path,
        resolved={"data": "hfds/other"},
        checkpoints=None,
        resumed=True,
        checkpoint=Checkpoint(tmp_path, {"images": facts}),
        moved=True,
    )
    (tmp_path / "recipe.json").write_text('{"data": "torch/one"}')
    with pytest.raises(UserError, match="another recipe: data was 'torch/one' and is 'hfds/other'"):
        check_images(begun, images, pytest.fail)
    check_images(replace(begun, moved=False), images, pytest.fail)
    # Files with the same names and sizes are the same images, wherever they lie.
    known = {**facts, "digest": "0f"}
    elsewhere = replace(begun, checkpoint=Checkpoint(tmp_path, {"images": known}))
    check_images(elsewhere, replace(images, facts=known), pytest.fail)
    check_images(replace(begun, checkpoint=None), replace(images, facts=known), pytest.fail)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("metrics.jsonl", b"\xff\n", "line 1 of .*metrics.jsonl is damaged"),
        ("metrics.jsonl", b"[1]\n", "line 1 of .*metrics.jsonl is damaged .it has no number 'epoch'"),
        ("losses.jsonl", b'{"epoch": 1}\n', "line 1 of .*losses.jsonl is damaged .it has no number 'update'"),
        ("recipe.json", b"{", "recipe.json is damaged"),
    ],
)
def test_a_damaged_record_is_one_sentence(data, whole, tmp_path, file, text, sentence):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / plots.SHEET).unlink()
    (out / file).write_bytes(text)
    with pytest.raises(UserError, match=sentence):
        train(quick_recipe(**CHANGES), Request(data=str(data), out=out, resume=True, quiet=True))
    assert (out / file).read_bytes() == text
