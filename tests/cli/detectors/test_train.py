"""The command line trains detectors."""

import pytest
from cli.command_line import printed
from cli.quick_words import QUICK, TRAIN
from runs.tiny_scenes import annotations_of, change, tiny_scenes

from parhelion.cli import main
from parhelion.recipes.table import recipe

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.usefixtures("no_pictures")
def test_training_prints_an_epoch_in_a_line_and_what_was_clipped_or_left_out(capsys, tmp_path):
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
