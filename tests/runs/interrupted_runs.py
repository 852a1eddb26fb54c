"""What tests of runs that are interrupted and go on share: how far a run is, and whether two runs are the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from parhelion.train import loop

TIMES = {"seconds", "data_wait_seconds", "images_per_second"}


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics or losses, without what differs between two equal runs."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """Two runs have the same weights, metrics and losses to the last bit."""
    for name in ("weights.safetensors", "best.safetensors"):
        one, other = load_file(ours / name), load_file(theirs / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    for name in ("metrics.jsonl", "losses.jsonl"):
        assert rows(ours / name) == rows(theirs / name)


def saved(out: Path) -> list[str]:
    """The checkpoints of a run by name, oldest first."""
    return sorted(folder.name for folder in (out / "checkpoints").iterdir())


def stop_at(monkeypatch: pytest.MonkeyPatch, update: int, act: Callable[[], object]) -> None:
    """Let `act` happen during the training step of that update, the first time."""
    step, done = loop._update, []

    def watched(run, parts, watch):
        if run.state.update == update and not done:
            done.append(update)
            act()
        return step(run, parts, watch)

    monkeypatch.setattr(loop, "_update", watched)
