import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compare.pretend_runs import pretend_run
from PIL import Image

from parhelion.compare.chart import compare_chart
from parhelion.compare.runs import Spread, grouped, notes, read_run, read_runs, spread_text, table
from parhelion.errors import UserError
from parhelion.models.catalog import create_model
from parhelion.models.count import multiply_adds, parameters

CONV = ("conv_stages=[1]",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one recipe, one of another model, a hybrid of that model, and a run that stopped."""
    folder = tmp_path_factory.mktemp("runs")
    pretend_run(folder / "r0", seed=0, best=0.9)
    pretend_run(folder / "r1", seed=1, best=0.92)
    pretend_run(folder / "halo", "halonet_tiny")
    pretend_run(folder / "hybrid", "halonet_tiny", choices=CONV)
    pretend_run(folder / "stopped", seed=2, done=2)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_is_read_with_the_counts_of_its_own_model(runs: Path) -> None:
    run = read_run(runs / "hybrid")
    model = create_model("halonet_tiny", num_classes=10, in_chans=1, image_size=28, conv_stages=(1,))
    assert (run.params, run.multiply_adds) == (parameters(model), multiply_adds(model, (28, 28)))
    assert run.params != read_run(runs / "halo").params
    assert ([row["epoch"] for row in run.rows], run.finished) == ([1, 2, 3], True)


def test_runs_that_differ_in_seed_alone_are_one_group(runs: Path, tmp_path: Path) -> None:
    other = pretend_run(tmp_path / "other", seed=7, workers=1, keep=3)
    groups = grouped(read_runs([runs / "r0", runs / "halo", runs / "r1", other]))
    assert [group.label for group in groups] == ["resnet_tiny", "halonet_tiny"]
    assert [run.recipe["seed"] for run in groups[0].runs] == [0, 1, 7]
    assert (
        grouped(read_runs([runs / "r0", pretend_run(tmp_path / "batch", batch=7)]))[1].label == "resnet_tiny, batch=7"
    )


def test_a_group_has_mean_lowest_and_highest_of_each_epoch(runs: Path) -> None:
    first, second = (read_run(runs / name) for name in ("r0", "r1"))
    (group,) = grouped([first, second])
    for spread, *values in zip(
        group.along("top1"), *([row["top1"] for row in run.rows] for run in (first, second)), strict=True
    ):
        assert (spread.low, spread.mean, spread.high) == (min(values), pytest.approx(sum(values) / 2), max(values))
    assert group.seconds() == pytest.approx([149.5, 299.0, 448.5])
    assert group.as_dict()["seeds"] == [0, 1]
    json.dumps(group.as_dict(), allow_nan=False)


def test_groups_of_one_model_are_named_by_what_tells_them_apart(runs: Path, tmp_path: Path) -> None:
    groups = grouped(read_runs([runs / "halo", runs / "hybrid"]))
    assert [group.label for group in groups] == ["halonet_tiny", "halonet_tiny, conv_stages=[1]"]
    far = pretend_run(tmp_path / "far", batch=7, mixup=0.5, flip=0.0, erase=0.5)
    assert grouped(read_runs([runs / "r0", far]))[1].label == f"resnet_tiny in {far}"
    bundled = pretend_run(tmp_path / "bundled", data="bundled")
    groups = grouped(read_runs([runs / "halo", bundled]))
    assert [group.label for group in groups] == ["halonet_tiny, data=fashion-mnist", "resnet_tiny, data=bundled"]
    assert "scores on different images cannot be compared" in notes(groups)


def test_an_unfinished_run_is_shown_as_such_beside_the_finished_ones(runs: Path) -> None:
    groups = grouped(read_runs([runs / "r0", runs / "stopped"]))
    assert [group.label for group in groups] == ["resnet_tiny", "resnet_tiny, unfinished, 2 of 3 epochs"]
    assert table(groups)[2][2] == "2 of 3"
    assert groups[1].as_dict()["finished"] is False
    assert "a run that has not done all its epochs stands at the last it did" in notes(groups)


def test_a_run_that_should_end_early_is_finished_then(tmp_path: Path) -> None:
    folder = pretend_run(tmp_path / "run", done=1, updates=17)
    assert not read_run(folder).finished
    (folder / "losses.jsonl").write_text('{"update": 16}\n{"update": 17}\n')
    assert read_run(folder).finished


def test_times_of_different_machines_are_told(runs: Path) -> None:
    first, second = read_runs([runs / "r0", runs / "halo"])
    assert not notes(grouped([first, second]))
    assert "times on different machines cannot be compared" in notes(grouped([first, replace(second, machine="b")]))


def test_the_table_says_the_spread_where_there_is_one(runs: Path) -> None:
    (group,) = grouped(read_runs([runs / "r0"]))
    headings, row = table([group])
    assert len(row) == len(headings)
    assert row[6:] == ("0.307 M", "10.5 M", "447 s")
    assert spread_text(Spread(mean=2, low=1, high=4), str) == "2 (1 to 4)"
    assert spread_text(Spread(mean=2, low=2, high=2), str) == "2"


def test_a_run_without_an_epoch_is_left_out_and_told(runs: Path, tmp_path: Path) -> None:
    begun, said = pretend_run(tmp_path / "begun", seed=5, done=0), []
    assert [run.folder for run in read_runs([begun, runs / "r0"], said.append)] == [runs / "r0"]
    assert said == [f"{begun} is left out: it has not done an epoch yet"]
    with pytest.raises(UserError, match=f"the run {begun} has not done an epoch yet"):
        read_runs([begun])


def test_a_copy_of_a_run_is_not_another_seed(runs: Path, tmp_path: Path) -> None:
    copy, said = tmp_path / "copy", []
    shutil.copytree(runs / "r0", copy)
    repeated = pretend_run(tmp_path / "repeated", seed=0, best=0.9)
    rows = [json.loads(line) for line in (repeated / "metrics.jsonl").read_text().splitlines()]
    slower = "".join(json.dumps(row | {"seconds": 2 * row["seconds"]}) + "\n" for row in rows)
    (repeated / "metrics.jsonl").write_text(slower)
    # The same seed with other scores, as on a GPU, is a run of its own.
    other = pretend_run(tmp_path / "other", seed=0, best=0.91)
    (group,) = grouped(read_runs([runs / "r0", copy, runs / "r1", repeated, other], said.append))
    assert [run.folder for run in group.runs] == [runs / "r0", runs / "r1", other]
    assert said == [
        f"{again} is left out: seed and scores are those of {runs / 'r0'}, so it is a copy or repetition"
        for again in (copy, repeated)
    ]


def test_images_and_weights_spelled_otherwise_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    first = pretend_run(tmp_path / "work" / "first", data="../photos/")
    second = pretend_run(tmp_path / "work" / "second", data=str(tmp_path / "photos"), seed=1)
    for folder, start in ((first, "second"), (second, str(second))):
        recipe = json.loads((folder / "recipe.json").read_text())
        (folder / "recipe.json").write_text(json.dumps(recipe | {"begun_in": str(Path.cwd()), "init_from": start}))
    monkeypatch.chdir(tmp_path)
    (group,) = grouped(read_runs([first, second]))
    assert not any("different images" in sentence for sentence in notes([group]))


def test_what_is_no_run_is_one_sentence(runs: Path, tmp_path: Path) -> None:
    assert f"there is no run folder {tmp_path / 'nowhere'}" in refused(tmp_path / "nowhere")
    assert "holds no run; name a folder" in refused(tmp_path)
    with pytest.raises(UserError, match="is named twice"):
        read_runs([runs / "r0", runs / "halo" / ".." / "r0"])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("metrics.jsonl", "", "has not done an epoch yet"),
        ("metrics.jsonl", None, "has not done an epoch yet"),
        ("metrics.jsonl", '{"epoch": 1\n', "line 1 of"),
        ("metrics.jsonl", '{"epoch": 1}\n', "is no row of a classification"),
        ("metrics.jsonl", "[1]\n", "is damaged (it has no number 'epoch')"),
        ("recipe.json", "{", "is damaged"),
        ("recipe.json", '{"model": "resnet_tiny"}', "lacks seed, epochs, data"),
        ("weights.safetensors", None, "is not a whole safetensors file"),
        ("weights.safetensors", "short", "is not a whole safetensors file"),
    ],
)
def test_a_damaged_run_is_one_sentence(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    folder = pretend_run(tmp_path / "run")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    assert sentence in refused(folder)
    assert str(folder) in refused(folder)


def test_every_group_has_its_mark_in_the_picture(runs: Path, tmp_path: Path) -> None:
    names = ("r0", "r1", "halo", "hybrid", "stopped")
    compare_chart(grouped(read_runs([runs / name for name in names])), tmp_path / "all.png")
    pixels = np.asarray(Image.open(tmp_path / "all.png").convert("RGB")).reshape(-1, 3)
    for color in ("2f6fb0", "e08a1e", "2e8b57", "c8362f"):
        assert (pixels == list(bytes.fromhex(color))).all(axis=1).sum() > 50


def test_one_epoch_of_one_run_with_a_strange_name_is_drawn(tmp_path: Path) -> None:
    folder = pretend_run(tmp_path / "of $ and _$", epochs=1, warmup_epochs=0.0, data="for $5 _a_ $")
    compare_chart(grouped(read_runs([folder])), tmp_path / "one.svg")
    assert "</svg>" in (tmp_path / "one.svg").read_text()
