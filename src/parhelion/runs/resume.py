"""How far the run in a folder is, and whether it may go on with this recipe and these images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from parhelion.errors import UserError
from parhelion.files.run_folder import CHECKPOINTS, FREE, check_same_recipe, holds_run, saved_recipe
from parhelion.runs.images import check_same_images
from parhelion.runs.places import same_data, same_start
from parhelion.runs.recipe import Recipe
from parhelion.runs.task import Images
from parhelion.train import loop
from parhelion.train.checkpoint import Checkpoint, Checkpoints


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run as it stands when its process starts: a new one, or one with a folder and perhaps a checkpoint."""

    folder: Path
    # The recipe with what the request adds to it, ready for JSON.
    resolved: Mapping[str, Any]
    checkpoints: Checkpoints
    # Whether the folder holds the run already.
    resumed: bool
    # The one to go on from.
    checkpoint: Checkpoint | None
    # Whether the images are now at another place, or have another name, than in the folder's recipe.
    moved: bool = False

    def state(self) -> loop.State:
        """Where the loop goes on."""
        return loop.State() if self.checkpoint is None else loop.State(**self.checkpoint.facts["state"])


def begin(
    folder: Path,
    resolved: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    resume: bool,
    recipe: Recipe,
    note: Callable[[str], None],
) -> Begun:
    """The run in `folder`; a new one where the folder holds none, or without `resume`.

    note: called with a sentence about each damaged checkpoint.
    Raises UserError where the run in `folder` was begun with another recipe, or by a newer parhelion.
    """
    checkpoints = Checkpoints(folder / CHECKPOINTS, accelerator, keep=recipe.keep)
    if not (resume and holds_run(folder)):
        return Begun(folder=folder, resolved=resolved, checkpoints=checkpoints, resumed=False, checkpoint=None)
    saved = saved_recipe(folder)
    start = saved.get("init_from") if same_start(saved, resolved) else resolved["init_from"]
    # Images are compared by `check_images`, not by their name.
    check_same_recipe(folder, {**resolved, "init_from": start}, free=(*FREE, "data"), defaults=recipe.defaults())
    return Begun(
        folder=folder,
        resolved=resolved,
        checkpoints=checkpoints,
        resumed=True,
        checkpoint=checkpoints.newest(note),
        moved=not same_data(saved, resolved),
    )


def check_images(begun: Begun, images: Images, note: Callable[[str], None]) -> None:
    """Raise UserError where the checkpoint of `begun` was trained on other images, or nothing shows that it was not.

    note: called with a sentence where the shards of a stream are shared among more or fewer readers than before.
    """
    if begun.checkpoint is None:
        return
    before, now = begun.checkpoint.facts["images"], images.facts
    check_same_images(before, now, images.source, note)
    # Without files there is no digest, and only the name can tell that the images are the same.
    if begun.moved and not now["digest"]:
        data = saved_recipe(begun.folder)["data"]
        raise UserError(
            f"{begun.folder} was begun with another recipe: data was {data!r} and is {begun.resolved['data']!r}; "
            "resume with what it was begun with, or start another run"
        )
