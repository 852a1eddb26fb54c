"""The one error that is the user's to mend."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that says what, where and what would be right.

    The command line prints the sentence and exits with code 2; no traceback is shown.
    """

    def __init__(self, sentence: str) -> None:
        # Names of files are part of many sentences, and need not be text.
        super().__init__(printable(sentence))


def printable(text: str) -> str:
    r"""`text` that any file and terminal of UTF-8 takes: bytes of a file name that are no text come as `\udcff`.

    JSON stays JSON that reads the same.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that offers the known names nearest to `name`, e.g. `; did you mean halonet_h1 or halonet_h0?`."""
    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def few(names: Sequence[Any], limit: int = 5) -> str:
    """The first names, comma-separated, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def first_line(error: Exception) -> str:
    """The first line of what `error` says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
