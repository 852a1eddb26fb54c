"""Weights on disk: safetensors with a few facts about the model in the header. Pickles are never read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from parhelion.errors import UserError
from parhelion.train.atomic import replacement

FORMAT_VERSION = 1
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar")


def save(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
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


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and facts that `save` wrote to `path`; UserError says why a file is none of these."""
    with _opened(path) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = file.metadata() or {}
    return weights, _facts(path, header)


def facts(path: Path) -> dict[str, Any]:
    """The facts alone, without reading the weights; raises UserError as `load` does."""
    with _opened(path) as file:
        header = file.metadata() or {}
    return _facts(path, header)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(
            f"{path} is a pickle, which could run any program when opened; give a .safetensors file instead"
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error


def _facts(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
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
