"""How far a result may stray: measured against plain PyTorch in the same dtype, not against a tuned tolerance."""

import torch
from torch import Tensor


def assert_as_exact_as(actual: Tensor, baseline: Tensor, truth: Tensor, *, slack: float = 2.0) -> None:
    """Fail unless `actual` errs at most `slack` times what `baseline` errs, plus one rounding.

    Args:
        actual: What is tested.
        baseline: The same quantity from plain PyTorch in the dtype of `actual`.
        truth: The same quantity in float64.
        slack: How many times the error of the baseline is allowed.
    """
    assert actual.shape == truth.shape == baseline.shape, (actual.shape, baseline.shape, truth.shape)
    assert truth.dtype == torch.float64, "truth must be float64"
    assert torch.isfinite(actual).all(), "not finite"
    rounding = torch.finfo(actual.dtype).eps * truth.abs().max().item()
    error, allowed = worst(actual, truth), slack * (worst(baseline, truth) + rounding)
    assert error <= allowed, f"errs by {error:.3g}, {allowed:.3g} allowed"


def worst(tensor: Tensor, truth: Tensor) -> float:
    """The largest absolute error of `tensor`."""
    return (tensor.double() - truth).abs().max().item()
