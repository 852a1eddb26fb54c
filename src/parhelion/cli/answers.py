"""Answers printed as they come, so that none is lost where a long command ends early."""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from parhelion.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

Entry: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = tuple[str, str]
"""Text and its style."""


@contextmanager
def json_array() -> Iterator[Callable[[Entry], None]]:
    """Prints one JSON array: an entry for each call of what comes out, its end whatever happens in between."""
    count = 0

    def add(entry: Entry) -> None:
        nonlocal count
        text = textwrap.indent(printable(json.dumps(entry, indent=2, ensure_ascii=False)), "  ")
        print(",\n" if count else "[\n", text, sep="", end="", flush=True)
        count += 1

    try:
        yield add
    except BaseException:
        if count:
            print("\n]", flush=True)
        raise
    print("\n]" if count else "[]", flush=True)


def json_line(entry: Entry) -> None:
    """Print `entry` as JSON in one line."""
    print(printable(json.dumps(entry, ensure_ascii=False)), flush=True)


def tab_separated(*cells: object) -> None:
    """Print `cells` in one line."""
    print(*cells, sep="\t", flush=True)


class Table:
    """A table on a terminal whose rows are printed one by one, in columns of known widths."""

    def __init__(self, headings: Sequence[str], widths: Sequence[int]) -> None:
        """Print the headings; the last column has no width."""
        from rich.console import Console

        self._console = Console()
        self._widths = [*map(max, zip(widths, map(len, headings), strict=False)), 0]
        self.row([(heading, "bold") for heading in headings])

    def row(self, cells: Sequence[Cell]) -> None:
        """Print a row."""
        from rich.text import Text

        parts = [_padded(cell, width) for cell, width in zip(cells, self._widths, strict=True)]
        self._console.print(Text("  ").join(parts), soft_wrap=True)


def _padded(cell: Cell, width: int) -> "Text":
    from rich.cells import cell_len
    from rich.text import Text

    text, style = cell
    return Text(text + " " * (width - cell_len(text)), style=style)
