"""From a name to a model: every row of the tables, `create_model`, `list_models` and `model_info`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn

from parhelion.errors import UserError, nearest
from parhelion.models.convnet import CONVNETS
from parhelion.models.gsa import GSA_NETS
from parhelion.models.halonet import HALONETS
from parhelion.models.reference import run_on
from parhelion.models.resnet import ResNet
from parhelion.models.rows import Row
from parhelion.models.weights import load_weights
from parhelion.ops.implementation import Implementation

MODELS: dict[str, Row] = {**GSA_NETS, **HALONETS, **CONVNETS}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
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
    choices = {key: value for key, value in asdict(row).items() if key not in DESCRIBES}
    described = {key: getattr(row, key) for key in DESCRIBES}
    return ModelInfo(name=name, choices=choices, **described)


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_chans: int = 3,
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
        num_classes: Width of the classifier; 0 leaves it out.
        in_chans: Channels of the images.
        image_size: Side, or height and width, in pixels, that the relative tables of global attention are made for;
            the row's own if None. Any other size works too.
        drop_path: Stochastic depth: the rate of the last block, rising linearly from 0.
        checkpoint_path: A safetensors file whose weights are loaded, all of them.
        impl: What its attention runs on, here and now, see `parhelion.ops.halo_attention`; no choice of the
            architecture, and not saved with it.
        overrides: Choices of the row (`model_info(name).choices`: `block`, `border`, `groups`, ...), `drop_rate`,
            `global_pool`; `features_only=True` with `out_indices` for a feature pyramid, as in timm.

    Raises:
        UserError: an unknown name or choice, or weights that do not fit; the sentence says what would be right.
    """
    row = _row(name)
    if pretrained:
        raise UserError(
            f"there are no pretrained weights of {name}: train it, or give checkpoint_path a file of your own"
        )
    features_only, out_indices = overrides.pop("features_only", False), overrides.pop("out_indices", None)
    built = {key: overrides.pop(key) for key in ("drop_rate", "global_pool") if key in overrides}
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size or (row.image_px,) * 2
    check_choices(name, overrides)
    network = replace(row, **overrides).network()
    model = ResNet(
        network,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=(height, width),
        drop_path=drop_path,
        **built,
    )
    model.default_cfg = model.pretrained_cfg = _default_cfg(name, model, (height, width))
    run_on(impl, model)
    if checkpoint_path is not None:
        load_weights(model, checkpoint_path)
    if not features_only:
        return model
    stages = len(model.feature_info)
    return FeatureGetterNet(model, out_indices=out_indices if out_indices is not None else list(range(stages)))


def _row(name: str) -> Row:
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}{nearest(name, MODELS) or '; `parhelion models` lists them all'}")
    return MODELS[name]


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
        "architecture": name,
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
