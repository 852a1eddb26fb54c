"""`parhelion train RECIPE --data SOURCE --out DIR`."""

from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path

import tyro

from parhelion.cli.arguments import parsed
from parhelion.errors import UserError
from parhelion.recipes.recipe import Recipe
from parhelion.recipes.table import RECIPES, recipe

HELP = """usage: parhelion train RECIPE --data SOURCE --out DIR [--FIELD VALUE ...]

Train a recipe on your images; every field of the recipe can be changed.

recipes:
{recipes}

parhelion train RECIPE --help lists the fields with the recipe's values.
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a run needs besides its recipe."""

    data: str
    """Images: a folder with train/ and val/ of class folders, `bundled`, or a dataset as timm names it
    (torch/..., hfds/..., wds/..., tfds/...)."""
    out: Path
    """Folder for recipe, metrics, weights and pictures; must not hold a run yet."""
    data_dir: Path | None = None
    """Where a torch/, hfds/, wds/ or tfds/ dataset lies on disk."""
    download: bool = False
    """Allow the dataset to be downloaded."""
    recipe: Recipe


def run(arguments: list[str]) -> None:
    """Train as `arguments` say."""
    if not arguments or arguments[0] in ("-h", "--help"):
        if not arguments:
            raise UserError(f"name a recipe: {', '.join(RECIPES)}")
        print(HELP.format(recipes="\n".join(_recipe_lines())), end="")
        return
    name, *options = arguments
    if name.startswith("-"):
        raise UserError(f"name a recipe before {name}: {', '.join(RECIPES)}")
    default = Arguments(data=tyro.MISSING, out=tyro.MISSING, recipe=recipe(name))
    chosen = parsed(
        Arguments,
        options,
        prog=f"parhelion train {name}",
        default=default,
        description=getdoc(RECIPES[name]),
    )
    # Brings torch, which the help above need not wait for.
    from parhelion.recipes.classification import train

    train(
        chosen.recipe,
        data=chosen.data,
        out=chosen.out,
        data_dir=chosen.data_dir,
        download=chosen.download,
    )


def _recipe_lines() -> list[str]:
    width = max(map(len, RECIPES)) + 2
    return [f"  {name:<{width}}{(getdoc(make) or '').splitlines()[0]}" for name, make in RECIPES.items()]
