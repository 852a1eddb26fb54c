"""`parhelion train RECIPE --data SOURCE --out DIR` and `parhelion train --resume DIR`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

import tyro

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.cli.arguments import parsed
from parhelion.detection.recipe import DetectionRecipe
from parhelion.errors import UserError
from parhelion.files.run_folder import PLACES, holds_run, saved_recipe
from parhelion.recipes.table import RECIPES, recipe, recipe_for_model
from parhelion.runs.recipe import Recipe

FIRST = "halonet_tiny"

HELP = """usage: parhelion train RECIPE --data SOURCE --out DIR [--FIELD VALUE ...] [--resume]
       parhelion train --resume DIR [--data SOURCE] [--data-dir DIR]

Train a recipe on your images; every field of the recipe can be changed. With --resume a run that was stopped, or
killed, goes on from its last good checkpoint; where DIR holds none yet, the first form begins one. Where its images
were moved, --data and --data-dir say where they are now.

recipes:
{recipes}

parhelion train RECIPE --help lists the fields with the recipe's values.
"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run needs besides its recipe."""

    data: str
    """Images. To classify: a folder with train/ and val/ of class folders, or of class folders alone with --val-share;
    `bundled`, `fashion-mnist`, or a dataset as timm names it (torch/..., hfds/..., wds/..., tfds/...). To detect:
    coco:DIR, with annotations in COCO's format."""
    out: Path
    """Folder for recipe, metrics, weights and pictures; must not hold a run yet."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    download: bool = False
    """Allow the dataset to be downloaded."""
    init_from: str | None = None
    """Weights to start from: a run folder, a .safetensors file, hf-hub:OWNER/NAME or timm:NAME; they are adapted to
    other classes, channels, image sizes, blocks and halos. A detector takes those of its backbone, or a detector's:
    also torchvision:maskrcnn_resnet50_fpn, trained on COCO, over --model resnet50."""
    resume: bool = False
    """Go on with the run in --out, if there is one."""
    track: tuple[str, ...] = ()
    """Where metrics go besides the run's folder: tensorboard, wandb."""


@dataclass(frozen=True, kw_only=True)
class ClassificationArguments(Asked):
    """A run that trains a classifier."""

    val_share: float | None = None
    """Share of each class to hold out and validate on, such as 0.2, of a folder that holds the class folders itself."""
    recipe: ClassificationRecipe


@dataclass(frozen=True, kw_only=True)
class DetectionArguments(Asked):
    """A run that trains a detector."""

    recipe: DetectionRecipe


Arguments: TypeAlias = ClassificationArguments | DetectionArguments
# By the task of a recipe, what a command line for it holds.
KINDS: dict[str, type[Arguments]] = {
    ClassificationRecipe.task: ClassificationArguments,
    DetectionRecipe.task: DetectionArguments,
}


def run(arguments: list[str]) -> None:
    """Train as `arguments` say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise UserError(f"name a recipe, such as {FIRST}; parhelion recipes lists them all")
        print(HELP.format(recipes="\n".join(_recipe_lines())), end="")
        return
    chosen = _to_resume(arguments) if arguments[0].partition("=")[0] == "--resume" else _chosen(arguments)
    # Brings torch, which the help above need not wait for.
    task = import_module(f"parhelion.{chosen.recipe.task}.task")
    own = {"val_share": chosen.val_share} if isinstance(chosen, ClassificationArguments) else {}
    task.train(
        chosen.recipe,
        **own,
        data=chosen.data,
        out=chosen.out,
        data_dir=chosen.data_dir,
        download=chosen.download,
        init_from=chosen.init_from,
        resume=chosen.resume,
        track=chosen.track,
    )


def _chosen(arguments: list[str]) -> Arguments:
    """What RECIPE and the options after it ask for."""
    name, *options = arguments
    if name.startswith("-"):
        raise UserError(f"name a recipe before {name}, such as {FIRST}; parhelion recipes lists them all")
    if name not in RECIPES and Path(name).is_dir():
        raise UserError(_folder_for_recipe(name))
    wanted = recipe(name)
    kind: Any = KINDS[wanted.task]
    default = kind(data=tyro.MISSING, out=tyro.MISSING, recipe=wanted)
    chosen: Arguments = parsed(
        kind,
        options,
        prog=f"parhelion train {name}",
        default=default,
        description=RECIPES[name].text,
    )
    if mistaken := recipe_for_model(chosen.recipe.model):
        raise UserError(f"--model: {mistaken}")
    return chosen


def _folder_for_recipe(name: str) -> str:
    """What to do with a folder in place of a recipe."""
    if holds_run(Path(name)):
        return (
            f"{name} is a run, not a recipe; parhelion train --resume {name} goes on with it, and --init-from {name} "
            "after a recipe starts another from its weights"
        )
    return f"{name} is a folder, not a recipe; give a recipe first, such as parhelion train {FIRST} --data {name}"


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """Go on with a run as it was begun."""

    resume: Path
    """Folder of the run."""
    data: str | None = None
    """Where its images are now, if they were moved; they must be the same."""
    data_dir: Path | None = None
    """Where fashion-mnist or a torch/, hfds/, wds/ or tfds/ dataset lies now, if it was moved."""
    workers: int | None = None
    """Processes that read images; those of the recipe if not given."""
    track: tuple[str, ...] = ()
    """Where metrics go besides the run's folder: tensorboard, wandb."""


def _to_resume(arguments: list[str]) -> Arguments:
    """What the recipe in the folder of `--resume DIR` asks for."""
    chosen = parsed(Resumed, arguments, prog="parhelion train --resume DIR")
    saved = saved_recipe(chosen.resume)
    asked = _places(chosen, saved)
    for name in PLACES:
        saved.pop(name, None)
    own = {name: saved.pop(name) for name in ("val_share",) if name in saved}
    # Runs of classification do not say so.
    kind: Any = KINDS.get(saved.pop("task", ClassificationRecipe.task))
    recipe_kind = get_type_hints(kind)["recipe"] if kind else Recipe
    known = {field.name for field in fields(recipe_kind)}
    if odd := ", ".join(sorted(saved.keys() - known)):
        raise UserError(f"the recipe in {chosen.resume} has {odd}; resume with the parhelion that wrote it, or newer")
    if chosen.workers is not None:
        saved["workers"] = chosen.workers
    return kind(
        **own,
        data=str(asked["data"]),
        data_dir=Path(asked["data_dir"]) if asked["data_dir"] else None,
        init_from=asked["init_from"],
        out=chosen.resume,
        resume=True,
        track=chosen.track,
        recipe=recipe_kind.from_dict(saved),
    )


def _places(chosen: Resumed, saved: Mapping[str, Any]) -> dict[str, str | None]:
    """Where the images of the run are, and the weights it started from: data, data_dir, init_from."""
    # Bring torch, which a help text need not wait for.
    from parhelion.runs.places import check_images_are_there, spelled_here

    if not isinstance(saved.get("data"), str):
        raise UserError(f"the recipe in {chosen.resume} has no data; resume with the parhelion that wrote it, or newer")
    places = spelled_here(saved)
    if chosen.data is None and chosen.data_dir is None:
        check_images_are_there(chosen.resume, places)
    if chosen.data is not None:
        places["data"] = chosen.data
    if chosen.data_dir is not None:
        places["data_dir"] = str(chosen.data_dir)
    return places


def _recipe_lines() -> list[str]:
    width = max(map(len, RECIPES)) + 2
    return [f"  {name:<{width}}{entry.headline}" for name, entry in RECIPES.items()]
