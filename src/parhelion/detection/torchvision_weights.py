"""Detectors that torchvision has trained on COCO, as weights to start from."""

import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from parhelion.errors import UserError
from parhelion.runs.initial import TORCHVISION

KINDS: dict[str, Any] = {"maskrcnn_resnet50_fpn": MaskRCNN, "fasterrcnn_resnet50_fpn": FasterRCNN}
THOSE_THAT_FIT = " and ".join(f"{TORCHVISION}{name}" for name in KINDS)
# Gaps in COCO's numbers of categories, which torchvision counts as classes.
NO_CLASS = "N/A"


@dataclass(frozen=True, kw_only=True)
class Published:
    """The weights of a detector of torchvision, under the names that its present version gives them."""

    label: str
    name: str
    weights: Mapping[str, Tensor]
    # By label, the background and gaps included.
    categories: tuple[str, ...]
    # Of its batch norms, which are frozen.
    eps: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """What it finds; label k of torchvision's is not class k where there are gaps, see `rows`."""
        return tuple(self.categories[row] for row in self.rows[1:])

    @property
    def rows(self) -> list[int]:
        """The labels that mean something: the background, then each class."""
        return [0, *(label for label, name in enumerate(self.categories) if label and name != NO_CLASS)]


def published(spec: str) -> Published:
    """The detector that `torchvision:NAME` or `torchvision:NAME.WEIGHTS` means, fetched by torchvision where need be.

    The file is a pickle; torch reads nothing but tensors from it (`weights_only`) and runs no code of it, and what is
    fetched has the checksum that torchvision knows.

    Raises UserError where there is no such detector, it has another structure than ours, or it cannot be fetched.
    """
    name, _, tag = spec.removeprefix(TORCHVISION).partition(".")
    if name not in KINDS:
        raise UserError(_why_not(name))
    known = models.get_model_weights(name)
    if tag and tag not in known.__members__:
        raise UserError(f"torchvision has no weights {tag!r} of {name}; it has {', '.join(known.__members__)}")
    weights = known[tag or "DEFAULT"]
    categories = tuple(weights.meta["categories"])
    with torch.device("meta"):
        body = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
        )
        model = KINDS[name](body, len(categories))
    try:
        given = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        # Which also gives tensors of older versions their present names.
        model.load_state_dict(given, assign=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"the weights of {spec} cannot be fetched from {weights.url} ({reason}); check the connection, or put that "
            f"file into {folder}"
        ) from error
    # Those of the first version were trained without eps, and torchvision uses them without.
    return Published(label=spec, name=name, weights=model.state_dict(), categories=categories, eps=0.0)


def _why_not(name: str) -> str:
    if name in models.list_models(module=models.detection):
        return (
            f"torchvision's {name} does not fit: its backbone or heads have another structure than the detectors here; "
            f"those of {THOSE_THAT_FIT} fit over a ResNet-50"
        )
    return f"torchvision has no detector {name!r}; weights to start from are {THOSE_THAT_FIT}"
