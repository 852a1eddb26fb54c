"""From words on the command line to a dataclass, by tyro; mistakes become one sentence."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, Field, fields, is_dataclass
from itertools import groupby
from pathlib import Path
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
    arguments = [_expanded(word) for word in arguments]
    options = {option for field in _flat(kind) for option in _spellings(field)} | {"--help"}
    for word in arguments:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in options:
            offer = _nearest_options(name, options) or f"; {prog} --help lists them"
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


def _expanded(word: str) -> str:
    """`word` with the home folder for the `~` that its value begins with, as in --data=~/photos or coco:~/photos.

    Shells do that at the beginning of a word only.
    """
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    kind, colon, path = value.partition(":") if value.startswith("coco:") else ("", "", value)
    return name + equals + kind + colon + (os.path.expanduser(path) if path.startswith("~") else path)


def refuse_options(chosen: object, whose: str, **unset: Any) -> None:
    """Raise UserError where `chosen` sets an option that is for `whose` checkpoints only; `unset`: name and default."""
    for name, default in unset.items():
        if getattr(chosen, name) != default:
            raise UserError(f"--{name.replace('_', '-')} is for {whose}, which this checkpoint is not")


def check_writable(option: str, file: Path | None) -> None:
    """Raise UserError, before any costly work, where the file that an option names has no place."""
    if file is not None and file.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file")
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"{option} {file} cannot be written: there is no folder {file.parent}")


def check_folder(option: str, folder: Path) -> None:
    """Raise UserError, before any costly work, where the folder that an option names could not be written to."""
    nearest_folder = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest_folder.is_dir():
        raise UserError(f"{option} {folder} cannot be a folder: {nearest_folder} is a file")
    if not os.access(nearest_folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {folder} cannot be written: no permission in {nearest_folder}")


def make_folder(option: str, folder: Path) -> None:
    """Make the folder that an option names. Raises UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder} cannot be made: {error.strerror}") from error


def sentence(box: str, prog: str) -> str:
    """What tyro says in a box over many lines, drawn in Unicode or ASCII, as one sentence."""
    # A title, then paragraphs between rules, of which the first is the message and the others are hints.
    lines = [line.strip(" \u2502\u256d\u256e\u2570\u256f") for line in box.strip().splitlines()[1:]]
    paragraphs = [list(group) for is_rule, group in groupby(lines, key=_is_rule) if not is_rule]
    message = " ".join(paragraphs[0]).rstrip(".")
    if message.startswith("Missing from"):
        wanted = re.findall(r"^(--[\w-]+(?= |$)|[A-Z][A-Z_.]+$)", "\n".join(paragraphs[0]), flags=re.MULTILINE)
        message = f"{prog} needs {' and '.join(wanted)}"
    elif message.startswith("Unrecognized options"):
        message = f"{prog} cannot use {message.partition(': ')[2]}"
    else:
        message = message[:1].lower() + message[1:].replace(". Expected", "; expected")
    return f"{message}; {prog} --help says more"


def _is_rule(line: str) -> bool:
    return set(line) <= {"-", "\u2500"}


def _nearest_options(name: str, options: set[str]) -> str:
    """A clause that offers the options that begin like `name`, or else resemble it."""
    begin = sorted(option for option in options if option.startswith(name))[:3]
    return f"; did you mean {' or '.join(begin)}?" if begin else nearest(name, sorted(options))


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
