import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from compare.pretend_runs import pretend

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.errors import UserError
from parhelion.runs.request import Request

RECIPES = ("resnet_tiny", "gsa_tiny", "halonet_tiny", "hybrid_tiny", "gsa_tiny_content", "gsa_tiny_position")
LABELS = (
    "resnet_tiny",
    "gsa_tiny",
    "halonet_tiny",
    "halonet_tiny, conv_stages=[1]",
    "gsa_tiny, position=false",
    "gsa_tiny, content=false",
)
SCRIPT = Path(__file__).parents[2] / "scripts" / "evidence.py"


@pytest.fixture
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def go(evidence: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs the script, and says which folders it trained in."""

    def command(*words: str) -> list[str]:
        trained = []

        def train(recipe: ClassificationRecipe, request: Request) -> None:
            pretend(recipe, request.out, done=None, best=0.9, data=request.data)
            trained.append(request.out.name)

        monkeypatch.setattr(evidence, "train", train)
        monkeypatch.setattr(sys, "argv", ["scripts/evidence.py", *words])
        evidence.main()
        return trained

    return command


def test_every_network_is_trained_with_every_seed_and_only_once(
    go: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: tuple[Any, ...] = ("--out", str(tmp_path), "--epochs", "2", "--seeds", "0")
    assert len(go(*words)) == 6
    assert go(*words, "1") == [f"{name}-seed1" for name in RECIPES]
    text = (tmp_path / "evidence.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines()[2:8]]
    assert [row[0] for row in rows] == ["| " + label for label in LABELS]
    assert all("%)" in row[1] for row in rows)
    assert "fashion-mnist, epochs: 2, batch 64, 28 px; one like any other; several seeds: mean (lowest to high" in text
    assert (tmp_path / "evidence.png").stat().st_size > 10_000
    assert text in capsys.readouterr().out
    with pytest.raises(UserError, match="was begun with another recipe: epochs was 2 and is 3"):
        go("--out", str(tmp_path), "--epochs", "3")
