"""A model for `parhelion explain`, by whatever name it goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import nn

from parhelion.classification.saved import Classifier
from parhelion.detection.saved import Detector, holds_detector
from parhelion.errors import UserError, first_line, nearest
from parhelion.files.weights import read_header
from parhelion.models import create_model
from parhelion.models.accelerate import accelerate
from parhelion.models.catalog import MODELS
from parhelion.runs.initial import HUB_ERRORS
from parhelion.runs.places import HUB, TIMM

UNTRAINED = "The weights are random: this model was not trained."
TIMM_CONFIG = "config.json"
LOADING_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError, KeyError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A model with what a reader should know of it."""

    model: nn.Module
    title: str
    class_names: Sequence[str] | None
    note: str


def named(spec: str, *, weights: Path | None = None, pretrained: bool = False) -> Named:
    """The model that `spec` names: a run folder, a weights file, a folder of timm's, a name of ours, `timm:NAME` or
    `hf-hub:OWNER/NAME`.

    Args:
        spec: See above; a name goes before a path.
        weights: A safetensors file for a model of timm or of ours; else its weights are random.
        pretrained: Download the weights that timm publishes.

    Raises UserError where there is no such model, or its weights do not fit.
    """
    if spec in MODELS or spec.startswith(TIMM):
        return _by_name(spec, weights, pretrained)
    if weights is not None or pretrained:
        raise UserError(f"--weights and --pretrained are for names of models, but {spec} brings its weights with it")
    if spec.startswith(HUB) or (Path(spec) / TIMM_CONFIG).is_file():
        return Named(model=_saved_by_timm(spec), title=spec, class_names=None, note="")
    path = Path(spec)
    if holds_detector(path):
        detector = Detector.load(path)
        note = f"Trained for {detector.epoch} epochs."
        return Named(model=detector.model, title=detector.name, class_names=detector.class_names, note=note)
    classifier = Classifier.load(path)
    accuracy = classifier.metrics.get("top1")
    scored = "" if accuracy is None else f"; top-1 {100 * accuracy:.2f}% on its validation images"
    return Named(
        model=classifier.model,
        title=f"{classifier.name} ({path})",
        class_names=classifier.class_names,
        note=f"Trained for {classifier.epoch} epochs{scored}.",
    )


def _by_name(spec: str, weights: Path | None, pretrained: bool) -> Named:
    note = "" if weights is not None or pretrained else UNTRAINED
    if note and Path(spec).exists():
        note += f" For what lies at that path, write ./{spec}."
    if not spec.startswith(TIMM):
        if pretrained:
            raise UserError(f"there are no published weights of {spec}; --weights takes a file of your own")
        model = create_model(spec, checkpoint_path=weights)
        return Named(model=model, title=spec, class_names=None, note=note)
    name = spec.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    if weights is not None:
        # In our words, before timm reads them in its own; no pickles.
        read_header(weights)
    try:
        model = timm.create_model(name, pretrained=pretrained, checkpoint_path=str(weights or ""))
    except HUB_ERRORS as error:
        raise UserError(f"timm's weights of {name} cannot be downloaded: {first_line(error)}") from error
    except RuntimeError as error:
        raise UserError(f"the model {spec} cannot be built with these weights: {first_line(error)}") from error
    return Named(model=accelerate(model, report=None), title=spec, class_names=None, note=note)


def _saved_by_timm(spec: str) -> nn.Module:
    name = spec if spec.startswith(HUB) else f"local-dir:{spec}"
    try:
        return accelerate(timm.create_model(name, pretrained=True), report=None)
    except LOADING_ERRORS as error:
        raise UserError(f"timm cannot load {spec}: {first_line(error)}") from error
