"""From a name to a model: every row of the tables, `create_model`, `list_models` and `model_info`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn

from parhelion.errors import UserError, nearest
from parhelion.files.weights import load_weights
from parhelion.models.convnet import CONVNETS
from parhelion.models.gsa import GSA_NETS
from parhelion.models.halonet import HALONETS
from parhelion.models.reference import run_on
from parhelion.models.resnet import ResNet
from parhelion.models.rows import Row
from parhelion.models.trained import read_trained
from parhelion.ops.implementation import Implementation

MODELS: dict[str, Row] = {**GSA_NETS, **HALONETS, **CONVNETS}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_PREFIX = "parhelion_"  # of every name under `timm.create_model`, where timm's own names stay what they are
DEFAULTS = {"num_classes": 1000, "in_chans": 3}
DESCRIBES = {field.name for field in fields(Row)}  # fields of a row that tell about it and build nothing


@dataclass(frozen=True)
class ModelInfo:
    """A row of the catalogue: what the model is, what it counts, and where it comes from."""

    name: str
    image_px: int
    params: int
    multiply_adds: int
    published_params: float | None
    source: str
    choices: dict[str, Any]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted; `"halonet_h?"`, `"*tiny"`."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def model_info(name: str) -> ModelInfo:
    """The catalogue's row of `name`: counts for 1000 classes at its own image size, source, and every choice.

    Raises:
        UserError: no such model; the sentence offers the nearest names.
    """
    row = _row(name)
    described = {key: getattr(row, key) for key in DESCRIBES}
    return ModelInfo(name=name, choices=_choices(row), **described)


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
    row = _row(name)
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
        choices = trained.merged(name, choices, {**DEFAULTS, "image_size": row.image_px, **_choices(row)})
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
    pyramid = FeatureGetterNet(model, out_indices=out_indices if out_indices is not None else list(range(stages)))
    of_classes = ("num_classes", "label_names", "classifier")
    config = {key: value for key, value in model.pretrained_cfg.items() if key not in of_classes}
    pyramid.default_cfg = pyramid.pretrained_cfg = config
    return pyramid


def _row(name: str) -> Row:
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}{nearest(name, MODELS) or '; `parhelion models` lists them all'}")
    return MODELS[name]


def _choices(row: Row) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if key not in DESCRIBES}


def _with_choices(name: str, row: Row, overrides: dict[str, Any]) -> Row:
    check_choices(name, overrides)
    # JSON knows no tuples.
    tuples: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    return replace(row, **tuples)


def check_choices(name: str, choices: Mapping[str, Any]) -> None:
    """Raise UserError where `choices` holds what is none of the architecture of model `name`."""
    known = {field.name for field in fields(_row(name))} - DESCRIBES
    for key in choices:
        if key not in known:
            offer = nearest(key, known) or f"; it takes {', '.join(sorted(known))}"
            raise UserError(f"{name} has no choice {key!r}{offer}")


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
