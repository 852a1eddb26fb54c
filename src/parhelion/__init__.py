"""Parhelion: image backbones built from global and local self-attention.

Names are imported when they are first used: `import parhelion` brings neither torch nor timm.
"""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily
from parhelion.models import timm_names
from parhelion.ops import saved_programs
from parhelion.version import __version__

if TYPE_CHECKING:
    from parhelion import detection, explain, layers, models, ops
    from parhelion.models import create_model, list_models, model_info
    from parhelion.models.accelerate import accelerate, decelerate
    from parhelion.models.fold import fold
    from parhelion.models.reference import reference
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "accelerate": "parhelion.models.accelerate",
            "create_model": "parhelion.models.create",
            "decelerate": "parhelion.models.accelerate",
            "fold": "parhelion.models.fold",
            "list_models": "parhelion.models.catalog",
            "model_info": "parhelion.models.catalog",
            "reference": "parhelion.models.reference",
        },
        modules=("detection", "explain", "layers", "models", "ops"),
    )

__all__ = [
    "__version__",
    "accelerate",
    "create_model",
    "decelerate",
    "detection",
    "explain",
    "fold",
    "layers",
    "list_models",
    "model_info",
    "models",
    "ops",
    "reference",
]

timm_names.register_with_timm()
saved_programs.register_before_loading()
