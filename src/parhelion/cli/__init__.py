"""The command line: `parhelion train | evaluate | predict | explain | export | compare | benchmark | models | recipes`.

Exit code 0; 1 for an export that disagrees with PyTorch; 2 with one sentence on standard error for a user's mistake;
130 after Ctrl-C, 143 after SIGTERM.
"""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module

from parhelion.errors import UserError, nearest
from parhelion.train.stopping import Stopped
from parhelion.version import __version__

# How names of files are printed that the encoding of the output does not have.
ANY_NAME = "parhelion.any_name"

USER_MISTAKE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

# Each is a module of this package, with a function `run`.
VERBS = {
    "train": "train a recipe on your images",
    "evaluate": "score a trained model on your images",
    "predict": "say what is in image files",
    "explain": "show what each pixel of an image attends to",
    "export": "write a classifier for other runtimes, proven equal",
    "compare": "put runs side by side: accuracy, cost, time",
    "benchmark": "time a model against others on this machine",
    "models": "list the models, with parameters and multiply-adds",
    "recipes": "list the recipes, with what they cost and what should come out",
}

HELP = """usage: parhelion COMMAND ...

Image backbones from global and local self-attention.

commands:
{verbs}

parhelion COMMAND --help says more about each; parhelion --version prints {version}.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (the process's own if None) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _ending() as end:
        end.code = _command(words)(words[1:]) or 0
    return end.code


def exit_code(act: Callable[[], int | None]) -> int:
    """Do `act`, which may return a code, as a command does: no warnings, and one sentence for what stops it."""
    with _ending() as end:
        end.code = act() or 0
    return end.code


@dataclass
class Ending:
    """How a command ended."""

    code: int = 0


@contextmanager
def _ending() -> Iterator[Ending]:
    """Run a command in this: there are no warnings, and what stops it becomes one sentence and the code to exit with.

    A context, not a function that calls the command, so that tracebacks and profiles show the command alone.
    """
    end = Ending()
    with _any_name_printed():
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:
                    warnings.simplefilter("ignore")
                yield end
            sys.stdout.flush()
        except UserError as error:
            end.code = _said(error, USER_MISTAKE)
        except Stopped as stopped:
            end.code = _said(stopped, stopped.code)
        except KeyboardInterrupt as interrupt:
            end.code = _said(str(interrupt) or "stopped", INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has enough; without this Python would complain once more when it exits.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            end.code = PIPE_CLOSED
        except SystemExit as done:
            # tyro leaves this way after it printed a help text.
            end.code = int(done.code or 0)


def _said(what: object, code: int) -> int:
    print(f"parhelion: {what}", file=sys.stderr)
    return code


@contextmanager
def _any_name_printed() -> Iterator[None]:
    """Print names of files as the bytes that they are, and escape what the output's encoding does not have."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors=ANY_NAME)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


codecs.register_error(ANY_NAME, _as_bytes_or_escaped)


def _command(words: Sequence[str]) -> Callable[[list[str]], int | None]:
    """What runs the words after the first one of `words`. Raises UserError where that is no command."""
    if not words:
        raise UserError(f"name a command: {', '.join(VERBS)}; parhelion --help says more")
    verb = words[0]
    if verb in ("-h", "--help", "help"):
        return _print_help
    if verb in ("-V", "--version"):
        return _print_version
    if verb in VERBS:
        run: Callable[[list[str]], int | None] = import_module(f"parhelion.cli.{verb}").run
        return run
    offer = nearest(verb, VERBS) or f"; the commands are {', '.join(VERBS)}"
    raise UserError(f"there is no command {verb!r}{offer}")


def _print_help(_words: list[str]) -> None:
    verbs = "\n".join(f"  {name:<10}{text}" for name, text in VERBS.items())
    print(HELP.format(verbs=verbs, version=__version__), end="")


def _print_version(_words: list[str]) -> None:
    print(f"parhelion {__version__}")
