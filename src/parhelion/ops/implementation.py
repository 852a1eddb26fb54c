"""Which implementation of an operation runs."""

from typing import Literal, get_args

Implementation = Literal["auto", "reference", "cpu"]


def chosen(impl: Implementation, *, why_not_cpu: str | None) -> Implementation:
    """The implementation to run: a named one if it can; with "auto" the fastest that can.

    Args:
        impl: What the caller asked for.
        why_not_cpu: Why the compiled code cannot run; None if it can.

    Raises:
        ValueError: the implementation asked for cannot run, with the reason, or is unknown.
    """
    if impl not in get_args(Implementation):
        raise ValueError(f"impl must be one of {', '.join(map(repr, get_args(Implementation)))}, not {impl!r}")
    if impl == "cpu" and why_not_cpu is not None:
        raise ValueError(f"impl='cpu' cannot run: {why_not_cpu}")
    return impl if impl != "auto" else "reference" if why_not_cpu is not None else "cpu"
