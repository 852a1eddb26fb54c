"""Every recipe by name."""

from parhelion.errors import UserError, nearest
from parhelion.recipes import coco, imagenet, small, studies, transfer
from parhelion.recipes.entry import Entry
from parhelion.runs.recipe import Recipe

ENTRIES = (
    *small.ENTRIES,
    transfer.OWN,
    *imagenet.ENTRIES,
    *studies.ENTRIES,
    *transfer.ENTRIES,
    *coco.ENTRIES,
    coco.OWN,
)
RECIPES: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


# Recipes that suit any model of classification, and what they are for.
OPEN = {"finetune": "from earlier weights", "halonet_tiny": "small images from scratch"}
SHOWN = 3


def recipe(name: str) -> Recipe:
    """The recipe called `name`; UserError with the nearest names, or with those that train the model `name`."""
    if name not in RECIPES:
        offer = nearest(name, RECIPES) or "; `parhelion recipes` lists them all"
        raise UserError(model_for_recipe(name) or f"there is no recipe {name!r}{offer}")
    return RECIPES[name]()


def model_for_recipe(name: str) -> str | None:
    """A sentence that names the recipes to train `name` with, where that is a model and no recipe."""
    # Brings torch, which a list of recipes need not wait for.
    from parhelion.models.catalog import list_models

    if name in RECIPES or name not in list_models():
        return None
    training = [found for found, entry in RECIPES.items() if entry().model == name]
    others = ", ".join(f"{found} ({purpose})" for found, purpose in OPEN.items())
    more = f" and {len(training) - SHOWN} more" if len(training) > SHOWN else ""
    own = f"train it with {', '.join(training[:SHOWN])}{more}, or by" if training else "train it by"
    return (
        f"{name} is a model, not a recipe; {own} parhelion train RECIPE --model {name}, "
        f"where RECIPE is {others} or another"
    )


def recipe_for_model(name: str) -> str | None:
    """A sentence that names the model of the recipe `name`, where that is a recipe and no model."""
    from parhelion.models.catalog import list_models

    if name not in RECIPES or name in list_models():
        return None
    return f"{name} is a recipe, not a model; its model is {RECIPES[name]().model}"
