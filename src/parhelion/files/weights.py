"""Weights on disk: safetensors, with a few facts about the model in the header. Pickles are never read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.files.atomic import replacement
from parhelion.files.run_folder import WEIGHTS

FORMAT_VERSION = 1
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")


def save_weights(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `weights` and `facts` to `path` in one step; the file that was there survives any failure.

    weights: any device and memory layout; tensors that share storage are written once each.
    facts: JSON values by name; they stand in the header of the file, each as a JSON string.
    """
    # "format": what other readers of safetensors look for.
    header = {"format": "pt", "parhelion_format": str(FORMAT_VERSION)}
    header |= {name: json.dumps(fact, allow_nan=False) for name, fact in facts.items()}
    with replacement(path) as temporary:
        # Not safetensors' own save_file, whose files nobody but their owner may read.
        temporary.write_bytes(as_bytes(_separate(weights), metadata=header))


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
    with _whole(path):
        return load_file(path)


def read_header(path: Path) -> dict[str, str]:
    """The words in the header of a safetensors file, without its tensors; UserError where there is no whole one."""
    with _whole(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_saved(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and facts that `save_weights` wrote to `path`; UserError says why a file is none of these."""
    facts = read_facts(path)
    return read_weights(path), facts


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that `save_weights` wrote to `path`, without reading the weights; raises UserError as it does."""
    header = read_header(path)
    version = header.get("parhelion_format")
    if version is None:
        raise UserError(f"{path} does not say which model it belongs to; give weights that parhelion train wrote")
    if version != str(FORMAT_VERSION):
        raise UserError(f"{path} is of checkpoint format {version}; this parhelion reads format {FORMAT_VERSION}")
    texts = {name: text for name, text in header.items() if name not in ("format", "parhelion_format")}
    try:
        return {name: json.loads(text) for name, text in texts.items()}
    except json.JSONDecodeError as error:
        raise UserError(f"{path} has a damaged header ({error})") from error


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


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Read the safetensors file `path` in this; UserError where it is a pickle, is not there, or is not whole."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"{path} is a pickle, which could run any program when opened; give a .safetensors file instead"
        )
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a .safetensors file")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); give weights that parhelion saved"
        ) from error


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` on the CPU, contiguous, no two sharing memory, as safetensors wants them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        own = tensor.detach().to("cpu").contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone(memory_format=torch.contiguous_format)
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate
