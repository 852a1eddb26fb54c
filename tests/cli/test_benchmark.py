"""`parhelion benchmark`. Nothing here says how fast anything is."""

import json
from functools import partial
from unittest.mock import Mock

import pytest
import torch

from parhelion.cli import main
from parhelion.speed.networks import Network
from parhelion.speed.timing import WrongNumbersError

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("--image-px", "32", "--batch", "2", "--rounds", "1", "--threads", "1")


@pytest.fixture(autouse=True)
def memory_unread(monkeypatch):
    """A process for each candidate takes seconds, and has a test of its own."""
    monkeypatch.setattr("parhelion.speed.timing.peak_memory_mib", lambda candidate: None)


def test_a_report_is_printed_as_json_and_written_with_a_chart(capsys, tmp_path):
    out = tmp_path / "new" / "report"
    against = ("--against", "timm:test_resnet", "halonet_tiny")
    assert main(["benchmark", "resnet_tiny", *against, *QUICK, "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "benchmark.json").read_text())
    assert {path.name for path in out.iterdir()} == {"benchmark.json", "benchmark.png"}
    (case,) = report["cases"]
    assert [row["name"] for row in case["candidates"]] == ["resnet_tiny", "timm:test_resnet", "halonet_tiny"]
    first = case["candidates"][0]["seconds"]["median"]
    assert all(row["ratio"] == row["seconds"]["median"] / first for row in case["candidates"])
    assert report["machine"]["threads"] == 1
    assert report["versions"]["torch"]


def test_lines_are_printed_where_there_is_no_terminal(capsys):
    assert main(["benchmark", "timm:test_resnet", *QUICK, "--train", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    headings, row = said.out.splitlines()
    assert headings.split("\t")[0] == "candidate"
    assert row.split("\t")[0] == "timm:test_resnet"
    assert len(row.split("\t")) == len(headings.split("\t"))
    assert "checking timm:test_resnet" in said.err


def test_a_table_is_printed_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["benchmark", "timm:test_resnet", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "inference, 32 px, batch 2, float32" in said
    assert "GFLOP/s in float32" in said


@pytest.mark.compile
def test_each_model_is_compiled_too(capsys, monkeypatch):
    # Traced, but not made into C++, which takes half a minute.
    compiled = Mock(side_effect=partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch, "compile", compiled)
    assert main(["benchmark", "timm:test_resnet", *QUICK, "--compile", "--json"]) == 0
    compiled.assert_called()
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert [row["name"] for row in case["candidates"]] == ["timm:test_resnet", "timm:test_resnet, compiled"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["halonet_tinny"], "did you mean halonet_tiny"),
        (["resnet_tiny", "--against", "timm:resnet_50"], "timm has no model 'resnet_50'; did you mean resnet50"),
        (["resnet_tiny", "--against", "keras:resnet50"], "timm:NAME"),
        (["resnet_tiny", "--image-px", "1"], "resnet_tiny does not take images of 1x1 pixels"),
        (["accelerated:test_resnet", "--image-px", "64"], "finds nothing to change"),
        (["resnet_tiny", "--image-px", "0"], "--image-px is 0"),
        (["resnet_tiny", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (["resnet_tiny", "--train", "--batch", "1", "--image-px", "8"], "cannot train on one image of 8 pixels"),
        (["resnet_tiny", "--rounds", "-1"], "--rounds is -1"),
        (["resnet_tiny", "--threads", "0"], "--threads is 0"),
        (["resnet_tiny", "--dtype", "float16"], "float16"),
        (["resnet_tiny", "--agianst", "timm:resnet50"], "did you mean --against"),
        (["resnet_tiny", "--out", "FILE/report"], "is a file"),
        ([], "needs MODEL"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, tmp_path, arguments, sentence):
    (tmp_path / "file").touch()
    arguments = [word.replace("FILE", str(tmp_path / "file")) for word in arguments]
    assert main(["benchmark", *arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.splitlines()[-1].startswith("parhelion: ")
    assert said.out == ""


def test_wrong_numbers_are_refused_before_anything_is_timed(monkeypatch, tmp_path):
    def timed(*arguments, **options):
        raise AssertionError("timed although the numbers are wrong")

    monkeypatch.setattr("parhelion.speed.timing.in_turns", timed)
    monkeypatch.setattr(Network, "problem", lambda self, answer: "its output errs by 1, and 0 is allowed")
    with pytest.raises(WrongNumbersError, match="timm:test_resnet is not timed: its output errs by 1"):
        main(["benchmark", "timm:test_resnet", *QUICK, "--out", str(tmp_path / "report")])
    assert not (tmp_path / "report").exists()


def test_ctrl_c_leaves_nothing_behind(capsys, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("parhelion.speed.timing.in_turns", interrupted)
    assert main(["benchmark", "timm:test_resnet", *QUICK, "--out", str(tmp_path / "report")]) == 130
    assert capsys.readouterr().err.endswith("parhelion: stopped\n")
    assert not (tmp_path / "report").exists()
