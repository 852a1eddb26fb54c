"""Weights from a file into a model: every tensor or none."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.train.record import WEIGHTS


def weights_file(path: Path) -> Path:
    """The weights that `path` means: itself, or the ones in the run folder `path`. Raises UserError."""
    if not path.exists():
        raise UserError(
            f"there is no checkpoint or run folder {path}; give the --out of parhelion train, or a .safetensors file"
        )
    if path.is_dir():
        if not (path / WEIGHTS).exists():
            raise UserError(f"the folder {path} holds no {WEIGHTS}; name a folder that parhelion train wrote")
        return path / WEIGHTS
    return path


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the tensors of a run folder or a safetensors file into `model`; it must hold exactly the model's own.

    Raises:
        UserError: no such file, another format (pickles are never opened), a file cut short, or weights of another
            architecture; the model is left as it was.
    """
    weights = read_weights(weights_file(Path(path)))
    if misfit := why_not_fit(model, weights):
        raise UserError(f"the weights in {path} are of another architecture: {misfit}")
    model.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name; UserError where there is no whole one."""
    _check_is_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _not_whole(path, error) from error


def read_header(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file, without its tensors; UserError where there is no whole one."""
    _check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _not_whole(path, error) from error


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
    return misfit_clause(missing, unexpected, reshaped)


def misfit_clause(missing: list[str], unexpected: list[str], reshaped: list[str]) -> str | None:
    """The clause of `why_not_fit`, from the names of the tensors; None if there are none."""
    found = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    clauses = [f"{len(names)} tensors {what} (first: {names[0]})" for what, names in found.items() if names]
    return ", ".join(clauses) or None


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a .safetensors file")


def _not_whole(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is not a whole safetensors file ({error}); give weights that parhelion saved")
