"""How far a result may stray: compared with simulated rounding, which is the same on every processor."""

import math

import torch
from torch import Tensor

# Right kernels err 0.3 to 1.1 times as much as `simulated_rounding`, measured at every level where errors are many.
MARGIN = 1.25
# How many standard deviations of the logarithm of the ratio are left to chance.
SIGMAS = 5.0


def assert_as_exact_as(actual: Tensor, simulated: Tensor, truth: Tensor, *, margin: float = MARGIN) -> None:
    """Fail unless the error of `actual` is as small as that of a result whose rounding errors were simulated.

    Compared are root mean squares, since the largest of many errors is a matter of luck. Of n independent errors of one
    size, the logarithm of the ratio of two root mean squares has a standard deviation of 1 / sqrt(n). So a ratio of
    `margin` * exp(5 / sqrt(n)) is allowed. A kernel whose true ratio is 1.1 exceeds it on one processor in 4,000 where
    two errors decide, in a million where six do, and practically never from ten on (from 3 million pairs of normal
    errors each). One that loses two bits quadruples its error, which is too much from n = 20 to 35 on.

    The largest error is only there to find what is wrong in one place: twice the ratio is allowed.

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
