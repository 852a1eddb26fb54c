"""Parhelion: image backbones built from global and local self-attention."""

from parhelion import layers, models, ops
from parhelion.models import create_model, list_models, model_info
from parhelion.models.accelerate import accelerate
from parhelion.models.fold import fold
from parhelion.version import __version__

__all__ = ["__version__", "accelerate", "create_model", "fold", "layers", "list_models", "model_info", "models", "ops"]
