"""Help, lists, and mistakes that need no model are answered without torch and timm, whose import takes seconds."""

import json
import subprocess
import sys

import pytest

from parhelion.cli import VERBS

COMMANDS = """
import io, json, sys
from parhelion.cli import main

answers, usual = [], (sys.stdout, sys.stderr)
for words in json.loads(sys.argv[1]):
    before = set(sys.modules)
    sys.stdout, sys.stderr = said = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in usual]
    code = main(words)
    for stream in said:
        stream.flush()
    heavy = sorted({"torch", "timm"} & (sys.modules.keys() - before))
    answers.append([code, *(stream.buffer.getvalue().decode() for stream in said), heavy])
sys.stdout, sys.stderr = usual
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    """Of each command line, by its words: exit code, output, errors and which of torch and timm it was first to import.

    All in one process, one after the other, which is begun in a folder with a few files.
    """
    folder = tmp_path_factory.mktemp("work")
    for name in ("file", "weights.pt", "damaged.safetensors"):
        (folder / name).touch()
    lines = [words for words, _ in (*ANSWERS, *MISTAKES)]
    command = [sys.executable, "-c", COMMANDS, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / "run").exists()
    return {" ".join(words): answer for words, answer in zip(lines, json.loads(done.stdout), strict=True)}


ANSWERS = [
    *(([verb, "--help"], f"parhelion {verb}") for verb in VERBS),
    (["--help"], "commands:"),
    (["--version"], "parhelion "),
    (["train", "halonet_tiny", "--help"], "--label-smoothing"),
    (["train", "mask_rcnn_finetune", "--help"], "--fpn-width"),
    (["models"], "halonet_h7\t67.400 M\t109.870 G\t600 px\t"),
    (["models", "gsa_*", "--json"], '"params": 18052856'),
    (["recipes"], "mask_rcnn_resnet50_se_coco\t"),
    (["recipes", "--json"], '"multiply_adds_per_image"'),
    (["recipes", "halonet_h0_imagenet"], "weight_decay"),
]


@pytest.mark.parametrize(("words", "part"), ANSWERS, ids=lambda value: " ".join(value)[:40])
def test_help_and_lists_need_no_torch(answers, words: list[str], part: str) -> None:
    code, out, err, heavy = answers[" ".join(words)]
    assert (code, err, heavy) == (0, "", [])
    assert part in out


TRAIN = ["train", "halonet_tiny", "--data", "bundled", "--out", "run"]
DETECT = ["train", "mask_rcnn_halonet_tiny", "--out", "run", "--data"]
EXPORT = ["export", "halonet_tiny", "--format"]
MISTAKES = [
    ([], "name a command"),
    (["trian"], "did you mean train?"),
    (["models", "halonet_h9"], "no model is called 'halonet_h9'; did you mean"),
    (["recipes", "halonet_tinny"], "did you mean halonet_tiny"),
    (["recipes", "halonet_h0"], "halonet_h0 is a model, not a recipe"),
    (["train"], "name a recipe"),
    (["train", "halonet_tinny"], "there is no recipe 'halonet_tinny'; did you mean halonet_tiny"),
    (["train", "halonet_tiny"], "needs --data and --out"),
    ([*TRAIN, "--epoch", "3"], "has no option --epoch; did you mean --epochs"),
    ([*TRAIN, "--epochs", "three"], "--epochs: invalid literal"),
    ([*TRAIN, "--epochs", "0"], "epochs is 0; it must be at least 1"),
    ([*TRAIN, "--std", "0"], "std is (0.0, 0.0, 0.0), but it should be more than 0"),
    ([*TRAIN, "--model", "halonet_tinny"], "there is no model 'halonet_tinny'; did you mean halonet_tiny"),
    ([*TRAIN, "--choices", "blok=4"], "halonet_tiny has no choice 'blok'; did you mean block"),
    ([*TRAIN, "--data", "nowhere"], "there is no data source 'nowhere'"),
    ([*TRAIN, "--data", "coco:scenes"], "expected a classification data set"),
    ([*TRAIN, "--val-share", "0.2"], "which 'bundled' is not"),
    ([*TRAIN, "--download"], "the source is 'bundled'"),
    ([*TRAIN, "--out", "file"], "--out file is a file"),
    ([*TRAIN, "--init-from", "nowhere"], "there is nothing at 'nowhere'; give a run folder"),
    ([*TRAIN, "--track", "wandbb"], "there is no tracker 'wandbb'; did you mean wandb?"),
    ([*DETECT, "coco:nowhere"], "there is no data source 'coco:nowhere'"),
    ([*DETECT, "bundled"], "it should be coco:DIR"),
    ([*DETECT, "coco:.", "--jitter", "2", "1"], "jitter is (2.0, 1.0); it must be two rising numbers above 0"),
    (["train", "--resume", "nowhere"], "nowhere holds no run to resume"),
    (["evaluate"], "needs DIR_OR_CHECKPOINT and --data"),
    (["evaluate", "nowhere", "--data", "bundled"], "there is no checkpoint or run folder nowhere"),
    (["evaluate", "nowhere", "--data", "bundled", "--batch", "0"], "batch is 0"),
    (["evaluate", "weights.pt", "--data", "bundled"], "is a pickle"),
    (["predict", "nowhere"], "needs one IMAGE or more"),
    (["predict", "nowhere", "nowhere.jpg"], "there is no image nowhere.jpg"),
    (["predict", "nowhere", "file"], "there is no checkpoint or run folder nowhere"),
    (["predict", "damaged.safetensors", "file"], "is not a whole safetensors file"),
    (["explain"], "needs RUN_OR_MODEL and IMAGE"),
    (["explain", "halonet_tinny", "file"], "no model, run folder or file 'halonet_tinny'; did you mean halonet_tiny"),
    (["explain", "", "file"], "there is no model, run folder or file ''"),
    (["explain", "halonet_tiny", "nowhere.jpg"], "the image nowhere.jpg does not exist"),
    (["explain", "halonet_tiny", "."], "the image . is a folder"),
    (["explain", "halonet_tiny", "file", "--compare", "halo"], "there is no model, run folder or file 'halo'"),
    (["explain", "halonet_tiny", "file", "--out", "page.png"], "--out page.png must end in .html"),
    (["explain", "halonet_tiny", "file", "--out", "no/page.html"], "there is no folder no"),
    (["explain", "halonet_tiny", "file", "--png", "sheet.bmp"], "--png sheet.bmp must end in .png, .pdf, .svg"),
    (["explain", "halonet_tiny", "file", "--pixel", "1", "2"], "--pixel is for the sheet of --png"),
    (["predict", "nowhere.onnx", "file"], "there is no file nowhere.onnx"),
    (["predict", "file.pt2", "file"], "there is no file file.pt2"),
    (["export"], "needs RUN_OR_MODEL"),
    ([*EXPORT, "onxn", "--out", "file.onnx"], "there is no format 'onxn'; did you mean onnx"),
    ([*EXPORT, "torch-export", "--out", "file.onnx"], "--out file.onnx should end in .pt2"),
    ([*EXPORT, "torch-export", "--out", "nowhere/file.pt2"], "there is no folder nowhere"),
    ([*EXPORT, "torch-export", "--out", "file.pt2", "--int8"], "--int8 is for --format onnx"),
    ([*EXPORT, "torch-export", "--out", "file.pt2", "--batch", "3"], "--batch is for --fixed"),
    ([*EXPORT, "torch-export", "--out", "file.pt2", "--images", "1"], "images is 1; it must be at least 2"),
    ([*EXPORT, "torch-export", "--out", "file.pt2", "--data", "nowhere"], "there is no data source 'nowhere'"),
    (["compare"], "needs one RUN or more"),
    (["compare", "nowhere"], "there is no run folder nowhere"),
    (["benchmark", "halonet_h9"], "there is no model 'halonet_h9'"),
    (["benchmark", "halonet_h0", "--against", "halonet_h9"], "there is no model 'halonet_h9'"),
    (["benchmark", "halonet_h0_imagenet"], "halonet_h0_imagenet is a recipe, not a model"),
    (["benchmark", "time:resnet50"], "names of parhelion models, timm:NAME, or accelerated:NAME"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_mistakes_that_need_no_model_are_told_without_torch(answers, words: list[str], sentence: str) -> None:
    code, out, err, heavy = answers[" ".join(words)]
    assert (code, out, heavy) == (2, "", [])
    assert err.startswith("parhelion: ")
    assert err.count("\n") == 1
    assert sentence in err
