"""The run folder: what was run, on what, and what came of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.errors import UserError
from parhelion.train.atomic import write_json, write_text

RECIPE = "recipe.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
WEIGHTS = "weights.safetensors"


def check_out(folder: Path) -> None:
    """Raise UserError where `folder` cannot become a new run: it holds one already, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder that does not exist yet")
    for name in (RECIPE, METRICS, WEIGHTS):
        if (folder / name).exists():
            raise UserError(f"--out {folder} already holds a run ({name}); name another folder")
    for parent in folder.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"--out {folder} cannot be made: {parent} is a file")
            return


class RunRecord:
    """One run's folder, opened for writing: recipe and environment at once, metrics epoch by epoch."""

    def __init__(self, folder: Path, *, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        check_out(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be made: {error.strerror}") from error
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        write_json(folder / RECIPE, recipe)
        write_json(folder / ENVIRONMENT, environment)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one epoch's metrics to metrics.jsonl."""
        self.rows.append(dict(row))
        lines = [json.dumps(row, allow_nan=False) for row in self.rows]
        write_text(self.folder / METRICS, "\n".join(lines) + "\n")
