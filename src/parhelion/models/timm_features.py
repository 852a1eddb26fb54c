"""timm's feature extractors, which live in a private module of timm: the rest of the package imports them from here."""

from timm.models._features import FeatureGetterNet as FeatureMaps
from timm.models._features import feature_take_indices

__all__ = ["FeatureMaps", "feature_take_indices"]
