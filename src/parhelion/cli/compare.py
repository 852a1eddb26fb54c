"""`parhelion compare RUN RUN...`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from parhelion.cli.arguments import parsed
from parhelion.errors import UserError, printable

if TYPE_CHECKING:
    from parhelion.compare.runs import Group

FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Put runs of one task side by side, in a table and a picture; those that differ in their seed alone become one
    line."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders that parhelion train wrote, finished or not."""
    out: Path = Path("compare.png")
    """The picture, replaced if it is there: accuracy, or box and mask AP, against epoch, time, parameters and
    multiply-adds; also .pdf or .svg."""
    json: bool = False
    """Print the table as JSON, with exact numbers."""


def run(arguments: list[str]) -> None:
    """Compare as `arguments` say."""
    chosen = parsed(Arguments, arguments, prog="parhelion compare")
    if not chosen.runs:
        raise UserError("parhelion compare needs one RUN or more; parhelion compare --help says more")
    if chosen.out.suffix.lower() not in FORMATS:
        raise UserError(f"--out {chosen.out} must end in {', '.join(FORMATS)}")
    # Bring torch, which a help text need not wait for.
    from parhelion.compare.chart import compare_chart
    from parhelion.compare.runs import grouped, notes, read_runs

    left_out: list[str] = []
    groups = grouped(read_runs(chosen.runs, left_out.append))
    compare_chart(groups, chosen.out)
    if chosen.json:
        print(printable(json.dumps([group.as_dict() for group in groups], indent=2, ensure_ascii=False)))
        for sentence in left_out:
            print(f"parhelion: {sentence}", file=sys.stderr)
        return
    _show(groups)
    for sentence in (*left_out, *notes(groups)):
        print(sentence)
    print(f"the picture is {chosen.out}")


def _show(groups: Sequence["Group"]) -> None:
    from parhelion.compare.runs import table

    headings, *rows = table(groups)
    if not sys.stdout.isatty():
        for row in (headings, *rows):
            print(*row, sep="\t")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("run", "seeds") else "right")
    for row in rows:
        # Names may hold what rich would take for markup: conv_stages=[1].
        shown.add_row(*map(Text, row))
    Console().print(shown)
