"""Weights from a file into a model: every tensor or none."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

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
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); give weights that parhelion saved"
        ) from error
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [name for name in sorted(own.keys() & state.keys()) if own[name].shape != state[name].shape]
    if missing or unexpected or shapes:
        first = (missing + unexpected + shapes)[0]
        raise UserError(
            f"the weights in {path} are of another architecture: {len(missing)} tensors are missing, {len(unexpected)} "
            f"unexpected, {len(shapes)} of another shape, the first being {first}; build the model they were saved from"
        )
    model.load_state_dict(state)
