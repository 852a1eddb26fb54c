"""A run's folder while it trains: how it begins or goes on, its losses and its checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from parhelion.errors import UserError
from parhelion.runs.places import same_data, same_data_dir, same_start
from parhelion.runs.recipe import Recipe
from parhelion.train import loop
from parhelion.train.checkpoint import Checkpoint, Checkpoints
from parhelion.files.environment import environment
from parhelion.train.state import Moving
from parhelion.files.run_folder import (CHECKPOINTS, FREE, RunRecord, check_same_recipe, holds_run, saved_recipe, write_places)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run as it stands when its process starts: new, or with a folder and perhaps a checkpoint to go on from."""

    folder: Path
    # The recipe with the source and what else was asked for, ready for JSON.
    resolved: Mapping[str, Any]
    checkpoints: Checkpoints
    resumed: bool
    checkpoint: Checkpoint | None
    # Whether it goes on with images that lie elsewhere, or are called otherwise.
    moved: bool = False

    @property
    def state(self) -> loop.State:
        """Where the loop goes on."""
        return loop.State() if self.checkpoint is None else loop.State(**self.checkpoint.facts["state"])

    @property
    def images(self) -> Mapping[str, Any]:
        """What told the run's images from others when the checkpoint was written; empty without one."""
        return {} if self.checkpoint is None else self.checkpoint.facts.get("images", {})


def begin(
    folder: Path,
    resolved: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    resume: bool,
    recipe: Recipe,
    note: Callable[[str], None],
) -> Begun:
    """The run in `folder` as it stands; a new one where it holds none or `resume` is not asked for.

    note: hears a sentence about each checkpoint that is damaged.
    Raises UserError where the run in `folder` was begun with another recipe, or by a newer parhelion.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS, accelerator, keep=recipe.keep)
    if not (resume and holds_run(folder)):
        return Begun(folder=folder, resolved=resolved, checkpoints=checkpoints, resumed=False, checkpoint=None)
    saved = saved_recipe(folder)
    start = saved.get("init_from") if same_start(saved, resolved) else resolved["init_from"]
    # The images are compared themselves.
    check_same_recipe(folder, {**resolved, "init_from": start}, free=(*FREE, "data"), defaults=recipe.defaults())
    return Begun(
        folder=folder,
        resolved=resolved,
        checkpoints=checkpoints,
        resumed=True,
        checkpoint=checkpoints.newest(note),
        moved=not same_data(saved, resolved),
    )


def check_moved(begun: Begun, images: Mapping[str, Any], note: Callable[[str], None]) -> None:
    """Raise UserError where a run would go on with a source of another name, and nothing tells that it is the same.

    images: what tells the images now, which class names and numbers and, where both have one, digests agree with.
    note: hears a sentence where the run is too old to have a digest of its images.
    """
    before = begun.images
    if not begun.moved or not before or (before.get("digest") and images.get("digest")):
        return
    data, now = saved_recipe(begun.folder)["data"], begun.resolved["data"]
    if "digest" in before:
        raise UserError(
            f"{begun.folder} was begun with another recipe: data was {data!r} and is {now!r}; resume with what it was "
            "begun with, or start another run"
        )
    note(
        f"{begun.folder} was begun with {data} and goes on with {now}: classes and number of images are the same, "
        "and the run has no digest of them that could tell more"
    )


class Keeping(ABC):
    """What the loop reports to, for any task: writes losses and checkpoints, in the first process."""

    def __init__(self, begun: Begun, moving: Moving, images: Mapping[str, Any]) -> None:
        """images: what tells the run's images from others, ready for JSON; kept in every checkpoint."""
        self.begun, self.moving, self._images = begun, moving, images
        self.accelerator = moving.accelerator
        self.record: RunRecord | None = None

    def open(self, *, seed: int, updates_per_epoch: int) -> loop.State:
        """Make or reopen the folder, and put everything back as the checkpoint has it; the state to go on from."""
        begun, state = self.begun, self.begun.state
        if begun.checkpoint is not None:
            self.moving.restore(begun.checkpoint)
        if not self.accelerator.is_main_process:
            return state
        facts = environment(seed=seed, processes=self.accelerator.num_processes)
        if begun.resumed:
            complete = max(0, state.update - 1) // updates_per_epoch
            if begun.moved or not same_data_dir(saved_recipe(begun.folder), begun.resolved):
                write_places(begun.folder, begun.resolved)
            self.record = RunRecord.reopened(begun.folder, update=state.update, epochs=complete, environment=facts)
        else:
            self.record = RunRecord(begun.folder, recipe=begun.resolved, environment=facts)
        return state

    def add_losses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the losses to the record."""
        if self.record is not None:
            self.record.add_losses(rows)

    def checkpoint(self, state: loop.State) -> None:
        """Save a checkpoint; everything that came before it is on the disk then."""
        if self.record is not None:
            self.record.flush_losses()
        facts = {"state": state.as_dict(), "moving": self.moving.facts(), "images": self._images}
        self.begun.checkpoints.save(state.update, self.moving.tensors(), facts)

    @abstractmethod
    def end_epoch(self, epoch: loop.Epoch) -> None:
        """Evaluate, save and record; comes after the checkpoint of the epoch's last update."""
