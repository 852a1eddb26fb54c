"""Which implementation of an operation runs."""

from typing import Literal, get_args

from parhelion.errors import UserError
from parhelion.ops import gpu

Implementation = Literal["auto", "reference", "cpu", "triton"]


def check_implementation(impl: str) -> None:
    """Raise UserError, which is a ValueError, unless `impl` names an implementation or "auto"."""
    if impl not in get_args(Implementation):
        raise UserError(f"impl must be one of {', '.join(map(repr, get_args(Implementation)))}, not {impl!r}")


def chosen(impl: Implementation, *, why_not_cpu: str | None, why_not_triton: str | None) -> Implementation:
    """The implementation to run: a named one if it can; with "auto" the fastest that can.

    Args:
        impl: What the caller asked for.
        why_not_cpu: Why the compiled code cannot run; None if it can.
        why_not_triton: Why the kernels for GPUs cannot run; None if they can.

    Raises:
        ValueError: the implementation asked for cannot run, with the reason, or is unknown.
    """
    check_implementation(impl)
    reasons: dict[Implementation, str | None] = {"cpu": why_not_cpu, "triton": why_not_triton}
    reason = reasons.get(impl)
    if reason is not None:
        raise ValueError(f"impl={impl!r} cannot run: {reason}")
    if impl != "auto":
        return impl
    if gpu.interpreted():
        # Triton's interpreter is there to test kernels, slowly.
        del reasons["triton"]
    return next((name for name, reason in reasons.items() if reason is None), "reference")
