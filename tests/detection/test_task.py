import json
import math

import pytest
import torch
from runs.colour_folders import colour_folders, quick_recipe, truncate
from runs.pictures import without_pictures
from runs.tiny_scenes import (
    CATEGORIES,
    EMPTY,
    TRAIN,
    VAL,
    annotations_of,
    change,
    quick_detector,
    tiny_scenes,
)
from safetensors.torch import load_file

from parhelion.cli import main
from parhelion.detection import task as detection
from parhelion.detection.saved import Detector
from parhelion.errors import UserError
from parhelion.runs.request import Request
from parhelion.runs.trainer import train

TIMES = {"seconds", "data_wait_seconds", "images_per_second"}
# fmt: off
FILES = {
    "recipe.json", "environment.json", "metrics.jsonl", "losses.jsonl", "weights.safetensors", "best.safetensors",
    "checkpoints", "learning_curves.png", "detections.png",
}
# fmt: on
NUMBERS = ("ap", "ap50", "ap75", "ap_small", "ar1", "ar10", "ar100", "ar_small")
SCORES = {f"{kind}_{name}" for kind in ("box", "mask") for name in NUMBERS}
# All that draws random numbers, at once.
RANDOM = {"jitter": (0.5, 1.5), "flip": 0.5, "color_jitter": 0.3, "drop_path": 0.25}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_scenes(tmp_path_factory.mktemp("scenes") / "data")


def trained(recipe, data, out):
    """A run without pictures, and its folder."""
    torch.set_num_threads(1)
    with without_pictures():
        train(recipe, Request(data=data, out=out, quiet=True))
    return out


@pytest.fixture(scope="module")
def quick(data, tmp_path_factory):
    """A short run over all that draws random numbers."""
    return trained(quick_detector(**RANDOM), data, tmp_path_factory.mktemp("runs") / "quick")


@pytest.fixture(scope="module")
def learned(data, tmp_path_factory):
    """A run long enough to find something."""
    recipe = quick_detector(epochs=14, lr_per_256=0.7, sampled_boxes=16)
    return trained(recipe, data, tmp_path_factory.mktemp("runs") / "learned")


