"""A detection run that is killed or stopped, and goes on: the same weights, scores and losses to the last bit."""

import json
import os
import shutil
import signal
from multiprocessing import get_context

import pytest
import torch
from runs.interrupted_runs import assert_same_run, rows, saved, stop_at
from runs.pictures import without_pictures
from runs.tiny_scenes import CATEGORIES, change, quick_detector, tiny_scenes

from parhelion.cli import main
from parhelion.detection import scores
from parhelion.detection.plots import SHEET
from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train
from parhelion.train.stopping import Stopped

# All that draws random numbers or remembers, at once.
CHANGES = {
    "epochs": 3,
    "accumulate": 2,
    "ema_decay": 0.75,
    "drop_path": 0.25,
    "jitter": (0.5, 1.5),
    "color_jitter": 0.3,
    "schedule": "step",
    "drop_updates": (2, 5),
    "checkpoint_updates": 1,
}
UPDATES = 3 * (9 // 4)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    with without_pictures():
        train(quick_detector(**CHANGES), Request(data=data, out=out, quiet=True))
    assert len(rows(out / "losses.jsonl")) == UPDATES
    return out


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("update", [1, pytest.param(2, marks=pytest.mark.thorough), UPDATES - 1])
def test_a_run_that_dies_in_an_update_ends_as_if_it_had_not(data, whole, tmp_path, monkeypatch, update):
    class Dead(BaseException):
        pass

    def die():
        raise Dead

    out = tmp_path / "run"
    stop_at(monkeypatch, update, die)
    with pytest.raises(Dead):
        train(quick_detector(**CHANGES), Request(data=data, out=out, quiet=True))
    train(quick_detector(**CHANGES), Request(data=data, out=out, resume=True, quiet=True))
    assert json.loads((out / "environment.json").read_text())["resumed_at_update"] == update
    assert_same_run(out, whole)


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with_from_the_command_line(data, whole, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    stop_at(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    # A copy of this process, since a new one would need seconds to start.
    request = Request(data=data, out=out, quiet=True)
    process = get_context("fork").Process(target=train, args=(quick_detector(**CHANGES), request))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    assert not (out / SHEET).exists()
    assert main(["train", "--resume", str(out), "--workers", "1"]) == 0
    assert f"going on with {out} after update 4 of {UPDATES}" in capsys.readouterr().out
    assert (out / SHEET).read_bytes().startswith(b"\x89PNG")
    assert_same_run(out, whole)


@pytest.mark.usefixtures("no_pictures", "ctrl_c_heard")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_says_so_and_goes_on(data, whole, tmp_path, monkeypatch, number, code):
    out, recipe = tmp_path / "run", quick_detector(**CHANGES | {"checkpoint_updates": 0})
    stop_at(monkeypatch, 2, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match=rf"stopped; parhelion train --resume {out} goes on") as stopped:
        train(recipe, Request(data=data, out=out, quiet=True))
    assert stopped.value.code == code
    assert saved(out) == ["000000002", "000000003"]
    train(recipe, Request(data=data, out=out, resume=True, quiet=True))
    assert_same_run(out, whole)


@pytest.mark.usefixtures("no_pictures")
def test_an_evaluation_stops_at_once_and_is_done_again(data, whole, tmp_path, monkeypatch):
    out, outcome, seen = tmp_path / "run", scores.outcome, []

    def asked(model, batches, category_ids):
        def counted():
            for number, batch in enumerate(batches):
                seen.append(number)
                os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return outcome(model, counted(), category_ids)

    monkeypatch.setattr(scores, "outcome", asked)
    with pytest.raises(Stopped):
        train(quick_detector(**CHANGES), Request(data=data, out=out, quiet=True))
    assert seen == [0]
    monkeypatch.setattr(scores, "outcome", outcome)
    train(quick_detector(**CHANGES), Request(data=data, out=out, resume=True, quiet=True))
    assert_same_run(out, whole)


def test_a_finished_run_and_another_recipe_are_not_gone_on_with(data, whole):
    again = {"data": data, "out": whole, "resume": True, "quiet": True}
    with pytest.raises(UserError, match=f"is finished; to train on, start another one with --init-from {whole}"):
        train(quick_detector(**CHANGES), Request(**again))
    with pytest.raises(UserError, match=r"another recipe: masks was True and is False; resume with"):
        train(quick_detector(**CHANGES, masks=False), Request(**again))
    with pytest.raises(UserError, match="there is no data source 'coco:elsewhere'"):
        train(quick_detector(**CHANGES), Request(**(again | {"data": "coco:elsewhere"})))


def test_the_command_line_refuses_what_cannot_be_gone_on_with(whole, tmp_path, capsys):
    for odd, sentence in (
        ({"task": "segmentation"}, "resume with the parhelion that wrote it, or newer"),
        ({"depth": 3}, "has depth; resume with the parhelion that wrote it, or newer"),
    ):
        out = tmp_path / sentence[:9].strip()
        out.mkdir()
        recipe = json.loads((whole / "recipe.json").read_text())
        (out / "recipe.json").write_text(json.dumps(recipe | odd))
        assert main(["train", "--resume", str(out)]) == 2
        said = capsys.readouterr().err
        assert (said.count("\n"), sentence in said) == (1, True), said


@pytest.fixture
def moved(data, whole, tmp_path):
    """A copy of the unfinished run and of its images; what opens them, and how to go on."""
    images, out = tmp_path / "images", tmp_path / "run"
    shutil.copytree(data.removeprefix("coco:"), images)
    shutil.copytree(whole, out)
    (out / SHEET).unlink()
    spec = f"coco:{images}"
    recipe = json.loads((out / "recipe.json").read_text()) | {"data": spec}
    (out / "recipe.json").write_text(json.dumps(recipe))
    return spec, {"data": spec, "out": out, "resume": True, "quiet": True}


@pytest.mark.usefixtures("no_pictures")
def test_the_same_images_elsewhere_are_gone_on_with(moved, whole):
    _, again = moved
    train(quick_detector(**CHANGES), Request(**again))
    assert_same_run(again["out"], whole)


OTHER = {
    "an image less": (
        {"images": lambda all_: [one for one in all_ if one["id"] != 979]},
        "9 training images, but .* 8",
    ),
    "an object less": ({"annotations": lambda all_: all_[:-1]}, "other annotations .*: annotations was 11 and is 10;"),
    "another name": (
        {"categories": lambda all_: [*all_[:2], {**all_[2], "name": "azure"}]},
        "class 2 of the checkpoint is 'blue', but .* 'azure'",
    ),
}


@pytest.mark.parametrize("what", OTHER)
def test_other_annotations_are_not_gone_on_with(moved, what):
    spec, again = moved
    parts, sentence = OTHER[what]
    change(spec, "train", **parts)
    if "categories" in parts:
        change(spec, "val", **parts)
    with pytest.raises(UserError, match=sentence):
        train(quick_detector(**CHANGES), Request(**again))


def test_other_category_ids_are_not_gone_on_with(moved):
    spec, again = moved
    for split in ("train", "val"):
        change(
            spec,
            split,
            categories=lambda all_: [{**one, "id": one["id"] + 1} for one in all_],
            annotations=lambda all_: [{**one, "category_id": one["category_id"] + 1} for one in all_],
        )
    ids = list(CATEGORIES)
    with pytest.raises(UserError, match=r"category_ids was \[3, 7, 90\] and is \[4, 8, 91\]; resume with") as refused:
        train(quick_detector(**CHANGES), Request(**again))
    assert str(ids) in str(refused.value)
