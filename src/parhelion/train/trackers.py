"""Metrics to TensorBoard and Weights & Biases, besides the JSON lines that every run leaves."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from parhelion.errors import UserError, nearest, printable
from parhelion.files.atomic import write_text

NAMES = ("tensorboard", "wandb")
TENSORBOARD = "tensorboard"
# Holds the identity by which W&B knows a run that goes on.
WANDB_ID = "wandb_id.txt"
# What WANDB_MODE may say to keep everything on this machine.
OFFLINE = ("offline", "dryrun")

Past: TypeAlias = Sequence[tuple[int, Mapping[str, float]]]
"""What a run that goes on has added and keeps: steps, not falling, each with its row."""


class Trackers:
    """Where a run's metrics go besides its folder; a context manager. Only the first process of a run has one."""

    def __init__(self, open_ones: Sequence[GeneralTracker] = ()) -> None:
        self._open = list(open_ones)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, row: Mapping[str, float], step: int) -> None:
        """Hand on the numbers of `row` under their names; steps must not fall. Raises UserError on a full disk."""
        for tracker in self._open:
            try:
                tracker.log(dict(row), step=step)
            except OSError as error:
                raise UserError(f"the tracker {tracker.name} cannot write: {error.strerror or error}") from error

    def close(self) -> None:
        """Write and send what is left; closing again does nothing."""
        while self._open:
            self._open.pop().finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError for a tracker that nobody knows, whose package is missing, or that needs a login first."""
    for name in names:
        if name not in NAMES:
            offer = nearest(name, NAMES) or f"; the trackers are {', '.join(NAMES)}"
            raise UserError(f"there is no tracker {name!r}{offer}")
        if find_spec(name) is None:
            raise UserError(f"the tracker {name} needs the package {name}: pip install 'parhelion[track]'")
    if "wandb" in names:
        _check_wandb()


def open_trackers(
    names: Sequence[str], folder: Path, *, run_name: str, config: Mapping[str, Any], past: Past = ()
) -> Trackers:
    """The trackers `names`, ready for the run in `folder`.

    TensorBoard reads `folder/tensorboard`. W&B works as its own settings say: WANDB_MODE=offline writes to
    `folder/wandb`, for `wandb sync`; WANDB_PROJECT replaces the project `parhelion`. It never asks anything.

    config: JSON values that are shown beside the metrics.
    past: for a run that goes on: what TensorBoard shows up to there is written anew from it, and points after its
        last step, from before the interruption, do not stay.

    Raises UserError as `check_trackers` does, and where W&B cannot start.
    """
    check_trackers(names)
    # Accelerate's trackers log, and its log wants to know the process; where a run has an Accelerator, it does.
    PartialState()
    trackers = Trackers()
    try:
        for name in dict.fromkeys(names):
            opened = _tensorboard if name == "tensorboard" else _wandb
            trackers._open.append(opened(folder, run_name, config, past))
    except BaseException:
        trackers.close()
        raise
    return trackers


def _tensorboard(folder: Path, run_name: str, config: Mapping[str, Any], past: Past) -> GeneralTracker:
    place = folder / TENSORBOARD
    # TensorBoard reads files in the order of their names, which begin with the time: after the clock was set back it
    # would take the new points for the older ones, and drop the others.
    before = list(place.glob("events.out.tfevents.*"))
    tracker = TensorBoardTracker("", place, purge_step=0)
    try:
        tracker.start()
        # Markdown takes indented lines for code.
        text = printable(json.dumps(config, indent=4, ensure_ascii=False))
        tracker.writer.add_text(printable(run_name), "\n".join(f"    {line}" for line in text.splitlines()))
        for step, row in past:
            tracker.log(dict(row), step=step)
        tracker.writer.flush()
        for file in before:
            file.unlink()
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error
    return tracker


def _wandb(folder: Path, run_name: str, config: Mapping[str, Any], past: Past) -> GeneralTracker:
    import wandb

    file = folder / WANDB_ID
    if not file.exists():
        write_text(file, secrets.token_hex(4) + "\n")
    identity = file.read_text(encoding="utf-8").strip()
    # W&B cannot go on with an offline run, so that it is written anew.
    replaced = [run for run in (folder / "wandb").glob(f"offline-run-*-{identity}") if not list(run.glob("*.synced"))]
    replaced = replaced if _is_offline() else []
    for run in replaced:
        shutil.rmtree(run)
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "parhelion"),
        dir=str(folder),
        id=identity,
        name=printable(run_name),
        config={name: printable(value) if isinstance(value, str) else value for name, value in config.items()},
        # Offline it has no say, and W&B would complain.
        resume=None if _is_offline() else "allow",
        # What the run prints stays with the run.
        settings=wandb.Settings(console="off"),
    )
    try:
        tracker.start()
    except (wandb.errors.Error, OSError) as error:
        raise UserError(f"the tracker wandb cannot start: {' '.join(str(error).split())}") from error
    if replaced:
        for step, row in past:
            tracker.log(dict(row), step=step)
    return tracker


def _check_wandb() -> None:
    import wandb

    try:
        mode = wandb.setup().settings.mode
    except ValueError as error:
        reason = " ".join(str(error).partition(" [type=")[0].split())
        raise UserError(f"the settings of wandb, such as WANDB_MODE, cannot be used: {reason}") from error
    if mode not in (*OFFLINE, "disabled") and not wandb.login(prompt=False, verify=False):
        raise UserError("the tracker wandb needs a login: run `wandb login` once, or set WANDB_MODE=offline")


def _is_offline() -> bool:
    import wandb

    return wandb.setup().settings.mode in OFFLINE
