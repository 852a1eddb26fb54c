"""`parhelion models [PATTERN]`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from parhelion.cli.arguments import parsed
from parhelion.errors import UserError, nearest
from parhelion.models.catalog import ModelInfo, list_models, model_info
from parhelion.recipes.table import recipe_for_model

HEADINGS = ("model", "parameters", "multiply-adds", "input", "source")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List the models: a table on a terminal, tab-separated lines elsewhere."""

    pattern: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATTERN")] = "*"
    """Names to list, with * and ? as in a shell (quote them there)."""
    json: bool = False
    """Print the rows as JSON, with exact counts."""


def run(arguments: list[str]) -> None:
    """List models as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion models")
    names = list_models(chosen.pattern)
    if not names:
        offer = nearest(chosen.pattern, list_models()) or "; parhelion models lists them all"
        raise UserError(recipe_for_model(chosen.pattern) or f"no model is called {chosen.pattern!r}{offer}")
    rows = [model_info(name) for name in names]
    if chosen.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for row in rows:
            print(*_cells(row), sep="\t")


def _cells(row: ModelInfo) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.params / 1e6:.3f} M",
        f"{row.multiply_adds / 1e9:.3f} G",
        f"{row.image_px} px",
        row.source,
    )


def _print_table(rows: Sequence[ModelInfo]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in HEADINGS:
        right = heading in ("parameters", "multiply-adds", "input")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading == "model")
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)
