"""The command line evaluates detectors."""

import contextlib
import io
import json
from statistics import fmean

import pytest
from cli.command_line import printed
from cli.quick_words import QUICK, TRAIN
from pycocotools.coco import COCO
from recipes.colour_folders import truncate
from recipes.tiny_scenes import VAL, annotations_of, change, draw_nothing, tiny_scenes

from parhelion.cli import main

SCORES = {
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
}
OVERLAPS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_evaluate_prints_cocos_table(capsys, run, data):
    text = printed(capsys, "evaluate", run, "--data", data)
    assert f"mask_rcnn halonet_tiny on {data}: {VAL} images" in text
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in text.splitlines()[2:] if line}
    assert len(rows) == len(SCORES) + 1 + 3
    assert rows["AP large"] == ["-", "-"]
    scores = json.loads(printed(capsys, "evaluate", run, "--data", data, "--json"))
    assert rows["AP50"] == [f"{100 * scores[kind]['ap50']:.2f}" for kind in ("box", "mask")]
    assert rows["red"] == [f"{100 * scores[f'{kind}_per_class']['red']:.2f}" for kind in ("box", "mask")]


def test_evaluate_gives_cocos_numbers_by_class_and_by_overlap_as_json(capsys, run, data):
    scores = json.loads(printed(capsys, "evaluate", run, "--data", data, "--json", "--batch", "4"))
    assert (scores["model"], scores["data"], scores["images"]) == ("mask_rcnn halonet_tiny", data, VAL)
    assert (scores["skipped"], scores["dropped"]) == (0, {})
    for kind in ("box", "mask"):
        assert scores[kind].keys() == SCORES
        # Without large objects there is no such number.
        assert scores[kind]["ap_large"] is None
        assert 0 < scores[kind]["ap"] <= scores[kind]["ap50"] <= 1
        by_overlap, by_class = scores[f"{kind}_per_iou"], scores[f"{kind}_per_class"]
        assert list(map(float, by_overlap)) == OVERLAPS
        assert by_overlap["0.75"] == scores[kind]["ap75"]
        assert fmean(by_overlap.values()) == pytest.approx(scores[kind]["ap"])
        assert list(by_class) == ["green", "red", "blue"]
        assert fmean(by_class.values()) == pytest.approx(scores[kind]["ap"])


def test_results_are_what_pycocotools_loads_and_scores_alike(capsys, run, data, tmp_path):
    from pycocotools.cocoeval import COCOeval

    file = tmp_path / "results.json"
    words = ("evaluate", run, "--data", data, "--batch", "4", "--results", file, "--json")
    scores = json.loads(printed(capsys, *words))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations_of(data, "val"))
        found = truth.loadRes(str(file))
        for kind, name in (("box", "bbox"), ("mask", "segm")):
            theirs = COCOeval(truth, found, name)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
            assert [scores[kind][key] for key in ("ap", "ap50", "ap75")] == pytest.approx(theirs.stats[:3], abs=1e-9)
            assert scores[kind]["ar100"] == pytest.approx(theirs.stats[8], abs=1e-9)


def test_a_bad_image_or_annotation_is_refused_or_left_out_and_said(capsys, refused, run, tmp_path):
    data = tiny_scenes(tmp_path / "data", val=3)
    truncate(tmp_path / "data" / "val" / "2.jpg")
    change(data, "val", annotations=lambda all_: [{**all_[0], "bbox": [1, 1, "0", 5]}, *all_[1:]])
    evaluate = ("evaluate", run, "--data", data)
    assert "1 (1), but there should be none of these" in refused(*evaluate)
    assert "val/2.jpg" in refused(*evaluate, "--on-bad-annotation", "drop")
    words = (*evaluate, "--on-bad-annotation", "drop", "--on-bad-image", "skip")
    text = printed(capsys, *words)
    assert f"left out of {annotations_of(data, 'val')}: 1 annotations without a box of four finite numbers (1)" in text
    assert "skipped: cannot read the image" in text
    assert "2 images, 1 skipped" in text
    scores = json.loads(printed(capsys, *words, "--json"))
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert list(scores["dropped"].values()) == [[1]]


def test_large_ids_come_back_and_what_is_not_used_as_it_stands_is_said(capsys, run, tmp_path):
    data, far = tiny_scenes(tmp_path / "data", val=3), 2**62
    change(data, "val", images=lambda all_: [{**one, "id": far + one["id"]} for one in all_])
    change(data, "val", annotations=lambda all_: [{**a, "id": 0, "image_id": far + a["image_id"]} for a in all_])
    file = tmp_path / "results.json"
    text = printed(capsys, "evaluate", run, "--data", data, "--results", file)
    assert "share their id with another one; all are kept" in text
    ids = {entry["image_id"] for entry in json.loads(file.read_text())}
    assert ids
    assert ids <= {far + 1000, far + 993, far + 986}
    plain = tiny_scenes(tmp_path / "plain", val=3)
    scores = [json.loads(printed(capsys, "evaluate", run, "--data", of, "--json")) for of in (data, plain)]
    assert scores[0]["box"] == scores[1]["box"]
    assert scores[0]["mask"] == scores[1]["mask"]
    assert "all are kept" in scores[0]["notes"][0]


def test_boxes_alone_are_scored_and_named(capsys, data, images, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    out = tmp_path / "run"
    words = ("--epochs", "1", "--updates", "2", "--no-masks")
    assert main([*TRAIN, "--data", data, "--out", str(out), *QUICK, *words]) == 0
    scores = json.loads(printed(capsys, "evaluate", out, "--data", data, "--json", "--results", tmp_path / "r.json"))
    assert scores["model"] == "faster_rcnn halonet_tiny"
    assert scores["box"].keys() == SCORES
    assert not any(scores.get(f"mask{part}") for part in ("", "_per_iou", "_per_class"))
    assert all("segmentation" not in entry for entry in json.loads((tmp_path / "r.json").read_text()))
    printed(capsys, "predict", out, images[0], "--min-score", "0", "--out", tmp_path / "drawn")
    assert (tmp_path / "drawn" / f"{images[0].stem}.png").exists()


def test_evaluation_takes_another_size(capsys, run, data):
    usual, small = (
        json.loads(printed(capsys, "evaluate", run, "--data", data, "--json", *words))
        for words in ((), ("--image-px", "32"))
    )
    assert usual["box"] != small["box"]
