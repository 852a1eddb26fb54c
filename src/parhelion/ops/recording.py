"""Who wants to see what the operations are called with, and what comes out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """One call of an operation."""

    operation: str
    arguments: Mapping[str, Any]
    """Maps and tables by the names of its public function; the choices of halo attention as one `window`."""
    output: Tensor


Listener = Callable[[Call], None]

_listeners: list[Listener] = []  # by `listening`, the innermost last


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every call of an operation meanwhile, in all threads, whichever implementation runs.

    It hears a call after the operation has returned. Code that torch compiled before does not tell.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def told(operation: str, output: Tensor, **arguments: Any) -> Tensor:
    """`output`, once all who listen have heard of the call."""
    for listener in _listeners:
        listener(Call(operation, arguments, output))
    return output
