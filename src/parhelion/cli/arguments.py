"""From words on the command line to a dataclass, by tyro; mistakes become one sentence."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro

from parhelion.errors import UserError, nearest

T = TypeVar("T")


def parsed(
    kind: type[T], arguments: Sequence[str], *, prog: str, default: Any = None, description: str | None = None
) -> T:
    """`arguments` as a `kind`; fields of a dataclass inside it are flat options too.

    default: an instance whose fields are the defaults; `kind`'s own if None.
    Raises UserError for what cannot be parsed, and SystemExit(0) after printing the text for --help.
    """
    options = {option for field in _flat(kind) for option in _spellings(field)} | {"--help"}
    for word in arguments:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in options:
            offer = nearest(name, sorted(options)) or f"; {prog} --help lists them"
            raise UserError(f"{prog} has no option {name}{offer}")
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(
                kind,
                args=arguments,
                prog=prog,
                default=tyro.MISSING_NONPROP if default is None else default,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(sentence(box.getvalue(), prog)) from None


def sentence(box: str, prog: str) -> str:
    """What tyro says in a box over many lines, as one sentence."""
    lines = [line.strip("│|╭╮╰╯─ ").strip() for line in box.splitlines()]
    # A rule parts the message from hints; the border carries the title.
    body = "\n".join(lines[1:]).split("\n\n")[0]
    message = " ".join(body.split()).rstrip(".") or " ".join(box.split())
    if message.startswith("Missing from"):
        wanted = re.findall(r"^(--[\w-]+|[A-Z][A-Z_.]+)(?= |$)", body, flags=re.MULTILINE)
        message = f"{prog} needs {' and '.join(wanted)}"
    elif message.startswith("Unrecognized options"):
        message = f"{prog} cannot use {message.partition(': ')[2]}"
    else:
        message = message[0].lower() + message[1:].replace(". Expected", "; expected")
    return f"{message}; {prog} --help says more"


def _flat(kind: type) -> Iterator[Field[Any]]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _flat(hints[field.name])
        else:
            yield field


def _spellings(field: Field[Any]) -> Iterator[str]:
    name = field.name.replace("_", "-")
    yield f"--{name}"
    if isinstance(field.default, bool) and field.default is not MISSING:
        yield f"--no-{name}"
