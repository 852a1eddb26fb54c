"""Weights from a file into a model: every tensor or none."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from parhelion.errors import UserError


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a safetensors file into `model`; it must hold exactly the model's own.

    Raises:
        UserError: no such file, another format (pickles are never opened), a file cut short, or weights of another
            architecture; the model is left as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a .safetensors file")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); give weights that parhelion saved"
        ) from error
    if misfit := why_not_fit(model, weights):
        raise UserError(f"the weights in {path} are of another architecture: {misfit}")
    model.load_state_dict(weights)


def why_not_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """A clause that counts the tensors of `weights` that `model` lacks, misses or shapes otherwise."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    unexpected = [name for name in weights if name not in wanted]
    reshaped = [
        f"{name} is {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    clauses = [f"{len(names)} tensors {what} (first: {names[0]})" for what, names in found.items() if names]
    return ", ".join(clauses) or None
