"""The networks of both papers and their convolutional twins: one skeleton, tables of numbers."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.models.catalog import ModelInfo, list_models, model_info
    from parhelion.models.create import create_model
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "ModelInfo": "parhelion.models.catalog",
            "create_model": "parhelion.models.create",
            "list_models": "parhelion.models.catalog",
            "model_info": "parhelion.models.catalog",
        },
    )

__all__ = [
    "ModelInfo",
    "create_model",
    "list_models",
    "model_info",
]
