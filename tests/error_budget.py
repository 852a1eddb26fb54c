"""How far a result may stray: compared with simulated rounding, which is the same on every processor."""

import math

import torch
from torch import Tensor

# Kernels that are right err at most 1.1 times what `simulated_rounding` does, whatever the order of their sums.
MARGIN = 1.25
SIGMAS = 5.0


def assert_as_exact_as(actual: Tensor, simulated: Tensor, truth: Tensor, *, margin: float = MARGIN) -> None:
    """Fail unless the error of `actual` is as small as that of a result whose rounding errors were simulated.

    Compared are root mean squares. Of n independent errors of one size, that of either side has a relative standard
    deviation of 1 / sqrt(2 n), and the logarithm of their ratio one of 1 / sqrt(n). So `margin` times
    exp(5 / sqrt(n)) is exceeded by a right kernel once in 3 million comparisons, on whatever processor; a kernel that
    loses two bits has a ratio of 4, which is too much from n = 20 on. The largest error is only there to find what
    is wrong in one place: it may be twice as many times that of the simulation.

    Args:
        actual: What is tested.
        simulated: The same quantity with simulated errors (`simulated_rounding.simulated`).
        truth: The same quantity in float64.
        margin: How many times the simulated error is allowed, but for chance.
    """
    assert actual.shape == truth.shape == simulated.shape, (actual.shape, simulated.shape, truth.shape)
    assert truth.dtype == torch.float64, "truth must be float64"
    assert torch.isfinite(actual).all(), "not finite"
    if not truth.numel():
        return
    errors, likely = actual.double() - truth, simulated.double() - truth
    allowed = margin * math.exp(SIGMAS / math.sqrt(independent(likely)))
    for name, size, times in (("root mean square", _root_mean_square, 1), ("largest", _largest, 2)):
        error, most = size(errors), times * allowed * size(likely)
        assert error <= most, f"errs by {error:.3g} ({name}), {most:.3g} allowed"


def independent(errors: Tensor) -> float:
    """How many errors of equal size the root mean square of `errors` is as certain as; at least one.

    The channels of a pixel, along the last axis, share errors of its weights, and count once.
    """
    squares = errors.square().sum(-1) if errors.ndim > 2 else errors.square()
    fourth = squares.square().sum().item()
    return max(1.0, squares.sum().item() ** 2 / fourth) if fourth else 1.0


def _root_mean_square(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()


def _largest(errors: Tensor) -> float:
    return errors.abs().max().item()
