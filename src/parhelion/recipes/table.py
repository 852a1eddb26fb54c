"""Every recipe by name."""

from collections.abc import Callable

from parhelion.errors import UserError, nearest
from parhelion.recipes import small
from parhelion.recipes.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "gsa_tiny": small.gsa_tiny,
    "halonet_tiny": small.halonet_tiny,
    "resnet_tiny": small.resnet_tiny,
}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; UserError with the nearest names where there is none."""
    if name not in RECIPES:
        offer = nearest(name, RECIPES) or f"; the recipes are {', '.join(RECIPES)}"
        raise UserError(f"there is no recipe {name!r}{offer}")
    return RECIPES[name]()
