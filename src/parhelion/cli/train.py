"""`parhelion train RECIPE --data SOURCE --out DIR` and `parhelion train --resume DIR`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

import tyro

from parhelion.classification.recipe import ClassificationRecipe
from parhelion.cli.arguments import parsed
from parhelion.data.spelling import check_source, coco_folder
from parhelion.detection.recipe import DetectionRecipe
from parhelion.errors import UserError
from parhelion.files.run_folder import PLACES, check_out, holds_run, saved_recipe
from parhelion.models.catalog import check_choices
from parhelion.recipes.table import RECIPES, recipe, recipe_for_model
from parhelion.runs.places import TIMM, check_images_are_there, check_start, spelled_here
from parhelion.runs.recipe import Recipe
from parhelion.runs.request import Request
from parhelion.train.trackers import check_trackers

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
class ClassificationArguments:
    """A run that trains a classifier."""

    request: Request
    recipe: ClassificationRecipe


@dataclass(frozen=True, kw_only=True)
class DetectionArguments:
    """A run that trains a detector."""

    request: Request
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
    _check(chosen)
    # Brings torch, which help and mistakes need not wait for.
    from parhelion.runs.trainer import train

    train(chosen.recipe, chosen.request)


def _check(chosen: Arguments) -> None:
    """Raise UserError for what is wrong without a look at images or weights. The run looks again, for all its users."""
    recipe, request = chosen.recipe, chosen.request
    recipe.check()
    check_trackers(request.track)
    if isinstance(chosen, ClassificationArguments):
        check_source(request.data, data_dir=request.data_dir, download=request.download, val_share=request.val_share)
    else:
        coco_folder(request.data)
    # A detector may have a backbone of timm, of whose names timm alone knows.
    if isinstance(chosen, ClassificationArguments) or not recipe.model.startswith(TIMM):
        check_choices(recipe.model, recipe.model_choices())
    if request.init_from is not None and not request.resume:
        check_start(request.init_from)
    # Of several processes the first may have made the folder already.
    if not request.resume and "RANK" not in os.environ:
        check_out(request.out)


def _chosen(arguments: list[str]) -> Arguments:
    """What RECIPE and the options after it ask for."""
    name, *options = arguments
    if name.startswith("-"):
        raise UserError(f"name a recipe before {name}, such as {FIRST}; parhelion recipes lists them all")
    if name not in RECIPES and Path(name).is_dir():
        raise UserError(_folder_for_recipe(name))
    wanted = recipe(name)
    kind: Any = KINDS[wanted.task]
    default = kind(request=Request(data=tyro.MISSING, out=tyro.MISSING), recipe=wanted)
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
    quiet: bool = False
    """Print errors only."""


def _to_resume(arguments: list[str]) -> Arguments:
    """What the recipe in the folder of `--resume DIR` asks for."""
    chosen = parsed(Resumed, arguments, prog="parhelion train --resume DIR")
    saved = saved_recipe(chosen.resume)
    asked = _places(chosen, saved)
    for name in PLACES:
        saved.pop(name, None)
    val_share = saved.pop("val_share", None)
    # Runs of classification do not say so.
    kind: Any = KINDS.get(saved.pop("task", ClassificationRecipe.task))
    recipe_kind = get_type_hints(kind)["recipe"] if kind else Recipe
    known = {field.name for field in fields(recipe_kind)}
    if odd := ", ".join(sorted(saved.keys() - known)):
        raise UserError(f"the recipe in {chosen.resume} has {odd}; resume with the parhelion that wrote it, or newer")
    if chosen.workers is not None:
        saved["workers"] = chosen.workers
    request = Request(
        data=str(asked["data"]),
        data_dir=Path(asked["data_dir"]) if asked["data_dir"] else None,
        val_share=val_share,
        init_from=asked["init_from"],
        out=chosen.resume,
        resume=True,
        track=chosen.track,
        quiet=chosen.quiet,
    )
    return kind(request=request, recipe=recipe_kind.from_dict(saved))


def _places(chosen: Resumed, saved: Mapping[str, Any]) -> dict[str, str | None]:
    """Where the images of the run are, and the weights it started from: data, data_dir, init_from."""
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
