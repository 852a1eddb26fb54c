"""Every recipe by name."""

from parhelion.errors import UserError, nearest
from parhelion.recipes import coco, imagenet, small, studies, transfer
from parhelion.recipes.entry import Entry
from parhelion.recipes.recipe import Recipe

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


def recipe(name: str) -> Recipe:
    """The recipe called `name`; UserError with the nearest names where there is none."""
    if name not in RECIPES:
        offer = nearest(name, RECIPES) or "; `parhelion recipes` lists them all"
        raise UserError(f"there is no recipe {name!r}{offer}")
    return RECIPES[name]()
