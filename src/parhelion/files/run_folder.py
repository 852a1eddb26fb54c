"""The run folder: what was run, on what, and what came of it."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from parhelion.errors import UserError, printable
from parhelion.files.atomic import flush_to_disk, write_json, write_text

RECIPE = "recipe.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
LOSSES = "losses.jsonl"
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
INIT = "init.json"
CHECKPOINTS = "checkpoints"
# What may change when a run is resumed, since nothing computed depends on it; the images are compared themselves.
# The folder from which a run's paths are meant is there too.
BEGUN_IN = "begun_in"
FREE = ("workers", "keep", "checkpoint_updates", "data_dir", BEGUN_IN)
# What says where a run's images and first weights lie.
PLACES = ("data", "data_dir", "init_from", BEGUN_IN)


def check_out(folder: Path) -> None:
    """Raise UserError where `folder` cannot become a new run: it holds one already, is a file, or no text."""
    if printable(str(folder)) != str(folder):
        # Safetensors would write there, and not read what it wrote.
        raise UserError(f"--out {folder} is a name that is not UTF-8; name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder that does not exist yet")
    for name in (RECIPE, METRICS, WEIGHTS):
        if (folder / name).exists():
            raise UserError(
                f"--out {folder} already holds a run ({name}); name another folder, or add --resume to go on with it"
            )
    for parent in folder.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise UserError(f"--out {folder} cannot be made: {parent} is a file")
            return


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`."""
    return (folder / RECIPE).is_file()


def saved_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of the run in `folder`. Raises UserError where there is none or it is damaged."""
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} holds no run to resume: it has no {RECIPE}")
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{path} is damaged (no JSON object)")
    return recipe


def check_same_recipe(
    folder: Path, recipe: Mapping[str, Any], *, defaults: Mapping[str, Any], free: Collection[str] = FREE
) -> None:
    """Raise UserError where the run in `folder` was begun with another recipe; the fields `free` may differ.

    defaults: what a run had where its recipe is older than a field.
    """
    saved, ours = saved_recipe(folder), json.loads(json.dumps(dict(recipe)))
    # A share of the images to hold out is written only where it is given.
    ours.setdefault("val_share", None)
    saved = {**json.loads(json.dumps(dict(defaults))), **saved}
    unknown = sorted(saved.keys() - ours.keys() - set(free))
    if unknown:
        raise UserError(
            f"{folder / RECIPE} has the fields {', '.join(unknown)}, which this parhelion does not know; resume with "
            "the one that wrote it, or a newer one"
        )
    changed = [name for name in ours if name not in free and saved.get(name) != ours[name]]
    if changed:
        differences = ", ".join(f"{name} was {saved.get(name)!r} and is {ours[name]!r}" for name in changed)
        raise UserError(
            f"{folder} was begun with another recipe: {differences}; resume with what it was begun with, or start "
            "another run"
        )


def write_places(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Let the run in `folder` have its images and first weights where `recipe` has them; all else stays."""
    write_json(folder / RECIPE, {**saved_recipe(folder), **{name: recipe[name] for name in PLACES}})


class RunRecord:
    """One run's folder, opened for writing: recipe and environment at once, losses and metrics as they come."""

    def __init__(self, folder: Path, *, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Begin a run in `folder`, which must hold none."""
        check_out(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder} cannot be made: {error.strerror}") from error
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        write_json(folder / ENVIRONMENT, environment)
        # Last, since a folder with a recipe holds a run.
        write_json(folder / RECIPE, recipe)

    @classmethod
    def reopened(cls, folder: Path, *, update: int, epochs: int, environment: Mapping[str, Any]) -> "RunRecord":
        """Go on with the run in `folder` after `update` updates and `epochs` complete epochs; what is later goes.

        environment: what the run goes on in; the ones before stay in environment.json under `before`.
        """
        record = cls.__new__(cls)
        record.folder = folder
        record.rows = [row for row in metrics_rows(folder) if row["epoch"] <= epochs]
        losses = [row for row in _rows(folder / LOSSES, "update") if row["update"] <= update]
        _replace_lines(folder / METRICS, record.rows)
        _replace_lines(folder / LOSSES, losses)
        before = _environments(folder / ENVIRONMENT)
        write_json(folder / ENVIRONMENT, {**environment, "resumed_at_update": update, "before": before})
        return record

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one epoch's metrics to metrics.jsonl."""
        self.rows.append(dict(row))
        _replace_lines(self.folder / METRICS, self.rows)

    def add_losses(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the losses of some updates to losses.jsonl."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        path = self.folder / LOSSES
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def flush_losses(self) -> None:
        """Wait until the losses are on the disk. Raises UserError where they do not get there."""
        path = self.folder / LOSSES
        try:
            if path.exists():
                flush_to_disk(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error


def metrics_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where there is no such file. Raises UserError."""
    return _rows(folder / METRICS, "epoch")


def _rows(path: Path, count: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, each with a number `count`; a last line that was cut short is left out."""
    if not path.exists():
        return []
    # What follows the last line break was not written to its end.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_row(path, count, number, line) for number, line in enumerate(lines, start=1)]


def _row(path: Path, count: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"line {number} of {path} is damaged ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get(count), int):
        raise UserError(f"line {number} of {path} is damaged (it has no number {count!r})")
    return row


def _replace_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _environments(path: Path) -> list[Any]:
    """The environments that a run was in so far, oldest first."""
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [*last.pop("before", []), last] if isinstance(last, dict) else []
