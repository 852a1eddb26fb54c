"""Folders as people have them: not split yet, with names that are no text, in the home folder."""

import io
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli.command_line import printed
from PIL import Image
from runs.colour_folders import colour_folders, truncate
from runs.interrupted_runs import rows, stop_at

from parhelion.cli import main
from parhelion.cli.arguments import parsed
from parhelion.cli.compare import Arguments as Compare
from parhelion.cli.evaluate import Arguments as Evaluate
from parhelion.cli.predict import Arguments as Predict
from parhelion.cli.train import ClassificationArguments, Resumed
from parhelion.data.sources.held_out import HELD_OUT

QUICK = ("--image-px", "16", "--epochs", "2", "--batch", "10", "--warmup-epochs", "0.5", "--checkpoint-updates", "1")
ODD = os.fsdecode(b"caf\xe9")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of class folders; its own name, a good file and a truncated one are no UTF-8."""
    split = colour_folders(tmp_path_factory.mktemp("colours"))
    flat = split.parent / f"flat {ODD}"
    (split / "train").rename(flat)
    (flat / "red/0.jpg").rename(flat / f"red/{ODD}.jpg")
    (flat / "blue/1.png").rename(flat / f"blue/{ODD}.png")
    truncate(flat / f"blue/{ODD}.png")
    return flat


@pytest.fixture(scope="module")
def run(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on it that was stopped after a checkpoint, and resumed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ("--data", str(odd), "--val-share", "0.25", "--out", str(out), "--on-bad-image", "skip", *QUICK)
    words += ("--track", "tensorboard") if find_spec("tensorboard") else ()
    with pytest.MonkeyPatch.context() as monkeypatch:
        # A terminal of UTF-8, which refuses what is no text.
        for stream in ("stdout", "stderr"):
            monkeypatch.setattr(sys, stream, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        stop_at(monkeypatch, 3, _interrupt)
        assert main(["train", "resnet_tiny", *words]) == 130
        assert main(["train", "--resume", str(out)]) == 0
        sys.stdout.flush()
        said = sys.stdout.buffer.getvalue().decode()
    assert said.count("caf\\udce9: 3 classes, images: 24 in train, 9 in val\n") == 2
    assert "skipped: cannot read the image" in said
    return out


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_keeps_names_that_are_no_text(run: Path, odd: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    assert (recipe["data"], recipe["val_share"]) == (str(odd), 0.25)
    assert json.loads((run / "environment.json").read_text(encoding="utf-8"))["resumed_at_update"] == 3
    held = json.loads((run / HELD_OUT).read_text(encoding="utf-8"))["images"]
    assert len(held) == 9
    assert all((odd / name).stat().st_size == size for name, size in held.items())
    assert all((run / picture).exists() for picture in ("learning_curves.png", "predictions.png"))


def test_evaluation_scores_what_the_run_held_out(
    run: Path, odd: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    last = rows(run / "metrics.jsonl")[-1]
    assert main(["evaluate", str(run), "--data", str(odd), "--on-bad-image", "skip", "--json", "--batch", "10"]) == 0
    scores = json.loads(capsysbinary.readouterr().out)
    assert scores["loss"] == pytest.approx(last["val_loss"])
    assert scores["images"] + scores["skipped"] == 9
    assert "24 images that the run in" in scores["remarks"][0]
    assert main(["evaluate", str(run / "weights.safetensors"), "--data", str(odd), "--on-bad-image", "skip"]) == 0
    line, *_ = capsysbinary.readouterr().out.split(b"\n")
    assert line.startswith(os.fsencode(odd) + b": 3 classes, images: 9 in val; left out: 24 images that the run in")


def test_predictions_name_the_bytes_of_a_file(run: Path, odd: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    image = odd / f"red/{ODD}.jpg"
    assert main(["predict", str(run), str(image)]) == 0
    assert b"red/caf" in capfdbinary.readouterr().out
    assert main(["predict", str(run), str(image), "--json"]) == 0
    (said,) = json.loads(capfdbinary.readouterr().out.decode())
    assert said["image"] in (str(image), str(image).encode("utf-8", "backslashreplace").decode())


def test_resuming_with_another_share_is_refused(run: Path, odd: Path, refused) -> None:
    train = ("train", "resnet_tiny", "--out", run, "--resume", "--data", odd, "--on-bad-image", "skip", *QUICK)
    assert "val_share was 0.25 and is 0.5" in refused(*train, "--val-share", "0.5")
    assert "val_share was 0.25 and is None" in refused(*train)


def test_a_run_does_not_go_on_when_it_would_hold_out_other_images(run: Path, odd: Path, refused) -> None:
    held = next(iter(json.loads((run / HELD_OUT).read_text(encoding="utf-8"))["images"]))
    (odd / held).rename(odd / f"{held}.png")
    sentence = refused("train", "--resume", run)
    (odd / f"{held}.png").rename(odd / held)
    assert "the run held out 9 images of" in sentence
    assert "resume with the images it was begun with" in sentence


def test_one_class_is_refused_before_the_run_begins(refused, tmp_path: Path) -> None:
    data = colour_folders(tmp_path / "data", colours={"red": (200, 0, 0)})
    sentence = refused("train", "resnet_tiny", "--data", data, "--out", tmp_path / "run", *QUICK)
    assert "holds one class folder, red, and with one class there is nothing to learn" in sentence
    assert not (tmp_path / "run").exists()


def test_a_run_folder_must_be_text(refused, tmp_path: Path, odd: Path) -> None:
    sentence = refused("train", "resnet_tiny", "--data", odd, "--val-share", "0.2", "--out", tmp_path / ODD, *QUICK)
    assert r"caf\udce9 is a name that is not UTF-8; name another folder" in sentence
    assert not (tmp_path / ODD).exists()


def test_missing_classes_are_named_by_evaluation(run: Path, tmp_path: Path, refused, capsys) -> None:
    data = colour_folders(tmp_path / "data")
    for image in (data / "val/green").iterdir():
        image.unlink()
    (data / "val/green").rmdir()
    sentence = refused("evaluate", run, "--data", data)
    assert "the checkpoint knows 3 classes, but" in sentence
    assert "has 2: green missing (a folder of a class may be empty)" in sentence
    (data / "val/green").mkdir()
    assert f"no images of green in '{data / 'val'}'" in printed(capsys, "evaluate", run, "--data", data)


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        (Evaluate, ["~/run", "--data=~/x", "--data-dir=~/d", "--results=~/r.json"], ["run", "x", "d", "r.json"]),
        (Evaluate, ["~/run", "--data=coco:~/x"], ["run", "coco:x"]),
        (Predict, ["~/run", "~/a.png", "--out=~/o", "--results=~/r.json"], ["run", "a.png", "o", "r.json"]),
        (Compare, ["~/run", "--out=~/c.png"], ["run", "c.png"]),
        (Resumed, ["--resume=~/run"], ["run"]),
    ],
)
def test_the_home_folder_is_found_in_every_option(kind, words, expected, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    said = repr(parsed(kind, words, prog="parhelion"))
    for name in expected:
        prefix, _, path = name.rpartition(":")
        assert f"'{prefix}{':' if prefix else ''}/home/me/{path}'" in said
    assert "~" not in said


def test_training_finds_the_home_folder(monkeypatch, refused) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    words = ["resnet_tiny", "--data=~/x", "--out=~/run", "--data-dir=~/d", "--init-from=~/w.safetensors"]
    assert "/home/me/x" in refused("train", "resnet_tiny", "--data=~/x", "--out=~/run")
    from parhelion.cli.train import _chosen

    chosen = _chosen(words)
    assert isinstance(chosen, ClassificationArguments)
    assert (chosen.data, str(chosen.out), str(chosen.data_dir)) == ("/home/me/x", "/home/me/run", "/home/me/d")
    assert chosen.init_from == "/home/me/w.safetensors"


def test_a_heic_file_gets_a_hint(run: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from parhelion.data import images

    monkeypatch.setattr(images, "reads_heif", lambda: False)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    assert main(["predict", str(run), str(tmp_path / "phone.heic")]) == 2
    assert "it is a HEIF image, which Pillow cannot read alone; convert" in capsys.readouterr().err


def test_output_of_another_encoding_is_escaped(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "größe.png"
    Image.new("RGB", (20, 30), "red").save(image)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert main(["predict", str(run), str(image)]) == 0
    sys.stdout.flush()
    assert b"gr\\xf6\\xdfe.png\t" in sys.stdout.buffer.getvalue()
    assert sys.stdout.errors == "strict"
