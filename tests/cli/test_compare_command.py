import json
import sys
from pathlib import Path

import pytest
from compare.pretend_runs import pretend_detection, pretend_run
from PIL import Image

from parhelion.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    made = [pretend_run(folder / f"r{seed}", seed=seed) for seed in (0, 3)]
    return [*map(str, made), str(pretend_run(folder / "hybrid", "halonet_tiny", choices=("conv_stages=[1]",)))]


def test_compare_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    assert "parhelion compare" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "put runs side by side" in capsys.readouterr().out


def test_runs_are_printed_and_drawn(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *runs]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:2] for line in said[1:3]] == [["resnet_tiny", "0, 3"], ["halonet_tiny", "0"]]
    assert said[-1] == "the picture is compare.png"
    assert Image.open(tmp_path / "compare.png").format == "PNG"


def test_on_a_terminal_there_is_a_table(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["compare", runs[0], runs[2], "--out", str(tmp_path / "c.png")]) == 0
    assert "multiply-adds" in capsys.readouterr().out


def test_json_has_exact_numbers(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *runs, "--json", "--out", str(tmp_path / "c.pdf")]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["seeds"], second["model"], second["finished"]) == ([0, 3], "halonet_tiny", True)
    last = [json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])["top1"] for run in runs[:2]]
    assert (first["top1"]["low"], first["top1"]["high"]) == (min(last), max(last))


def test_detectors_are_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [str(pretend_detection(tmp_path / f"d{seed}", seed=seed)) for seed in (0, 3)]
    assert main(["compare", *made, "--out", str(tmp_path / "c.png")]) == 0
    headings, row, *_ = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert (row[:2], headings[5]) == (["mask_rcnn resnet_tiny", "0, 3"], "mask AP")
    assert main(["compare", *made, "--json", "--out", str(tmp_path / "c.png")]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    last = [json.loads((Path(run) / "metrics.jsonl").read_text().splitlines()[-1])["mask_ap"] for run in made]
    assert (group["task"], group["mask_ap"]["low"], group["mask_ap"]["high"]) == ("detection", min(last), max(last))


def test_detectors_and_classifiers_are_not_mixed(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = str(pretend_detection(tmp_path / "detector"))
    assert main(["compare", runs[0], detector, "--out", str(tmp_path / "c.png")]) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), "compare those of one task at a time" in said) == (1, True), said
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "needs one RUN or more"),
        (("nowhere",), "there is no run folder nowhere"),
        (("--out", "c.txt"), "--out c.txt must end in .png"),
        (("--out", "nowhere/c.png"), "cannot write nowhere/c.png"),
        (("--outt", "c.png"), "did you mean --out"),
    ],
)
def test_mistakes_are_one_sentence(
    runs: list[str], words: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = runs[:1] if words[:1] and words[0].startswith("--") else []
    assert main(["compare", *given, *words]) == 2
    said = capsys.readouterr().err
    assert (said.count("\n"), sentence in said) == (1, True), said
