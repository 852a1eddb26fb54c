"""The command line refuses in one sentence what a detector cannot do."""

import os

import pytest
from cli.command_line import printed
from runs.tiny_scenes import tiny_scenes

pytestmark = pytest.mark.usefixtures("one_thread")


def test_options_of_the_other_task_are_refused(capsys, refused, run, classifier, data, images, tmp_path):
    evaluate, predict = ("evaluate", run, "--data", data), ("predict", run, images[0])
    for option in (("--data-dir", tmp_path), ("--download",), ("--out", tmp_path / "x")):
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
        (("predict", "{run}", "{tmp}"), "there are no images in"),
        (("predict", "{run}", "{image}", "nowhere.jpg"), "there is no image nowhere.jpg"),
        (("predict", "{run}", "{image}", "--min-score", "1.5"), "min_score is 1.5"),
        (("predict", "{run}", "{image}", "--min-score", "nan"), "min_score is nan"),
        (("predict", "{run}", "{image}", "--top", "0"), "top is 0"),
        (("predict", "{run}", "{image}", "--out", "{image}"), "cannot be made"),
        (("predict", "{run}", "{image}", "--results", "nowhere/x.json"), "there is no folder nowhere"),
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
