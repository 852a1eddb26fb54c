"""Parhelion: image backbones built from global and local self-attention."""

from importlib import import_module
from typing import Any

from parhelion import layers, models, ops
from parhelion.models import create_model, list_models, model_info
from parhelion.models.accelerate import accelerate, decelerate
from parhelion.models.fold import fold
from parhelion.models.reference import reference
from parhelion.version import __version__

__all__ = [
    "__version__",
    "accelerate",
    "create_model",
    "decelerate",
    "detection",
    "fold",
    "layers",
    "list_models",
    "model_info",
    "models",
    "ops",
    "reference",
]


def __getattr__(name: str) -> Any:
    # Brings torchvision, for which the rest need not wait.
    if name == "detection":
        return import_module("parhelion.detection")
    raise AttributeError(f"module 'parhelion' has no attribute {name!r}")
