"""From a name of the catalogue to a model: `create_model`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from parhelion.errors import UserError
from parhelion.files.weights import load_weights
from parhelion.models.catalog import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TIMM_PREFIX,
    check_choices,
    choices_of,
    row_of,
)
from parhelion.models.reference import run_on
from parhelion.models.resnet import ResNet
from parhelion.models.rows import Row
from parhelion.models.timm_features import FeatureMaps
from parhelion.models.trained import read_trained
from parhelion.ops.implementation import Implementation

DEFAULTS = {"num_classes": 1000, "in_chans": 3}


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
    checkpoint_path: str | Path | None = None,
    impl: Implementation = "auto",
    **overrides: Any,
) -> nn.Module:
    """Build a model of the catalogue.

    Args:
        name: One of `list_models()`.
        pretrained: The papers released no weights and neither have we, so True raises; use `checkpoint_path`.
        num_classes: Width of the classifier, 1000 if None; 0 leaves it out.
        in_chans: Channels of the images, 3 if None.
        image_size: Side, or height and width, in pixels, that the relative tables of global attention are made for;
            the row's own if None. Any other size works too.
        drop_path: Stochastic depth: the rate of the last block, rising linearly from 0.
        checkpoint_path: A run folder or a safetensors file whose weights are loaded, all of them. Where parhelion wrote
            it, every other argument has the value that the file says, and `pretrained_cfg` its preprocessing
            (`timm.data.resolve_model_data_config` reads it) and class names (`label_names`).
        impl: What its attention runs on, here and now, see `parhelion.ops.halo_attention`; no choice of the
            architecture, and not saved with it.
        overrides: Choices of the row (`model_info(name).choices`: `block`, `border`, `groups`, ...), `drop_rate`,
            `global_pool`; `features_only=True` with `out_indices` for a feature pyramid, as in timm.

    Raises:
        UserError: an unknown name or choice, weights that do not fit, or an argument that contradicts what their file
            says; the sentence says what would be right.
    """
    row = row_of(name)
    if pretrained:
        raise UserError(
            f"there are no pretrained weights of {name}: train it, or give checkpoint_path a file of your own"
        )
    features_only, out_indices = overrides.pop("features_only", False), overrides.pop("out_indices", None)
    built = {key: overrides.pop(key) for key in ("drop_rate", "global_pool") if key in overrides}
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, "image_size": image_size}
    choices = {key: value for key, value in sizes.items() if value is not None} | overrides
    trained = read_trained(checkpoint_path) if checkpoint_path is not None else None
    if trained is not None:
        choices = trained.merged(name, choices, {**DEFAULTS, "image_size": row.image_px, **choices_of(row)})
    # What timm's save_for_hf writes down, in timm's words, for timm.create_model to build the network again.
    recorded = {"img_size" if key == "image_size" else key: value for key, value in choices.items()}
    size = choices.pop("image_size", row.image_px)
    height, width = (size, size) if isinstance(size, int) else size
    of_skeleton = {key: choices.pop(key, default) for key, default in DEFAULTS.items()}
    network = _with_choices(name, row, choices).network()
    model = ResNet(network, image_size=(height, width), drop_path=drop_path, **of_skeleton, **built)
    model.default_cfg = model.pretrained_cfg = _default_cfg(name, model, (height, width))
    model._model_args = recorded
    run_on(impl, model)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    if trained is not None:
        model.pretrained_cfg.update(trained.config())
    return feature_maps(model, out_indices) if features_only else model


def feature_maps(model: ResNet, out_indices: Sequence[int] | None) -> nn.Module:
    """`model` as a feature pyramid that returns the maps `out_indices`; all of them if None."""
    stages = len(model.feature_info)
    pyramid = FeatureMaps(model, out_indices=out_indices if out_indices is not None else list(range(stages)))
    of_classes = ("num_classes", "label_names", "classifier")
    config = {key: value for key, value in model.pretrained_cfg.items() if key not in of_classes}
    pyramid.default_cfg = pyramid.pretrained_cfg = config
    return pyramid


def _with_choices(name: str, row: Row, overrides: dict[str, Any]) -> Row:
    check_choices(name, overrides)
    # JSON knows no tuples.
    tuples: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    return replace(row, **tuples)


def _default_cfg(name: str, model: ResNet, image_size: tuple[int, int]) -> dict[str, Any]:
    """What timm's transforms and tools read off a model."""
    channels = model.in_chans
    return {
        "architecture": TIMM_PREFIX + name,
        "url": "",
        "num_classes": model.num_classes,
        "input_size": (channels, *image_size),
        "pool_size": tuple(-(-size // model.min_px) for size in image_size),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN if channels == 3 else (0.5,) * channels,
        "std": IMAGENET_STD if channels == 3 else (0.5,) * channels,
        "first_conv": "stem.0",
        "classifier": "head.fc",
    }
