"""Files that are either the old one or the whole new one, whenever the power fails."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from parhelion.errors import UserError, printable


@contextmanager
def replacement(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well.

    The content reaches the disk before the name does (fsync, rename, fsync of the folder), so that `path`
    always holds one complete version. When the block or the write fails, `path` stays as it was and the
    temporary file is removed; a full disk or a forbidden folder raises UserError.
    """
    # The suffix stays last: image writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step."""
    with replacement(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON in one step; NaN and infinity are refused by ValueError.

    Names of files that are no text come back as they were.
    """
    write_text(path, printable(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)) + "\n")


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    # Windows can neither open a folder nor flush a file opened for reading.
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
