"""`parhelion recipes [PATTERN]`."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import tyro

from parhelion.cli.arguments import parsed
from parhelion.errors import UserError, nearest
from parhelion.recipes.entry import TAGS, Entry
from parhelion.recipes.table import RECIPES, model_for_recipe

HEADINGS = ("recipe", "images", "multiply-adds", "expected", "source")
# A backward pass takes about two products for each of the forward pass.
FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List the recipes: a table on a terminal, tab-separated lines elsewhere. One whole name shows that recipe in full.

    images: training images, each counted as often as it is seen; for images of your own, how often each is seen.
    multiply-adds: what they cost, forward and backward (3 times forward), with 1000 classes and without evaluation, of
    a detector in its backbone alone; divide by your machine's multiply-adds per second. expected: the result of the
    source, and how far to trust it: paper, printed there; cited, printed in another paper; recalled, from memory and
    not checked; measured, seen here in one run.
    """

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Names to list, with * and ? as in a shell (quote them there)."""
    json: bool = False
    """Print the recipes as JSON, with exact counts and every field."""


def run(arguments: list[str]) -> None:
    """List recipes, or show one, as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion recipes")
    entries = [entry for name, entry in RECIPES.items() if fnmatchcase(name, chosen.pattern)]
    if not entries:
        offer = nearest(chosen.pattern, RECIPES) or "; parhelion recipes lists them all"
        raise UserError(model_for_recipe(chosen.pattern) or f"no recipe is called {chosen.pattern!r}{offer}")
    if chosen.json:
        print(json.dumps([_as_dict(entry) for entry in entries], indent=2))
    elif chosen.pattern in RECIPES:
        print(_shown(RECIPES[chosen.pattern]))
    elif sys.stdout.isatty():
        _print_table(entries)
    else:
        for entry in entries:
            print(*_cells(entry), sep="\t")


def _as_dict(entry: Entry) -> dict[str, Any]:
    per_image = FORWARD_AND_BACKWARD * entry.multiply_adds
    images = round(entry.passes * entry.images) if entry.images else None
    return {
        "name": entry.name,
        "title": entry.headline,
        "command": entry.command,
        "source": entry.source,
        "expected": entry.expected or None,
        "tag": entry.tag,
        "images": images,
        "multiply_adds_per_image": per_image,
        "multiply_adds": images and images * per_image,
        "recipe": entry().as_dict(),
    }


def _cells(entry: Entry) -> tuple[str, ...]:
    images, multiply_adds = _cost(entry)
    return entry.name, images, multiply_adds, entry.outcome or "-", entry.source


def _cost(entry: Entry) -> tuple[str, str]:
    """Images and multiply-adds of the whole run, in words; for the user's own images, of each of them."""
    per_image = FORWARD_AND_BACKWARD * entry.multiply_adds
    if not entry.images:
        return f"{entry.passes:g} for each", f"{entry.passes * per_image:.1e} for each"
    images = entry.passes * entry.images
    return f"{images:.1e}", f"{images * per_image:.1e}"


def _shown(entry: Entry) -> str:
    """All that is known about a recipe, and all of its fields."""
    images, multiply_adds = _cost(entry)
    fields = entry().as_dict()
    width = max(map(len, fields)) + 2
    lines = [f"  {field:<{width}}{json.dumps(value)}" for field, value in fields.items()]
    return "\n".join([entry.text, "", f"Images: {images}. Multiply-adds: {multiply_adds}.", "", *lines])


def _print_table(entries: Iterable[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in HEADINGS:
        words = heading in ("expected", "source")
        table.add_column(
            heading, justify="right" if heading in ("images", "multiply-adds") else "left", no_wrap=not words
        )
    for entry in entries:
        table.add_row(*_cells(entry))
    Console().print(table)
    tags = {entry.tag for entry in entries}
    Console().print(*(f"{tag}: {words}" for tag, words in TAGS.items() if tag in tags), sep="\n")
