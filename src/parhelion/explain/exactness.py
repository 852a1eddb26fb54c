"""How far weights times values may be from what a kernel returned: rounding, and nothing else."""

import math

import torch
from torch import Tensor

# Right kernels and plain PyTorch were seen to err 0.03 to 1.0 times as much as is allowed without it.
SAFETY = 4.0
TF32_ROUNDOFF = 2.0**-11
WIDE = (torch.float32, torch.float64)
# Kernels cut exponentials off at e^-86, in each of some thousand terms.
VANISHING = 1e3 * math.exp(-86)


class MismatchError(RuntimeError):
    """Weights that do not give what the kernel returned: a fault of Parhelion, not of its user."""


def unit_roundoff(map_: Tensor, device: torch.device) -> float:
    """The largest relative error of one product or result of an operation on maps like `map_` on `device`."""
    tf32 = device.type == "cuda" and map_.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return TF32_ROUNDOFF if tf32 else torch.finfo(map_.dtype).eps / 2


def allowed(truth: Tensor, magnitude: Tensor, *, terms: int, roundoff: float, dtype: torch.dtype) -> Tensor:
    """The largest error of each output.

    Rounding errors of a sum grow with the square root of its terms. Narrower dtypes than float32 are summed in float32,
    so that there one rounding of each term counts.

    Args:
        truth: The output in float64.
        magnitude: The sum of absolute terms behind it, each as often as it is rounded.
        terms: Terms of the longest sum.
        roundoff: See `unit_roundoff`.
        dtype: What the maps came in.
    """
    growth = math.sqrt(terms) if dtype in WIDE else 1.0
    return SAFETY * roundoff * (truth.abs() + growth * magnitude) + VANISHING * magnitude.max()


def check(name: str, what: str, returned: Tensor, truth: Tensor, limit: Tensor) -> float:
    """The largest error as a share of what is allowed. Raises MismatchError where it is above one."""
    error = (returned.double() - truth).abs()
    # Where nothing may err, nothing does.
    share = torch.where(error == 0, 0.0, error / limit).max().item() if error.numel() else 0.0
    # Written so that NaN fails.
    if not share <= 1:
        worst = (error - limit).argmax()
        raise MismatchError(
            f"{what} of {name} do not give what its kernel returned: one output differs by "
            f"{error.flatten()[worst]:.3g}, and rounding explains {limit.flatten()[worst]:.3g}"
        )
    return share
