"""The command line evaluates detectors."""

import contextlib
import io
import json
import shutil
from statistics import fmean

import pytest
from cli.command_line import printed
from cli.quick_words import QUICK, TRAIN
from pycocotools.coco import COCO
from runs.colour_folders import truncate
from runs.tiny_scenes import TRAIN as TRAIN_IMAGES
from runs.tiny_scenes import VAL, annotations_of, change, tiny_scenes

from parhelion.cli import main

SCORES = {
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
}
OVERLAPS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_evaluate_prints_cocos_table(capsys, run, data):
    text = printed(capsys, "evaluate", run, "--data", data)
    # The file that is scored against, and what it holds: one image has nothing, and one a crowd.
    counts, title, _, *table = text.splitlines()
    counted = "2 of them without objects; 4 objects of 3 classes, 1 crowd: green 1, red 1, blue 2"
    assert counts == f"{annotations_of(data, 'val')}: {VAL} images, {counted}"
    assert title == f"mask_rcnn halonet_tiny on {data}: {VAL} images"
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in table if line}
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


def test_evaluate_takes_the_training_images(capsys, run, data):
    scores = json.loads(printed(capsys, "evaluate", run, "--data", data, "--split", "train", "--json"))
    assert (scores["split"], scores["images"]) == ("train", TRAIN_IMAGES)
    text = printed(capsys, "evaluate", run, "--data", data, "--split", "train")
    assert f"on {data}, split train: {TRAIN_IMAGES} images" in text


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


@pytest.mark.usefixtures("no_pictures")
def test_boxes_alone_are_scored_and_named(capsys, data, images, tmp_path):
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


def test_a_test_split_is_scored_and_its_file_is_named(capsys, refused, run, data, tmp_path):
    folder = tmp_path / "data"
    val = annotations_of(data, "val")
    shutil.copytree(val.parent.parent, folder)
    assert "has no annotations for test" in refused("evaluate", run, "--data", f"coco:{folder}", "--split", "test")
    (folder / "annotations" / "instances_val.json").rename(folder / "annotations" / "instances_test2017.json")
    (folder / "val").rename(folder / "test2017")
    words = ("evaluate", run, "--data", f"coco:{folder}", "--split", "test")
    text = printed(capsys, *words)
    assert f"{folder}/annotations/instances_test2017.json: {VAL} images" in text
    assert f"mask_rcnn halonet_tiny on coco:{folder}, split test: {VAL} images" in text
    scores = json.loads(printed(capsys, *words, "--json"))
    assert scores["file"] == f"{folder}/annotations/instances_test2017.json"
    assert scores["objects"] == {"green": 1, "red": 1, "blue": 2}
    assert scores["box"] == json.loads(printed(capsys, "evaluate", run, "--data", data, "--json"))["box"]


def test_images_without_annotations_get_results_and_no_scores(capsys, refused, run, data, tmp_path):
    folder, results = tmp_path / "data", tmp_path / "results.json"
    shutil.copytree(annotations_of(data, "val").parent.parent, folder)
    content = json.loads((folder / "annotations" / "instances_val.json").read_text())
    content.pop("annotations")
    # Ids that no float holds.
    for image in content["images"]:
        image["id"] += 2**53
    (folder / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    (folder / "val").rename(folder / "test2017")
    words = ("evaluate", run, "--data", f"coco:{folder}", "--split", "test")
    sentence = refused(*words)
    assert "image_info_test-dev2017.json has no annotated object to score what is found against" in sentence
    assert "--results FILE keeps what is found, without scores" in sentence
    text = printed(capsys, *words, "--results", results)
    assert "nothing is scored" in text
    assert str(results) in text
    entries = json.loads(results.read_text())
    assert {entry["image_id"] for entry in entries} <= {image["id"] for image in content["images"]}
    assert {entry["image_id"] for entry in entries}
    facts = json.loads(printed(capsys, *words, "--results", results, "--json"))
    assert "box" not in facts
    assert facts["objects"] == {"green": 0, "red": 0, "blue": 0}


def test_where_boxes_alone_are_annotated_boxes_alone_are_scored(capsys, refused, run, tmp_path):
    data = tiny_scenes(tmp_path / "data", masks=False, val=5)
    change(data, "val", annotations=lambda all_: [one for one in all_ if not one["iscrowd"]])
    sentence = refused("evaluate", run, "--data", data)
    assert "; --no-masks trains and scores boxes only, which need no segmentation" in sentence
    scores = json.loads(printed(capsys, "evaluate", run, "--data", data, "--json", "--no-masks"))
    assert scores["box"].keys() == SCORES
    assert scores["mask"] is None


def test_more_than_a_hundred_objects_of_an_image_are_found_and_scored(capsys, refused, run, tmp_path):
    data = tiny_scenes(tmp_path / "data", val=1)
    # Two hundred times the same object, of which a hundred can be found twice at most.
    change(data, "val", annotations=lambda all_: [{**all_[0], "id": number} for number in range(1, 201)])
    words = ("evaluate", run, "--data", data)
    assert "max_found is -1" in refused(*words, "--max-found", "-1")
    text = printed(capsys, *words)
    assert "has 200 objects, but at most 100 are found in one; --max-found 200 finds and scores more" in text
    assert "AR, 100 each" in text
    text = printed(capsys, *words, "--max-found", "200")
    assert "AR, 200 each" in text
    assert "finds and scores more" not in text
    assert "ar200" in json.loads(printed(capsys, *words, "--max-found", "200", "--json"))["box"]
