"""Every row of the tables by name: `list_models` and `model_info`. Nothing is built here, and nothing needs torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from parhelion.errors import UserError, nearest
from parhelion.models.convnet import CONVNETS
from parhelion.models.gsa import GSA_NETS
from parhelion.models.halonet import HALONETS
from parhelion.models.rows import Row

MODELS: dict[str, Row] = {**GSA_NETS, **HALONETS, **CONVNETS}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_PREFIX = "parhelion_"  # of every name under `timm.create_model`, where timm's own names stay what they are
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
    row = row_of(name)
    described = {key: getattr(row, key) for key in DESCRIBES}
    return ModelInfo(name=name, choices=choices_of(row), **described)


def row_of(name: str) -> Row:
    """The row of the tables called `name`. Raises UserError as `model_info` does."""
    if name not in MODELS:
        raise UserError(f"there is no model {name!r}{nearest(name, MODELS) or '; `parhelion models` lists them all'}")
    return MODELS[name]


def choices_of(row: Row) -> dict[str, Any]:
    """What of `row` builds the model and is the user's to change, by name."""
    return {key: value for key, value in asdict(row).items() if key not in DESCRIBES}


def check_choices(name: str, choices: Mapping[str, Any]) -> None:
    """Raise UserError where `choices` holds what is none of the architecture of model `name`."""
    known = {field.name for field in fields(row_of(name))} - DESCRIBES
    for key in choices:
        if key not in known:
            offer = nearest(key, known) or f"; it takes {', '.join(sorted(known))}"
            raise UserError(f"{name} has no choice {key!r}{offer}")
