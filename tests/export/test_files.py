"""Files of `parhelion export`, written and used from the command line."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command_line import printed
from export.tiny_exports import CLASSES, ONE_CALL
from PIL import Image

from parhelion.classification.saved import Classifier
from parhelion.cli import main
from parhelion.data.transforms import Preprocessing
from parhelion.export.running import opened
from parhelion.models import create_model
from parhelion.speed import turns
from parhelion.speed.networks import settled

pytest.importorskip("onnxscript", reason="needs onnxscript, which exports to ONNX")
pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs ONNX files")
pytestmark = [pytest.mark.compile, pytest.mark.usefixtures("one_thread")]

# Networks with random weights tell little apart, so few images do.
FEW = ("--images", "16")


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "CPU_CLOCK", ONE_CALL)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the smallest network there is, for the bundled classes."""
    arguments = {"num_classes": len(CLASSES), "image_size": 16}
    torch.manual_seed(0)
    classifier = Classifier(
        model=settled(create_model("resnet_tiny", **arguments), 16),
        name="resnet_tiny",
        arguments=arguments,
        class_names=CLASSES,
        preprocessing=Preprocessing(image_px=16, mean=(0.3,) * 3, std=(0.25,) * 3),
        epoch=1,
        metrics={},
    )
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    classifier.save(path)
    return path


@pytest.fixture(scope="module")
def onnx_file(weights: Path) -> Path:
    """An ONNX file of it for images of any size."""
    file = weights.with_name("any.onnx")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(turns, "CPU_CLOCK", ONE_CALL)
        assert main(["export", str(weights), "--format", "onnx", "--out", str(file), *FEW]) == 0
    return file


@pytest.fixture(scope="module")
def preparing_file(weights: Path) -> Path:
    """An ONNX file of it that resizes images itself, unchecked."""
    file = weights.with_name("prepares.onnx")
    words = ("--format", "onnx", "--with-preprocessing", "--no-check", "--out", str(file))
    assert main(["export", str(weights), *words]) == 0
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo as people have it: PNG, JPEG, grey, with alpha, EXIF-turned, and very large."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((400, 300), Image.Resampling.BICUBIC)
    photo.save(folder / "photo.png")
    photo.save(folder / "photo.jpg", quality=95)
    photo.convert("L").save(folder / "grey.png")
    photo.putalpha(200)
    photo.save(folder / "alpha.png")
    photo = photo.convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=turned, quality=95)
    photo.resize((4000, 3000)).save(folder / "large.jpg")
    return folder


def predicted(capsys: pytest.CaptureFixture[str], file: Path, images: Path) -> list[dict[str, float]]:
    """By image, in the order of their names, the probability of each class."""
    answers = json.loads(printed(capsys, "predict", file, images, "--top", "10", "--json"))
    return [{p["class"]: p["probability"] for p in answer["predictions"]} for answer in answers]


def difference(first: list[dict[str, float]], second: list[dict[str, float]]) -> float:
    assert len(first) == len(second)
    return max(abs(one[name] - other[name]) for one, other in zip(first, second, strict=True) for name in CLASSES)


def test_a_file_scores_and_predicts_as_its_run_does(
    weights: Path, onnx_file: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (
        json.loads(printed(capsys, "evaluate", file, "--data", "bundled", "--json")) for file in (weights, onnx_file)
    )
    assert theirs["model"] == "resnet_tiny (any.onnx)"
    assert theirs["top1"] == ours["top1"]
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    both = (predicted(capsys, file, photos) for file in (weights, onnx_file))
    assert difference(*both) < 1e-5


def test_a_file_says_what_it_is_and_what_was_measured(onnx_file: Path, preparing_file: Path) -> None:
    facts = opened(onnx_file).facts
    assert (facts.model, facts.class_names, facts.fixed) == ("resnet_tiny", CLASSES, None)
    assert facts.preprocessing.mean == (0.3,) * 3
    assert facts.check["difference"] < 1e-5
    assert facts.check["images"] == 16 + 4 + 4 * (16 + 4)
    assert facts.versions["torch"] == version("torch")
    assert opened(preparing_file).facts.check == "unchecked"


WITHOUT_US = """
import sys
sys.modules["parhelion"] = sys.modules["torch"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(session.get_inputs()[0].shape, session.run(None, {"images": numpy.ones((3, 3, 41, 23), "float32")})[0].shape)
"""


def test_nothing_of_ours_is_needed_to_run_it(onnx_file: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_US, str(onnx_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['batch', 3, 'height', 'width'] (3, 10)\n"


def test_photos_of_every_kind_go_into_a_file_as_they_are(
    weights: Path, preparing_file: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (predicted(capsys, file, photos) for file in (weights, preparing_file))
    assert [max(one, key=one.__getitem__) for one in ours] == [max(one, key=one.__getitem__) for one in theirs]
    assert difference(ours, theirs) < 0.01


def test_a_file_that_prepares_images_takes_no_other_size(
    preparing_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(preparing_file), "--data", "bundled", "--image-px", "20"]) == 2
    assert "resizes images itself" in capsys.readouterr().err


def test_damaged_and_foreign_files_are_refused_in_a_sentence(
    onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    damaged, foreign = tmp_path / "damaged.onnx", tmp_path / "foreign.onnx"
    damaged.write_bytes(onnx_file.read_bytes()[:20_000])
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    for file, words in ((damaged, "is damaged, or no ONNX file"), (foreign, "was not written by parhelion export")):
        capsys.readouterr()
        assert main(["evaluate", str(file), "--data", "bundled"]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_where_it_disagrees_no_file_is_left_and_the_code_is_1(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.pt2"
    words = ("--format", "torch-export", "--out", str(file), "--max-difference", "0", "--fixed", *FEW)
    assert main(["export", str(weights), *words]) == 1
    said = capsys.readouterr()
    assert f"parhelion: {file} was not written: a probability differs by" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_program_of_torch_export_needs_nothing_of_ours(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fixed.pt2"
    words = ("--format", "torch-export", "--out", file, "--fixed", "--batch", "2", "--json", *FEW)
    report = json.loads(printed(capsys, "export", weights, *words))
    assert report["problems"] == []
    assert [(case["height"], case["batch"]) for case in report["float32"]["cases"]] == [(16, 2)]
    program = torch.export.load(file)
    assert not any("parhelion" in str(node.target) for node in program.graph.nodes)


@pytest.mark.thorough
def test_int8_reports_what_it_costs(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "int8.onnx"
    words = ("--format", "onnx", "--out", str(file), "--int8", "--max-drop", "5", "--fixed", "--json", *FEW)
    assert main(["export", str(weights), *words]) == 0
    report = json.loads(capsys.readouterr().out)["int8"]
    assert report["images"] == 2000
    assert report["layers"] + len(report["kept"]) == 14
    assert opened(file).facts.precision == "int8"
