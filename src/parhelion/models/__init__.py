"""The networks of both papers and their convolutional twins: one skeleton, tables of numbers."""

from parhelion.models import timm_names
from parhelion.models.catalog import ModelInfo, create_model, list_models, model_info

timm_names.register()

__all__ = ["ModelInfo", "create_model", "list_models", "model_info"]
