"""The command line with detectors: train, evaluate, predict, recipes, compare."""

import contextlib
import io
import json
import os
import shutil
import sys
from statistics import fmean

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from recipes.colour_folders import COLOURS, colour_folders, truncate
from recipes.tiny_scenes import TINY, VAL, annotations_of, change, draw_nothing, tiny_scenes

from parhelion.cli import main
from parhelion.evaluate.saved_detector import load_detector
from parhelion.recipes.table import RECIPES, recipe

SIZES = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
QUICK = ("--image-px", "64", "--batch", "4", "--warmup-epochs", "0.5", *SIZES)
SCORES = {
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
}
OVERLAPS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
TRAIN = ("train", "mask_rcnn_halonet_tiny")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture(scope="module")
def images(data):
    return sorted(annotations_of(data, "val").parent.parent.glob("val/*"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A detector that finds something."""
    out = tmp_path_factory.mktemp("runs") / "quick"
    torch.set_num_threads(1)
    words = ("--epochs", "12", "--lr-per-256", "0.5", "--sampled-boxes", "16")
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_nothing(monkeypatch)
        assert main([*TRAIN, "--data", data, "--out", str(out), *QUICK, *words]) == 0
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classification run, and an image for it."""
    folder = tmp_path_factory.mktemp("classifier")
    colours = colour_folders(folder / "data", colours=dict(list(COLOURS.items())[:2]))
    words = ("--image-px", "16", "--epochs", "1", "--batch", "10", "--warmup-epochs", "0")
    torch.set_num_threads(1)
    assert main(["train", "resnet_tiny", "--data", str(colours), "--out", str(folder / "run"), *words]) == 0
    return folder / "run"


@pytest.fixture
def refused(capsys):
    """The one sentence with which the command line refuses its arguments."""

    def sentence(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert code == 2
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("parhelion: ")
        return said.err

    return sentence


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


# train


def test_the_help_of_a_detection_recipe_shows_every_field_with_the_recipes_value(capsys):
    text = printed(capsys, *TRAIN, "--help")
    fields = recipe("mask_rcnn_halonet_tiny").as_dict()
    assert fields.pop("task") == "detection"
    for field, value in fields.items():
        # A switch that is on can be switched off.
        assert f"--{'no-' if value is True else ''}{field.replace('_', '-')}" in text
    assert "--fpn-width INT" in text
    assert "(default: 64)" in text
    assert "--on-bad-annotation {refuse,drop}" in text
    assert "Mask R-CNN over a HaloNet" in text
    # Those of classification would not act.
    assert not any(f"--{word}" in text for word in ("mixup", "randaugment", "eval-px", "task"))
    assert "--fpn-width" not in printed(capsys, "train", "halonet_tiny", "--help")


def test_training_prints_an_epoch_in_a_line_and_what_was_clipped_or_left_out(capsys, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    data = tiny_scenes(tmp_path / "data", train=4, val=2)

    def spoiled(annotations):
        first, second, *others = annotations
        left, top, *_ = first["bbox"]
        return [{**first, "bbox": [left, top, 400, 9]}, {**second, "bbox": [left, top, 0, 9]}, *others]

    change(data, "train", annotations=spoiled)
    out = tmp_path / "run"
    words = ("--epochs", "1", "--warmup-epochs", "0", "--on-bad-annotation", "drop")
    assert main([*TRAIN, "--data", data, "--out", str(out), *QUICK, *words]) == 0
    said = capsys.readouterr()
    assert "1 annotations with a degenerate box" in said.err
    assert "1 annotations that reach out of their image" in said.err
    (line,) = [line for line in said.out.splitlines() if line.startswith("epoch 1/1")]
    assert "box AP " in line
    assert "mask AP " in line
    assert line.count("AP50 ") == 2
    assert f"weights, metrics and pictures are in {out}" in said.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--mixup", "0.5"), "has no option --mixup"),
        (("--fpn-witdh", "9"), "did you mean --fpn-width"),
        (("--jitter", "0.5"), "--jitter"),
        (("--jitter", "1.5", "0.5"), "jitter is (1.5, 0.5); it must be two rising numbers above 0"),
        (("--norm", "group"), "'group'"),
        (("--min-score", "1"), "min_score is 1.0; it must be at least 0 and below 1"),
        (("--drop-updates", "3"), "the schedule step needs one of the two"),
        (("--data-dir", "."), "detection reads coco:DIR"),
        (("--download",), "detection reads coco:DIR"),
        (("--data", "bundled"), "it should be coco:DIR"),
        (("--data", "coco:nowhere"), "coco:nowhere"),
        (("--model", "timm:resnet_8"), "timm has no model"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(refused, data, tmp_path, words, sentence):
    assert sentence in refused(*TRAIN, "--data", data, "--out", tmp_path / "run", *QUICK, *words)
    assert not (tmp_path / "run").exists()


def test_annotation_files_that_cannot_be_read_are_one_sentence(refused, run, tmp_path):
    data = tiny_scenes(tmp_path / "data", train=2, val=2)
    (tmp_path / "empty").mkdir()
    evaluate, train = ("evaluate", run, "--data", data), (*TRAIN, "--data", data, "--out", tmp_path / "run")
    file = annotations_of(data, "val")
    for text, sentence in (
        ("{", "cannot read the annotations"),
        ("[]", "has no list of images"),
        ('{"images": [1]}', "images[0]"),
    ):
        file.write_text(text)
        assert sentence in refused(*evaluate)
        assert sentence in refused(*train)
    file.unlink()
    assert "has no annotations for val" in refused(*evaluate)
    assert "holds nothing" in refused("evaluate", run, "--data", f"coco:{tmp_path / 'empty'}")
    assert not (tmp_path / "run").exists()


def test_a_classification_recipe_does_not_take_annotations(refused, data, tmp_path):
    words = ("--data", data, "--out", tmp_path / "run")
    assert "coco:" in refused("train", "resnet_tiny", *words)
    assert not (tmp_path / "run").exists()


# evaluate


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
    change(data, "val", annotations=lambda all_: [{**all_[0], "bbox": [1, 1, 0, 5]}, *all_[1:]])
    evaluate = ("evaluate", run, "--data", data)
    assert "1 (1), but there should be none of these" in refused(*evaluate)
    assert "val/2.jpg" in refused(*evaluate, "--on-bad-annotation", "drop")
    words = (*evaluate, "--on-bad-annotation", "drop", "--on-bad-image", "skip")
    text = printed(capsys, *words)
    assert "left out: 1 annotations with a degenerate box" in text
    assert "skipped: cannot read the image" in text
    assert "2 images, 1 skipped" in text
    scores = json.loads(printed(capsys, *words, "--json"))
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert list(scores["dropped"].values()) == [[1]]


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


# predict


def test_predict_prints_an_object_in_a_line(capsys, run, images):
    lines = [line.split("\t") for line in printed(capsys, "predict", run, *images, "--min-score", "0.1").splitlines()]
    assert [line[0] for line in lines] == sorted((line[0] for line in lines), key=list(map(str, images)).index)
    named = [line for line in lines if line[1:] != ["nothing found"]]
    assert named
    assert {line[0] for line in lines} == set(map(str, images))
    for _, name, score, *box in named:
        left, top, right, bottom = map(float, box)
        assert name in ("green", "red", "blue")
        assert 0.1 <= float(score) <= 1
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
    assert printed(capsys, "predict", run, images[0], "--min-score", "1") == f"{images[0]}\tnothing found\n"


def test_predict_gives_json_with_as_many_objects_of_such_a_score_as_asked(capsys, run, images):
    def said(*words):
        return json.loads(printed(capsys, "predict", run, *images, "--json", *words))

    low, best, all_ = (said("--min-score", "0.1"), said("--min-score", "0.1", "--top", "1"), said("--min-score", "0"))
    assert [row["image"] for row in low] == list(map(str, images))
    for image, row in zip(images, low, strict=True):
        assert (row["width"], row["height"]) == Image.open(image).size
        scores = [thing["score"] for thing in row["objects"]]
        assert scores == sorted(scores, reverse=True)
    assert [row["objects"] for row in best] == [row["objects"][:1] for row in low]
    # Below what counted as found in training, too.
    assert (
        min(thing["score"] for row in all_ for thing in row["objects"])
        < load_detector(run).model.roi_heads.score_thresh
    )
    usual = said()
    expected = [[thing for thing in row["objects"] if thing["score"] >= 0.5] for row in low]
    assert [row["objects"] for row in usual] == expected


def test_predict_draws_pictures_and_writes_results(capsys, run, images, data, tmp_path):
    out, file = tmp_path / "new" / "pictures", tmp_path / "results.json"
    words = ("--out", out, "--results", file, "--min-score", "0.1", "--json")
    said = json.loads(printed(capsys, "predict", run, *images, *words))
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{image.stem}.png" for image in images)
    for image in images:
        ours, theirs = (Image.open(path).size for path in (out / f"{image.stem}.png", image))
        # Small images are drawn larger, in their proportions.
        assert ours[0] / ours[1] == pytest.approx(theirs[0] / theirs[1], rel=0.05)
    results = json.loads(file.read_text())
    assert [entry["image_id"] for entry in results] == [
        number for number, row in enumerate(said, start=1) for _ in row["objects"]
    ]
    assert results
    assert {entry["category_id"] for entry in results} <= {3, 7, 90}
    assert all({"bbox", "score", "segmentation"} < entry.keys() for entry in results)


def test_images_of_one_name_have_pictures_of_their_own(capsys, run, images, tmp_path):
    for folder, name in (("a", "2_x"), ("a", "x"), ("b", "x")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(images[0], tmp_path / folder / f"{name}.png")
    given = [tmp_path / "a" / "2_x.png", tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    printed(capsys, "predict", run, *given, "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1_2_x.png", "2_x.png", "3_x.png"]


def test_a_picture_never_takes_the_place_of_an_image(refused, run, images, tmp_path):
    image = tmp_path / "x.png"
    shutil.copy(next(path for path in images if path.suffix == ".png"), image)
    before = image.read_bytes()
    assert f"would write a picture over the image {image}" in refused("predict", run, image, "--out", tmp_path)
    assert image.read_bytes() == before


def test_grey_and_transparent_images_are_looked_at_too(capsys, run, images, tmp_path):
    for mode in ("L", "RGBA", "P"):
        Image.open(images[1]).convert(mode).save(tmp_path / f"{mode}.png")
    given = sorted(tmp_path.glob("*.png"))
    assert len(json.loads(printed(capsys, "predict", run, *given, "--json", "--out", tmp_path / "out"))) == 3


def test_a_corrupt_image_is_refused_or_skipped_and_said(capsys, refused, run, images, tmp_path):
    bad = tmp_path / "bad.jpg"
    Image.new("RGB", (30, 20), "red").save(bad)
    truncate(bad)
    assert "bad.jpg" in refused("predict", run, bad, images[0])
    words = (bad, images[0], "--on-bad-image", "skip", "--out", tmp_path / "out", "--json")
    capsys.readouterr()
    assert main(["predict", str(run), *map(str, words)]) == 0
    said = capsys.readouterr()
    assert [row["image"] for row in json.loads(said.out)] == [str(images[0])]
    assert said.err.startswith("skipped: ")
    assert "bad.jpg" in said.err
    assert [path.stem for path in (tmp_path / "out").iterdir()] == [images[0].stem]


# mistakes


def test_options_of_the_other_task_are_refused(capsys, refused, run, classifier, data, images, tmp_path):
    evaluate, predict = ("evaluate", run, "--data", data), ("predict", run, images[0])
    for option in (("--data-dir", tmp_path), ("--download",)):
        assert f"{option[0]} is for a classifier, which this checkpoint is not" in refused(*evaluate, *option)
    assert "--batch is for a classifier" in refused(*predict, "--batch", "2")
    evaluate, predict = ("evaluate", classifier, "--data", "bundled"), ("predict", classifier, images[0])
    for option in (("--results", tmp_path / "x.json"), ("--on-bad-annotation", "drop")):
        assert f"{option[0]} is for a detector, which this checkpoint is not" in refused(*evaluate, *option)
    for option in (("--min-score", "0.5"), ("--out", tmp_path / "x"), ("--results", tmp_path / "x.json")):
        assert f"{option[0]} is for a detector, which this checkpoint is not" in refused(*predict, *option)
    assert not (tmp_path / "x").exists()
    # This one is for both.
    assert len(printed(capsys, *predict, "--top", "1").split("\t")) == 3
    assert printed(capsys, "predict", run, images[0], "--top", "1").count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluate", "{run}", "--data", "bundled"), "it should be coco:DIR"),
        (("evaluate", "{run}", "--data", "{data}", "--batch", "0"), "batch is 0; it must be at least 1"),
        (("evaluate", "{run}", "--data", "{data}", "--image-px", "-1"), "image_px is -1"),
        (("evaluate", "{run}", "--data", "{data}", "--results", "nowhere/x.json"), "there is no folder nowhere"),
        (("evaluate", "{run}", "--data", "{data}", "--results", "{tmp}"), "is a folder; name a file"),
        (("evaluate", "nowhere", "--data", "{data}"), "nowhere"),
        (("evaluate", "{tmp}", "--data", "{data}"), "holds no weights.safetensors"),
        (("predict", "{tmp}", "{image}"), "holds no weights.safetensors"),
        (("predict", "{run}"), "needs one IMAGE or more"),
        (("predict", "{run}", "{tmp}"), "is a folder; name image files"),
        (("predict", "{run}", "{image}", "nowhere.jpg"), "there is no image nowhere.jpg"),
        (("predict", "{run}", "{image}", "--min-score", "1.5"), "min_score is 1.5"),
        (("predict", "{run}", "{image}", "--min-score", "nan"), "min_score is nan"),
        (("predict", "{run}", "{image}", "--top", "0"), "top is 0"),
        (("predict", "{run}", "{image}", "--out", "{image}"), "cannot be made"),
        (("predict", "{run}", "{image}", "--results", "nowhere/x.json"), "there is no folder nowhere"),
        (("compare", "{run}"), "is one of detection; parhelion compare takes runs of classification"),
    ],
)
def test_mistakes_are_one_sentence(refused, run, data, images, tmp_path, words, sentence):
    known = {"run": run, "data": data, "image": images[0], "tmp": tmp_path}
    assert sentence in refused(*(word.format(**known) for word in words))
    assert os.listdir(tmp_path) == []


def test_classes_must_be_the_checkpoints(refused, run, tmp_path):
    two = tiny_scenes(tmp_path / "two", categories={3: "green", 7: "red"}, train=1, val=1)
    assert "knows 3 classes, but" in refused("evaluate", run, "--data", two)
    other = tiny_scenes(tmp_path / "other", categories={3: "green", 7: "red", 90: "pink"}, train=1, val=1)
    assert "class 2 of the checkpoint is 'blue', but" in refused("evaluate", run, "--data", other)


def test_a_damaged_detector_is_one_sentence(refused, run, images, tmp_path):
    whole = (run / "weights.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:-99])
    assert "not a whole safetensors file" in refused("predict", tmp_path / "w.safetensors", images[0])
    (tmp_path / "w.safetensors").write_bytes(whole.replace(b"category_ids", b"category_idx"))
    assert "its header lacks category_ids" in refused("predict", tmp_path / "w.safetensors", images[0])


# recipes


def test_detection_recipes_are_listed_and_shown(capsys):
    lines = [line.split("\t") for line in printed(capsys, "recipes", "mask_rcnn_*").splitlines()]
    assert [line[0] for line in lines] == [name for name in RECIPES if recipe(name).task == "detection"]
    rows = {line[0]: line[1:] for line in lines}
    # 67,500 times 64 images, and 3 times 82,835,193,856 multiply-adds of the backbone for each.
    assert rows["mask_rcnn_halo_resnet50_se_coco"] == [
        *("4.3e+06", "1.1e+18", "45.2 box AP, 40.3 mask AP (paper)", "arXiv 2103.12731"),
    ]
    text = printed(capsys, "recipes", "mask_rcnn_halo_resnet50_se_coco")
    assert "--data coco:DIR" in text
    assert "--init-from runs/halo_resnet50_se_imagenet" in text
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  "))
    assert json.loads(fields["task"]) == "detection"
    assert json.loads(fields["drop_updates"]) == [60_000, 65_000]
    (row,) = json.loads(printed(capsys, "recipes", "mask_rcnn_resnet_tiny", "--json"))
    assert row["images"] == row["recipe"]["epochs"] * 2000
    assert row["recipe"]["task"] == "detection"
    assert "of a detector in its backbone alone" in " ".join(printed(capsys, "recipes", "--help").split())


def test_on_a_terminal_detection_recipes_are_a_table(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert "45.2 box AP, 40.3 mask AP" in printed(capsys, "recipes", "mask_rcnn_*")
