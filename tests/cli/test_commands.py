import json
import os
import pickle
import sys

import pytest
import torch
from cli.command_line import printed
from PIL import Image
from runs.colour_folders import COLOURS, colour_folders, truncate

from parhelion.classification import plots
from parhelion.cli import main
from parhelion.recipes.table import RECIPES

QUICK = ("--image-px", "16", "--epochs", "2", "--batch", "10", "--warmup-epochs", "0.5", "--lr-per-256", "0.02")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return colour_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "quick"
    torch.set_num_threads(1)
    assert main(["train", "resnet_tiny", "--data", str(data), "--out", str(out), *QUICK]) == 0
    return out


# help and listings


def test_help_and_version_are_printed(capsys):
    assert "train a recipe" in printed(capsys, "--help")
    assert printed(capsys, "--version").startswith("parhelion ")
    listed = printed(capsys, "train", "--help")
    assert all(name in listed for name in RECIPES)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "models"])
def test_every_verb_explains_itself(capsys, verb):
    assert f"parhelion {verb}" in printed(capsys, verb, "--help")


def test_the_help_of_a_recipe_shows_every_field_with_the_recipes_value(capsys):
    text = printed(capsys, "train", "gsa_tiny", "--help")
    recipe = RECIPES["gsa_tiny"]()
    for field, value in recipe.as_dict().items():
        # A switch that is on can be switched off.
        assert f"--{'no-' if value is True else ''}{field.replace('_', '-')}" in text
    assert f"(default: {recipe.lr_per_256})" in text
    assert "(default: gsa_tiny)" in text


def test_models_are_listed_as_lines_and_as_json(capsys):
    lines = printed(capsys, "models", "*_tiny").splitlines()
    assert [line.split("\t")[0] for line in lines] == ["gsa_tiny", "halonet_tiny", "resnet_tiny"]
    rows = json.loads(printed(capsys, "models", "halonet_h0", "--json"))
    assert rows[0]["name"] == "halonet_h0"
    assert rows[0]["params"] > 5e6


def test_on_a_terminal_models_and_predictions_are_tables(capsys, monkeypatch, run, data):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "multiply-adds" in printed(capsys, "models", "*_tiny")
    assert "probability" in printed(capsys, "predict", run, data / "val" / "red" / "1.png")


@pytest.mark.usefixtures("no_pictures")
def test_quiet_training_and_going_on_print_nothing(capsys, data, tmp_path):
    # Sharding would be remarked on: there is one process.
    words = ("--data", str(data), "--out", str(tmp_path / "run"), *QUICK, "--updates", "1", "--sharding", "fsdp")
    assert main(["train", "resnet_tiny", *words, "--quiet"]) == 0
    # Without its last picture the run is not finished.
    (tmp_path / "run" / plots.SHEET).unlink()
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    (tmp_path / "run" / plots.SHEET).unlink()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "going on with" in said.out
    assert "sharding is fsdp" in said.err


# training, evaluating and predicting agree


def test_evaluate_agrees_with_the_training_log(capsys, run, data):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for checkpoint in (run, run / "weights.safetensors"):
        scores = json.loads(printed(capsys, "evaluate", checkpoint, "--data", data, "--batch", "10", "--json"))
        assert (scores["loss"], scores["top1"], scores["top5"]) == (last["val_loss"], last["top1"], last["top5"])
    assert f"top-1  {100 * last['top1']:.2f}%" in printed(capsys, "evaluate", run, "--data", data, "--batch", "4")


