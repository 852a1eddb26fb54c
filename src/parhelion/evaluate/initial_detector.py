"""Weights for a detector to start from: a backbone's from classification, or a whole detector's."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.evaluate.initial import HUB, TIMM, check_finite, initialise, normalisation_notes
from parhelion.evaluate.saved_detector import Detector, holds_detector, load_detector
from parhelion.models.adapt import COUNTER, Adaptation, Normalised, Place, Pretrained, TensorReport, adapt
from parhelion.models.resnet import ResNet

BODY = "backbone.body."
# Parts of a detector whose outputs stand for its classes.
OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
MASK_HEAD = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")


def initialise_detector(model: nn.Module, spec: str, *, class_names: Sequence[str]) -> Adaptation:
    """Fill `model`, one of `mask_rcnn` or `faster_rcnn`, in place from what `spec` means.

    A run or file of `parhelion train` with a detector fills the whole model: the backbone as `models.adapt.adapt`
    does, everything else where it has the same shape. What stands for classes starts afresh unless these are the same
    in the same order, and so does the mask head of a Mask R-CNN from a Faster R-CNN. Everything else `evaluate.initial`
    knows fills the backbone only.

    Raises UserError where there is nothing, it is damaged, holds NaN or infinity, or does not fit; the model is left as
    it was.
    """
    body: Any = model.get_submodule(BODY.rstrip("."))
    normalised = _normalised(model)
    is_path = not spec.startswith((HUB, TIMM)) and bool(spec) and Path(spec).exists()
    if is_path and _is_detector(Path(spec)):
        detector = load_detector(Path(spec))
        adaptation = _of_detector(model, body, spec, detector, class_names)
        return replace(adaptation, notes=normalisation_notes(spec, _normalised(detector.model), normalised))
    if not (isinstance(body, FeatureGetterNet) and isinstance(body.model, ResNet)):
        raise UserError(f"weights to start from fit Parhelion's backbones; this one is a {type(body).__name__}")
    return initialise(body, spec, normalised=normalised)


def _normalised(detector: nn.Module) -> Normalised:
    """What a detector normalises its images with."""
    scaling: Any = detector.transform
    return scaling.image_mean, scaling.image_std


def _is_detector(path: Path) -> bool:
    try:
        return holds_detector(path)
    except UserError:
        # Not one of ours; `initialise` reads plain files, too, or says what is wrong.
        return False


def _of_detector(model: nn.Module, body: Any, label: str, detector: Detector, class_names: Sequence[str]) -> Adaptation:
    same_classes = tuple(class_names) == detector.class_names
    wanted, given = model.state_dict(), detector.model.state_dict()
    check_finite(label, given)
    theirs: Any = detector.model.get_submodule(BODY.rstrip("."))
    both_ours = all(isinstance(getattr(one, "model", None), ResNet) for one in (body, theirs))
    prefix = f"{BODY}model." if both_ours else None
    filled, reports = {}, []
    for name in dict.fromkeys([*wanted, *given]):
        if prefix is not None and name.startswith(prefix):
            continue
        for report in _reports(label, name, wanted.get(name), given.get(name), same_classes):
            reports.append(report)
            if report.fate == "loaded":
                filled[name] = given[name]
    whole = Adaptation(label=label, architecture=detector.name, choices=(), tensors=tuple(reports))
    if prefix is not None:
        weights = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
        pretrained = Pretrained(
            label=label, weights=weights, architecture=detector.arguments["backbone"], model=theirs.model
        )
        of_body = adapt(body.model, pretrained)
        renamed = (_under(prefix, report) for report in of_body.tensors)
        whole = replace(whole, choices=of_body.choices, tensors=(*renamed, *reports))
    model.load_state_dict({**model.state_dict(), **filled})
    return whole


def _reports(
    label: str, name: str, wanted: Tensor | None, given: Tensor | None, same_classes: bool
) -> list[TensorReport]:
    """What becomes of a tensor outside of our backbones, on both sides. Raises UserError where it does not fit."""
    ours = Place(name, tuple(wanted.shape)) if wanted is not None else None
    theirs = Place(name, tuple(given.shape)) if given is not None else None
    if ours and theirs and name.startswith(OF_CLASSES) and not same_classes:
        return [
            TensorReport("dropped", "other classes", theirs, None),
            TensorReport("started afresh", "as built (other classes)", None, ours),
        ]
    if ours == theirs:
        return [TensorReport("loaded", "", theirs, ours)]
    counter = name.endswith(COUNTER)
    if ours is None and (counter or name.startswith(MASK_HEAD)):
        why = "the model does not count" if counter else "the model segments nothing"
        return [TensorReport("dropped", why, theirs, None)]
    if theirs is None and (counter or name.startswith(MASK_HEAD)):
        why = "the weights do not count" if counter else "the weights segment nothing"
        return [TensorReport("started afresh", f"as built ({why})", None, ours)]
    raise UserError(
        f"the detector in {label} does not fit this one: {name} is {theirs.shape if theirs else 'missing'} "
        f"for {ours.shape if ours else 'nothing'}; give the same backbone and widths"
    )


def _under(prefix: str, report: TensorReport) -> TensorReport:
    places: Iterator[Place | None] = (
        replace(place, name=prefix + place.name) if place is not None else None
        for place in (report.in_weights, report.in_model)
    )
    in_weights, in_model = places
    return replace(report, in_weights=in_weights, in_model=in_model)