def rows(out, name="metrics.jsonl"):
    lines = [json.loads(line) for line in (out / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(ours, theirs):
    one, other = (load_file(out / "weights.safetensors") for out in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rows(ours) == rows(theirs)
    assert rows(ours, "losses.jsonl") == rows(theirs, "losses.jsonl")


def scores_of_evaluate(capsys, out, data, *words):
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", data, "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


# what a run leaves


def test_a_run_leaves_its_record_and_returns_what_a_table_needs(tmp_path, data):
    out = tmp_path / "run"
    result = train(quick_detector(), Request(data=data, out=out, quiet=True))
    assert {file.name for file in out.iterdir()} == FILES
    first, last = rows(out)
    assert last.keys() > SCORES
    # Objects of at most 32 x 32 pixels alone are among these.
    assert not last.keys() & {"box_ap_large", "mask_ar_medium"}
    assert all(0 <= row[name] <= 1 for row in (first, last) for name in SCORES)
    assert {name: result[name] for name in SCORES} == {name: last[name] for name in SCORES}
    assert last["epoch"] == result["epochs"] == 2
    assert (result["train_images"], result["val_images"]) == (TRAIN, VAL)
    assert (result["model"], result["source"], result["out"]) == ("halonet_tiny", data, str(out))
    assert result["seconds"] > 0
    losses = rows(out, "losses.jsonl")
    assert [(row["update"], row["epoch"]) for row in losses] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert all(0 < row["loss"] < 10 for row in losses)
    recipe = json.loads((out / "recipe.json").read_text())
    assert (recipe["task"], recipe["model"], recipe["fpn_width"]) == ("detection", "halonet_tiny", 8)
    assert recipe["data"] == data
    for picture in FILES:
        if picture.endswith(".png"):
            assert (out / picture).read_bytes().startswith(b"\x89PNG")
    detector = Detector.load(out)
    assert detector.metrics == {name: last[name] for name in detector.metrics}
    assert result["params"] == sum(parameter.numel() for parameter in detector.model.parameters())


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_gives_identical_runs_and_another_does_not(tmp_path, data, quick):
    torch.rand(13)
    train(quick_detector(**RANDOM), Request(data=data, out=tmp_path / "again", quiet=True))
    assert_same_run(tmp_path / "again", quick)
    train(quick_detector(**RANDOM, seed=8), Request(data=data, out=tmp_path / "other", quiet=True))
    assert rows(tmp_path / "other", "losses.jsonl") != rows(quick, "losses.jsonl")


@pytest.mark.usefixtures("no_pictures")
def test_workers_change_nothing(tmp_path, data, quick):
    train(quick_detector(**RANDOM, workers=1), Request(data=data, out=tmp_path / "run", quiet=True))
    assert_same_run(tmp_path / "run", quick)


def test_evaluate_agrees_with_the_training_log(capsys, data, learned):
    # Padding goes by the largest image of a batch, so that the batches must be those of the training's evaluation.
    scores = scores_of_evaluate(capsys, learned, data, "--batch", "4")
    last = rows(learned)[-1]
    for kind in ("box", "mask"):
        found = {f"{kind}_{name}": value for name, value in scores[kind].items() if f"{kind}_{name}" in last}
        assert len(found) == len(SCORES) / 2
        assert found == pytest.approx({name: last[name] for name in found}, abs=1e-6)


def test_the_best_weights_are_those_of_the_best_epoch(learned):
    column = [row["mask_ap"] for row in rows(learned)]
    best = Detector.load(learned / "best.safetensors")
    assert best.metrics["mask_ap"] == max(column)
    assert best.epoch == column.index(max(column)) + 1


def test_sparse_category_ids_are_kept_in_the_checkpoint(quick):
    detector = Detector.load(quick)
    assert detector.category_ids == tuple(CATEGORIES)
    assert detector.class_names == tuple(CATEGORIES.values())


def test_a_detector_learns(learned):
    losses = [row["loss"] for row in rows(learned, "losses.jsonl")]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    # Of so few images the number jumps from epoch to epoch.
    assert max(row["box_ap50"] for row in rows(learned)) > 0.15
    assert max(row["mask_ap50"] for row in rows(learned)) > 0.15


# other images


@pytest.mark.usefixtures("no_pictures")
def test_boxes_alone_are_learned_where_nothing_is_segmented(tmp_path):
    data = tiny_scenes(tmp_path / "data", masks=False)
    # Only crowds have masks in this data set.
    change(data, "train", annotations=lambda all_: [{**one, "segmentation": []} for one in all_])
    with pytest.raises(UserError, match="without a segmentation"):
        train(quick_detector(), Request(data=data, out=tmp_path / "masks", quiet=True))
    result = train(quick_detector(masks=False, epochs=1), Request(data=data, out=tmp_path / "boxes", quiet=True))
    assert 0 <= result["box_ap"] <= 1
    assert not any(name.startswith("mask_") for name in result)
    detector = Detector.load(tmp_path / "boxes")
    assert (detector.arguments["kind"], detector.masks) == ("faster_rcnn", False)
    assert not [name for name in load_file(tmp_path / "boxes" / "weights.safetensors") if "mask" in name]


@pytest.mark.usefixtures("no_pictures")
def test_images_with_nothing_but_a_crowd_or_nothing_at_all_are_trained_on(tmp_path, capsys):
    data = tiny_scenes(tmp_path / "data")
    content = json.loads(annotations_of(data, "train").read_text())
    empty = content["images"][EMPTY]["id"]
    assert all(one["image_id"] != empty for one in content["annotations"])
    crowds = [one for one in content["annotations"] if one["iscrowd"]]
    assert crowds
    # In one image there is something to learn; batches of others hold nothing.
    one = next(one for one in content["annotations"] if not one["iscrowd"])
    change(data, "train", annotations=lambda _: [*crowds, one])
    train(quick_detector(epochs=1, batch=2), Request(data=data, out=tmp_path / "run"))
    losses = [row["loss"] for row in rows(tmp_path / "run", "losses.jsonl")]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert "left out" not in capsys.readouterr().err


def test_without_an_object_to_learn_nothing_is_trained(tmp_path):
    data = tiny_scenes(tmp_path / "data")
    change(data, "train", annotations=lambda all_: [one for one in all_ if one["iscrowd"]])
    with pytest.raises(UserError, match=r"instances_train\.json has no annotated object to learn: .* are crowds"):
        train(quick_detector(), Request(data=data, out=tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_what_is_annotated_in_each_split_is_told_before_training(tmp_path, data, capsys):
    train(quick_detector(epochs=1, updates=1, max_found=1), Request(data=data, out=tmp_path / "run"))
    said = capsys.readouterr().err
    for split, images in (("train", TRAIN), ("val", VAL)):
        assert f"{annotations_of(data, split)}: {images} images, 2 of them without objects; " in said
    assert "10 objects of 3 classes, 1 crowd: green 3, red 2, blue 5\n" in said
    assert "has 2 objects, but at most 1 are found in one; --max-found 2 finds and scores more" in said


@pytest.mark.usefixtures("no_pictures")
def test_grey_images_train_a_network_of_one_channel(tmp_path, data):
    train(quick_detector(in_chans=1, epochs=1, updates=1), Request(data=data, out=tmp_path / "run", quiet=True))
    assert Detector.load(tmp_path / "run").in_chans == 1


@pytest.mark.usefixtures("no_pictures")
def test_a_bad_image_is_refused_or_counted_as_the_recipe_says(tmp_path, capsys):
    data = tiny_scenes(tmp_path / "data")
    truncate(tmp_path / "data" / "train" / "0.jpg")
    truncate(tmp_path / "data" / "val" / "2.jpg")
    with pytest.raises(UserError, match=r"train/0\.jpg"):
        train(quick_detector(batch=9), Request(data=data, out=tmp_path / "refused", quiet=True))
    train(quick_detector(batch=9, epochs=1, on_bad_image="skip"), Request(data=data, out=tmp_path / "skipped"))
    assert [row["skipped_images"] for row in rows(tmp_path / "skipped")] == [2]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert ["train/0.jpg" in said[0], "val/2.jpg" in said[1], len(said)] == [True, True, 2]


def spoiled(annotations):
    """Two that have no width, and one of a category that there is not."""
    first, second, third, *others = annotations
    left, top, _, height = first["bbox"]
    flat = [{**one, "bbox": [left, top, 0, height]} for one in (first, second)]
    return [*flat, {**third, "category_id": 4}, *others]


@pytest.mark.usefixtures("no_pictures")
def test_bad_annotations_are_refused_with_their_ids_or_dropped_and_counted(tmp_path, capsys):
    data = tiny_scenes(tmp_path / "data")
    change(data, "train", annotations=spoiled)
    with pytest.raises(UserError, match="on_bad_annotation 'drop' leaves them out") as refused:
        train(quick_detector(), Request(data=data, out=tmp_path / "refused", quiet=True))
    sentence = str(refused.value)
    assert "degenerate box: 2 (1, 2)" in sentence
    assert "unknown category: 1 (3)" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "refused").exists()
    train(quick_detector(epochs=1, on_bad_annotation="drop"), Request(data=data, out=tmp_path / "dropped"))
    said = capsys.readouterr().err
    assert f"left out of {annotations_of(data, 'train')}: 2 annotations with a degenerate box" in said
    assert "1 annotations of an unknown category" in said
    assert f"left out of {annotations_of(data, 'val')}" not in said


@pytest.mark.parametrize("left", [[], [{"iscrowd": 1}]])
def test_a_validation_without_objects_is_refused_before_training(tmp_path, left):
    data = tiny_scenes(tmp_path / "data", train=2, val=2)
    change(data, "val", annotations=lambda all_: [{**all_[0], **crowd} for crowd in left])
    with pytest.raises(UserError, match=r"instances_val\.json has no annotated object to score"):
        train(quick_detector(), Request(data=data, out=tmp_path / "run", quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"data": "bundled"}, "it should be coco:DIR, where DIR is an existing folder"),
        ({"data": "coco:"}, "it should be coco:DIR, where DIR is an existing folder"),
        ({"data": "coco:nowhere"}, "there is no data source 'coco:nowhere'"),
        ({"data_dir": "."}, "data_dir is for sources of classification; detection reads coco:DIR"),
        ({"download": True}, "download is for sources of classification; detection reads coco:DIR"),
        ({"val_share": 0.0}, "val_share is for sources of classification; detection reads coco:DIR"),
        ({"init_from": "nowhere"}, "there is nothing at 'nowhere'"),
        ({"track": ("tensorbord",)}, "did you mean tensorboard"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(tmp_path, data, given, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        train(quick_detector(), Request(**{"data": data, "out": tmp_path / "run", "quiet": True, **given}))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "halonet_tyni"}, "did you mean halonet_tiny"),
        ({"model": "timm:resnet_8"}, "timm has no model 'resnet_8'"),
        ({"choices": ("stem=conv9",)}, "conv9"),
        ({"choices": ("widths=[0,0,0]",)}, "cannot be built with the choices"),
        ({"freeze": 9}, "freeze is 9, but the model has 4 parts"),
        ({"accumulate": 3}, "batch is 4, but it must be a multiple of 3"),
        ({"updates": 99}, "updates is 99, but 2 epochs of 2 updates have only 4"),
        ({"fpn_width": 0}, "fpn_width is 0; it must be at least 1"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(tmp_path, data, fields, sentence):
    with pytest.raises(UserError, match=sentence) as refused:
        train(quick_detector(**fields), Request(data=data, out=tmp_path / "run", quiet=True))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


# how training goes


@pytest.mark.usefixtures("no_pictures")
def test_the_running_average_is_what_is_evaluated_and_saved(tmp_path, data, capsys):
    plain, average = tmp_path / "plain", tmp_path / "average"
    for out, decay in ((plain, 0.0), (average, 0.75)):
        train(quick_detector(epochs=1, ema_decay=decay), Request(data=data, out=out, quiet=True))
    assert rows(plain, "losses.jsonl") == rows(average, "losses.jsonl")
    begun = tmp_path / "begun"
    train(quick_detector(epochs=1, lr_per_256=1e-30, weight_decay=0.0), Request(data=data, out=begun, quiet=True))
    name = "roi_heads.box_head.fc6.weight"
    at_first, at_last, between = (load_file(out / "weights.safetensors")[name] for out in (begun, plain, average))
    assert 0 < (between - at_first).norm() < (at_last - at_first).norm()
    scores = scores_of_evaluate(capsys, average, data, "--batch", "4")
    assert scores["mask"]["ap"] == pytest.approx(rows(average)[-1]["mask_ap"], abs=1e-6)


@pytest.mark.usefixtures("no_pictures")
def test_a_batch_in_parts_moves_the_weights_as_often(tmp_path, data, quick):
    train(quick_detector(**RANDOM, accumulate=2), Request(data=data, out=tmp_path / "run", quiet=True))
    parts, whole = rows(tmp_path / "run", "losses.jsonl"), rows(quick, "losses.jsonl")
    assert [(row["update"], row["lr"]) for row in parts] == [(row["update"], row["lr"]) for row in whole]
    # Proposals are sampled anew for each part, and batch norms see less.
    assert parts[0]["loss"] != whole[0]["loss"]
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.25)


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_that_is_not_finite_keeps_the_weights_of_the_epoch_before(tmp_path, data, monkeypatch):
    out, steps, whole = tmp_path / "run", [], detection.rcnn_losses

    def spoiled_losses(model, batch):
        steps.append(batch)
        losses = whole(model, batch)
        return {name: loss * math.nan if len(steps) == 4 else loss for name, loss in losses.items()}

    monkeypatch.setattr(detection, "rcnn_losses", spoiled_losses)
    with pytest.raises(UserError, match="became nan at update 2 of epoch 2; training stopped"):
        train(quick_detector(epochs=3), Request(data=data, out=out, quiet=True))
    saved = Detector.load(out)
    assert saved.epoch == 1
    assert all(tensor.isfinite().all() for tensor in saved.model.state_dict().values())


# what a run starts from


@pytest.mark.usefixtures("no_pictures")
def test_a_classification_run_fills_the_backbone(tmp_path, data, capsys):
    folders = colour_folders(tmp_path / "folders")
    before = quick_recipe(model="halonet_tiny", choices=("stem=conv7",), image_px=32, epochs=1)
    train(before, Request(data=str(folders), out=tmp_path / "before", quiet=True))
    capsys.readouterr()
    recipe = quick_detector(epochs=1, lr_per_256=1e-30, weight_decay=0.0)
    train(recipe, Request(data=data, out=tmp_path / "after", init_from=str(tmp_path / "before")))
    given, ours = (load_file(tmp_path / run / "weights.safetensors") for run in ("before", "after"))
    learned = [name for name in given if name.endswith("weight") and not name.startswith("head.")]
    assert len(learned) > 20
    assert all(torch.equal(given[name], ours[f"backbone.body.model.{name}"]) for name in learned)
    report = json.loads((tmp_path / "after" / "init.json").read_text())
    assert {"loaded", "dropped"} <= {entry["fate"] for entry in report["tensors"]}
    assert str(tmp_path / "before") in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_a_detection_run_fills_all_but_what_stands_for_other_classes(tmp_path, quick):
    data = tiny_scenes(tmp_path / "data", categories={5: "red", 6: "blue"}, train=4, val=2)
    recipe = quick_detector(epochs=1, lr_per_256=1e-30, weight_decay=0.0)
    train(recipe, Request(data=data, out=tmp_path / "after", init_from=str(quick), quiet=True))
    given, ours = (load_file(out / "weights.safetensors") for out in (quick, tmp_path / "after"))
    assert ours["roi_heads.box_predictor.cls_score.weight"].shape == (3, 16)
    other = {name for name in ours if not torch.equal(ours[name], given[name])}
    of_classes = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    # Batch norms go on counting.
    assert all(name.startswith(of_classes) or ".running_" in name or "num_batches" in name for name in other)
    assert len([name for name in other if name.startswith(of_classes)]) == 6
    request = Request(data=data, out=tmp_path / "wider", init_from=str(quick), quiet=True)
    with pytest.raises(UserError, match="give the same backbone and widths"):
        train(quick_detector(fpn_width=12), request)
    assert not (tmp_path / "wider").exists()