def test_evaluate_scores_every_class_as_table_json_and_picture(capsys, run, data, tmp_path):
    out = tmp_path / "new" / "scores"
    text = printed(capsys, "evaluate", run, "--data", data, "--out", out)
    assert (out / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert f"the confusion matrix is in {out / 'confusion_matrix.png'}" in text
    rows = {line.split()[0]: line.split()[1:5] for line in text.splitlines() if line.startswith(tuple(COLOURS))}
    said = printed(capsys, "evaluate", run, "--data", data, "--json")
    scores = json.loads(said)
    assert [entry["class"] for entry in scores["classes"]] == list(rows) == list(COLOURS)
    for entry, (name, row) in zip(scores["classes"], rows.items(), strict=True):
        number = list(COLOURS).index(name)
        right, images = scores["confusion"][number][number], sum(scores["confusion"][number])
        assert entry["recall"] == right / images
        assert row[1] == f"{100 * right / images:.2f}%"
        assert row[3] == str(images) == "5"
    assert sum(scores["confusion"][n][n] for n in range(3)) / 15 == pytest.approx(scores["top1"])
    assert scores["mean_recall"] == pytest.approx(scores["top1"])
    # A row of the matrix is a line.
    assert f"    {json.dumps(scores['confusion'][0])},\n" in said


def test_evaluate_takes_another_split(capsys, refused, run, data, tmp_path):
    train = json.loads(printed(capsys, "evaluate", run, "--data", data, "--split", "train", "--json"))
    assert (train["images"], train["split"]) == (33, "train")
    assert "has no test/ inside; it holds train/, val/" in refused("evaluate", run, "--data", data, "--split", "test")
    three = colour_folders(tmp_path / "three")
    (three / "val").rename(three / "test")
    usual, test = (printed(capsys, "evaluate", run, "--data", three, *words) for words in ((), ("--split", "test")))
    assert f"resnet_tiny on {three}: 15 images" in usual
    assert f"resnet_tiny on {three}, split test: 15 images" in test
    assert usual.splitlines()[2:] == test.splitlines()[2:]


def test_pictures_of_an_evaluation_never_replace_those_of_a_run(refused, run, data, tmp_path):
    before = (run / "confusion_matrix.png").read_bytes()
    evaluate = ("evaluate", run, "--data", data, "--out")
    assert "holds a run, whose pictures would be written over" in refused(*evaluate, run)
    assert (run / "confusion_matrix.png").read_bytes() == before
    (tmp_path / "file").touch()
    assert "file cannot be a folder" in refused(*evaluate, tmp_path / "file")


def test_predict_agrees_with_evaluate(capsys, run, data):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    images = sorted((data / "val").glob("*/*"))
    said = json.loads(printed(capsys, "predict", run, *images, "--json", "--batch", "4"))
    assert [row["image"] for row in said] == [str(image) for image in images]
    right = [row["predictions"][0]["class"] == image.parent.name for row, image in zip(said, images, strict=True)]
    assert sum(right) / len(right) == pytest.approx(last["top1"])
    assert all(sum(p["probability"] for p in row["predictions"]) == pytest.approx(1, abs=1e-5) for row in said)


def test_predict_prints_tab_separated_lines(capsys, run, data):
    image = data / "val" / "red" / "1.png"
    (line,) = printed(capsys, "predict", run, image, "--top", "2").splitlines()
    name, *ranked = line.split("\t")
    assert name == str(image)
    assert set(ranked[::2]) < set(COLOURS)
    assert float(ranked[1]) >= float(ranked[3])


def test_predict_takes_folders(capsys, run, data):
    said = [line.split("\t")[0] for line in printed(capsys, "predict", run, data / "val", "--top", "1").splitlines()]
    assert said == [
        str(data / "val" / name / f) for name in COLOURS for f in ("0.jpg", "1.png", "2.jpg", "3.png", "4.jpg")
    ]


def test_predict_prints_each_answer_when_it_is_known(capsys, monkeypatch, run, data):
    from parhelion.classification import predict

    shown, opened = [], predict.try_open_image

    def watched(*arguments):
        shown.append(capsys.readouterr().out)
        return opened(*arguments)

    monkeypatch.setattr(predict, "try_open_image", watched)
    for words in ((), ("--json",), ("--jsonl",)):
        shown.clear()
        rest = printed(capsys, "predict", run, data / "val" / "red", "--batch", "2", *words)
        # Two at a time: nothing is printed between the images of a batch.
        assert [bool(text) for text in shown] == [False, False, True, False, True]
        answers = "".join(shown) + rest
        assert [answers.count(f"red/{n}.") for n in range(5)] == [1] * 5
        if words == ("--json",):
            assert len(json.loads(answers)) == 5
        if words == ("--jsonl",):
            assert [json.loads(line)["predictions"][0].keys() for line in answers.splitlines()]


@pytest.mark.parametrize("words", [(), ("--json",), ("--jsonl",)])
def test_one_bad_image_loses_no_answer(capsys, tmp_path, run, data, words):
    images = [data / "val" / "red" / "1.png", tmp_path / "bad.jpg", data / "val" / "blue" / "3.png"]
    Image.new("RGB", (30, 20), "red").save(images[1])
    truncate(images[1])
    whole = printed(capsys, "predict", run, images[0], images[2], *words)
    assert main(["predict", str(run), *map(str, images), *words]) == 2
    said = capsys.readouterr()
    assert said.out == whole
    named, last = said.err.splitlines()
    assert named.startswith(f"parhelion: cannot read the image {images[1]}: ")
    assert last == "parhelion: 1 of 3 images could not be read; with --on-bad-image skip they are left out"
    assert main(["predict", str(run), str(images[1]), *words]) == 2
    assert capsys.readouterr().out == ("[]\n" if words == ("--json",) else "")


def test_an_array_that_is_cut_short_is_json_all_the_same(capsys, monkeypatch, run, data):
    from parhelion.classification import predict

    opened, seen = predict.try_open_image, []

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return opened(*arguments)

    monkeypatch.setattr(predict, "try_open_image", interrupted)
    assert main(["predict", str(run), str(data / "val"), "--json", "--batch", "1"]) == 130
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_a_name_that_is_no_text_and_files_that_are_no_images_are_told(capsysbinary, run, data, tmp_path):
    folder = tmp_path / "phone"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write((data / "val" / "red" / "1.png").read_bytes())
    (folder / "1.HEIC").touch()
    for words, name in (((), b"phone/caf\xe9.png"), (("--jsonl",), b"phone/caf\\udce9.png")):
        assert main(["predict", str(run), str(folder), *words]) == 0
        said = capsysbinary.readouterr()
        assert name in said.out
        assert said.err.startswith(b"parhelion: left out: 1 file whose ending is not that of an image: .heic (1) ")


def test_predict_skips_a_bad_image_when_told_to(capsys, tmp_path, run, data):
    good, bad = data / "val" / "red" / "1.png", tmp_path / "bad.jpg"
    Image.new("RGB", (30, 20), "red").save(bad)
    truncate(bad)
    assert main(["predict", str(run), str(bad), str(good), "--on-bad-image", "skip"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(str(good))
    assert str(bad) in said.err


# mistakes


def test_unknown_names_get_the_nearest(refused, data, tmp_path):
    train = ("train", "resnet_tiny", "--data", data, "--out", tmp_path / "run")
    assert "did you mean train?" in refused("trian")
    assert "did you mean halonet_tiny" in refused("train", "halonet_tinny")
    assert "did you mean --epochs" in refused(*train, "--epoch", "3")
    assert "did you mean --lr-end-ratio or --lr-per-256?" in refused(*train, "--lr=3")
    assert "did you mean --lr-per-256" in refused(*train, "--lr_per_265", "3")
    assert "did you mean --batch" in refused("evaluate", "x", "--data", data, "--btach", "3")
    assert "did you mean halonet_tiny" in refused(*train, "--model", "halonet_tinny")
    assert "did you mean gsa_tiny" in refused("models", "gsa_tniy")
    assert not (tmp_path / "run").exists()


def test_a_model_in_place_of_a_recipe_says_how_it_is_trained(refused, data, tmp_path):
    for command in ("train", "recipes"):
        assert refused(command, "halonet_h0") == (
            "parhelion: halonet_h0 is a model, not a recipe; train it with halonet_h0_imagenet, or by parhelion train "
            "RECIPE --model halonet_h0, where RECIPE is finetune (from earlier weights), halonet_tiny (small images "
            "from scratch) or another\n"
        )
    assert "; train it by parhelion train RECIPE --model resnet26, where" in refused("train", "resnet26")
    assert "halonet_50_ls_ra and 10 more, or by parhelion" in refused("train", "halonet_50")
    train = ("train", "resnet_tiny", "--data", data, "--out", tmp_path / "run")
    for words in ((*train, "--model"), ("models",), ("benchmark",)):
        said = refused(*words, "halonet_h0_imagenet")
        assert "halonet_h0_imagenet is a recipe, not a model; its model is halonet_h0" in said
    assert not (tmp_path / "run").exists()


def test_a_folder_in_place_of_a_recipe_says_where_it_belongs(refused, run, data):
    said = refused("train", run, "--data", data)
    assert (
        f"{run} is a run, not a recipe; parhelion train --resume {run} goes on with it, and --init-from {run}" in said
    )
    assert f"{data} is a folder, not a recipe; give a recipe first" in refused("train", data)
    assert "run folder halonet_tiny; give the --out of parhelion train" in refused(
        "evaluate", "halonet_tiny", "--data", data
    )


def test_what_is_missing_is_named(refused):
    assert "name a command" in refused()
    assert "name a recipe, such as halonet_tiny" in refused("train")
    assert "name a recipe before --data" in refused("train", "--data", "x", "gsa_tiny")
    assert "needs --data and --out" in refused("train", "gsa_tiny")
    assert "needs DIR_OR_CHECKPOINT and --data" in refused("evaluate")
    assert "needs one IMAGE or more" in refused("predict", "x")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--epochs", "three"), "--epochs: invalid literal"),
        (("--epochs",), "--epochs"),
        (("--crop", "centre"), "'centre'"),
        (("--crop-scale", "0.5"), "--crop-scale"),
        (("surplus",), "surplus"),
        (("-q",), "-q"),
        (("--epochs", "0"), "epochs is 0; it must be at least 1"),
        (("--warmup-epochs", "99"), "below epochs"),
        (("--image-px", "5"), "image_px is 5; resnet_tiny takes images of at least"),
        (("--data", "nowhere"), "nowhere"),
        (("--data", "bundled", "--download"), "download"),
        (("--workers", "-1"), "workers is -1"),
        (("--accumulate", "3"), "batch is 10, but it must be a multiple of 3"),
        (("--updates", "99"), "updates is 99, but 2 epochs of 3 updates have only 6"),
        (("--freeze", "9"), "freeze is 9, but the model has 4 parts"),
        (("--choices", "drop_path=0.5"), "resnet_tiny has no choice 'drop_path'"),
        (("--choices", "widths=[0,0,0]"), "cannot be built with the choices widths=[0,0,0]"),
        (("--init-from", "nowhere"), "there is nothing at 'nowhere'"),
        (("--track", "tensorbord"), "did you mean tensorboard?"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(refused, data, tmp_path, words, sentence):
    assert sentence in refused("train", "resnet_tiny", "--data", data, "--out", tmp_path / "run", *QUICK, *words)
    assert not (tmp_path / "run").exists()


def test_bad_folders_of_images_are_one_sentence(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    train = ("train", "resnet_tiny", "--out", tmp_path / "run", *QUICK, "--data")
    assert "empty" in refused(*train, tmp_path / "empty")
    colour_folders(tmp_path / "differ")
    (tmp_path / "differ" / "val" / "red").rename(tmp_path / "differ" / "val" / "pink")
    assert "pink" in refused(*train, tmp_path / "differ")
    assert not (tmp_path / "run").exists()


def test_a_truncated_image_is_named_whoever_reads_it(refused, tmp_path):
    data = colour_folders(tmp_path / "data")
    truncate(data / "train" / "red" / "4.jpg")
    for workers in ("0", "1"):
        out = tmp_path / f"run{workers}"
        train = ("train", "resnet_tiny", "--data", data, "--out", out, *QUICK)
        assert "red/4.jpg" in refused(*train, "--workers", workers)


def test_a_folder_with_a_run_is_never_written_to(refused, run, data):
    def files():
        return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    before = files()
    assert "already holds a run" in refused("train", "resnet_tiny", "--data", data, "--out", run, *QUICK)
    assert files() == before


def test_a_loss_that_explodes_stops_and_keeps_weights_that_work(refused, capsys, data, tmp_path):
    out = tmp_path / "run"
    train = ("train", "resnet_tiny", "--data", data, "--out", out, *QUICK, "--optimizer", "sgd")
    sentence = refused(*train, "--lr-per-256", "1e8", "--clip-norm", "0", "--epochs", "9", "--warmup-epochs", "0")
    assert "of epoch" in sentence
    assert "the last good weights are kept" in sentence
    assert "top-1" in printed(capsys, "evaluate", out, "--data", data)


def test_checkpoints_that_cannot_be_used_are_one_sentence(refused, run, data, tmp_path):
    evaluate = ("evaluate", "--data", data)
    assert "nowhere" in refused(*evaluate, tmp_path / "nowhere")
    assert "holds no weights" in refused(*evaluate, tmp_path)
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"weight": 1}))
    assert "pickle" in refused(*evaluate, tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes((run / "weights.safetensors").read_bytes()[:-99])
    assert "not a whole safetensors file" in refused(*evaluate, tmp_path / "w.safetensors")
    (tmp_path / "weights.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
    (tmp_path / "recipe.json").write_text(json.dumps({"model": "gsa_tiny"}))
    assert "another architecture than gsa_tiny" in refused(*evaluate, tmp_path)


def test_classes_must_be_the_checkpoints(refused, run, tmp_path):
    two = colour_folders(tmp_path / "two", colours={name: COLOURS[name] for name in ("blue", "red")})
    assert "knows 3 classes, but" in refused("evaluate", run, "--data", two)
    assert "has 10" in refused("evaluate", run, "--data", "bundled")
    other = colour_folders(tmp_path / "other", colours={"blue": (0, 0, 9), "grass": (0, 9, 0), "red": (9, 0, 0)})
    assert "class 1 of the checkpoint is 'green', but" in refused("evaluate", run, "--data", other)


def test_images_that_cannot_be_used_are_one_sentence(refused, run, data, tmp_path):
    image = data / "val" / "red" / "1.png"
    (tmp_path / "none").mkdir()
    assert "there are no images in" in refused("predict", run, image, tmp_path / "none")
    assert "no image" in refused("predict", run, image, tmp_path / "missing.jpg")
    assert "choose one of them" in refused("predict", run, image, "--json", "--jsonl")
    assert "top is 0" in refused("predict", run, image, "--top", "0")
    assert "batch is 0" in refused("evaluate", run, "--data", data, "--batch", "0")
