"""Weights for a detector to start from: a backbone's from classification, or a whole detector's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from parhelion.detection.saved import Detector, holds_detector, load_detector
from parhelion.detection.torchvision_weights import published
from parhelion.errors import UserError
from parhelion.models.adapt import COUNTER, Adaptation, Normalised, Place, Pretrained, TensorReport, adapt
from parhelion.models.catalog import IMAGENET_MEAN, IMAGENET_STD, create_model
from parhelion.models.resnet import ResNet
from parhelion.models.timm_resnets import our_name
from parhelion.runs.initial import PUBLISHED, TORCHVISION, check_finite, initialise, normalisation_notes

BODY = "backbone.body."
# Parts of a detector whose outputs stand for its classes.
OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
MASK_HEAD = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")


def initialise_detector(model: nn.Module, spec: str, *, class_names: Sequence[str]) -> Adaptation:
    """Fill `model`, one of `mask_rcnn` or `faster_rcnn`, in place from what `spec` means.

    A run or file of `parhelion train` with a detector fills the whole model: the backbone as `models.adapt.adapt`
    does, everything else where it has the same shape. What stands for classes starts afresh unless these are the same
    in the same order, and so does the mask head of a Mask R-CNN from a Faster R-CNN. `torchvision:NAME` is one of
    torchvision's detectors, trained on COCO, see `torchvision_weights.published`. It fits over a ResNet-50, ours or
    timm's; what our other networks have in place of its 3x3 convolutions starts afresh. Everything else that
    `runs.initial` knows fills the backbone only.

    Raises UserError where there is nothing, it is damaged, holds NaN or infinity, or does not fit; the model is left as
    it was.
    """
    body: Any = model.get_submodule(BODY.rstrip("."))
    normalised = _normalised(model)
    if spec.startswith(TORCHVISION):
        adaptation = _of_torchvision(model, body, spec, class_names)
        return replace(adaptation, notes=normalisation_notes(spec, (IMAGENET_MEAN, IMAGENET_STD), normalised))
    is_path = not spec.startswith(PUBLISHED) and bool(spec) and Path(spec).exists()
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


@dataclass(frozen=True, kw_only=True)
class _Given:
    """A whole detector to start from."""

    label: str
    architecture: str
    weights: Mapping[str, Tensor]
    # Those of the backbone by themselves, where they go into one of our skeleton; they stand in `weights`, too, there
    # under names that start with `prefix`.
    body: Pretrained | None
    prefix: str
    same_classes: bool
    # What differs besides the tensors, see `Adaptation`.
    choices: tuple[str, ...] = ()
    # Tensors that are not as they were: how that came, and their shape before.
    adapted: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    advice: str = "give the same backbone and widths"


def _filled(model: nn.Module, body: Any, given: _Given) -> Adaptation:
    """Fill `model` in place, and report every tensor."""
    wanted, weights = model.state_dict(), given.weights
    prefix = f"{BODY}model."
    filled, reports = {}, []
    for name in dict.fromkeys([*wanted, *weights]):
        if given.body is not None and name.startswith((prefix, given.prefix)):
            continue
        for report in _reports(given, name, wanted.get(name)):
            reports.append(report)
            if report.in_weights and report.in_model:
                filled[name] = weights[name]
    choices = given.choices
    if given.body is not None:
        of_body = adapt(body.model, given.body)
        choices = (*of_body.choices, *choices)
        reports = [*(_under(report, given.prefix, prefix) for report in of_body.tensors), *reports]
    model.load_state_dict({**model.state_dict(), **filled})
    return Adaptation(label=given.label, architecture=given.architecture, choices=choices, tensors=tuple(reports))


def _of_detector(model: nn.Module, body: Any, label: str, detector: Detector, class_names: Sequence[str]) -> Adaptation:
    weights = detector.model.state_dict()
    check_finite(label, weights)
    theirs: Any = detector.model.get_submodule(BODY.rstrip("."))
    both_ours = all(isinstance(getattr(one, "model", None), ResNet) for one in (body, theirs))
    prefix = f"{BODY}model."
    of_body = (
        Pretrained(
            label=label,
            weights={name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)},
            architecture=detector.arguments["backbone"],
            model=theirs.model,
        )
        if both_ours
        else None
    )
    given = _Given(
        label=label,
        architecture=detector.name,
        weights=weights,
        body=of_body,
        prefix=prefix,
        same_classes=tuple(class_names) == detector.class_names,
    )
    return _filled(model, body, given)


def _of_torchvision(model: nn.Module, body: Any, spec: str, class_names: Sequence[str]) -> Adaptation:
    theirs = published(spec)
    is_ours = isinstance(body, FeatureGetterNet) and isinstance(body.model, ResNet)
    prefix = f"{BODY}model."
    # timm's names are torchvision's.
    names = {
        f"{prefix}{our_name(name.removeprefix(BODY))}" if is_ours and name.startswith(BODY) else name: name
        for name in theirs.weights
    }
    weights = _with_eps_of(model, {ours: theirs.weights[name] for ours, name in names.items()}, theirs.eps)
    check_finite(spec, weights)
    same_classes, adapted = tuple(class_names) == theirs.class_names, {}
    if same_classes:
        for name in [name for name in model.state_dict() if name in weights and name.startswith(OF_CLASSES)]:
            how = f"the rows of {len(class_names)} classes, without those of gaps in COCO's numbers"
            adapted[name] = how, tuple(weights[name].shape)
            weights[name] = weights[name].unflatten(0, (len(theirs.categories), -1))[theirs.rows].flatten(0, 1)
    architecture = f"torchvision's {theirs.name}"
    with torch.device("meta"):
        resnet: Any = create_model("resnet50", num_classes=0)
    of_body = Pretrained(
        label=spec,
        weights={ours.removeprefix(prefix): weights[ours] for ours in names if ours.startswith(prefix)},
        architecture=architecture,
        model=resnet,
        names={ours.removeprefix(prefix): name.removeprefix(BODY) for ours, name in names.items()},
        foreign=True,
    )
    given = _Given(
        label=spec,
        architecture=architecture,
        weights=weights,
        body=of_body if is_ours else None,
        prefix=BODY,
        same_classes=same_classes,
        choices=(f"eps of batch norms {theirs.eps} -> that of the backbone, their weights scaled to compute the same",),
        adapted=adapted,
        advice="give a ResNet-50 without norms in its heads and with torchvision's widths, 256, 1024 and 256",
    )
    return _filled(model, body, given)


def _with_eps_of(model: nn.Module, weights: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """`weights`, those of norms with `eps`, scaled to compute the same in the norms of `model` with theirs."""
    scaled = dict(weights)
    for path, norm in model.named_modules():
        variance = weights.get(f"{path}.running_var")
        if variance is not None and hasattr(norm, "eps"):
            scaled[f"{path}.weight"] = weights[f"{path}.weight"] * ((variance + norm.eps) / (variance + eps)).sqrt()
    return scaled


def _reports(given: _Given, name: str, wanted: Tensor | None) -> list[TensorReport]:
    """What becomes of a tensor outside of our backbones, on both sides. Raises UserError where it does not fit."""
    ours = Place(name, tuple(wanted.shape)) if wanted is not None else None
    theirs = Place(name, tuple(given.weights[name].shape)) if name in given.weights else None
    if ours and theirs and name.startswith(OF_CLASSES) and not given.same_classes:
        return [
            TensorReport("dropped", "other classes", theirs, None),
            TensorReport("started afresh", "as built (other classes)", None, ours),
        ]
    if ours and ours == theirs:
        how, shape = given.adapted.get(name, ("", theirs.shape))
        return [TensorReport("adapted" if how else "loaded", how, Place(name, shape), ours)]
    counter = name.endswith(COUNTER)
    if ours is None and (counter or name.startswith(MASK_HEAD)):
        why = "the model does not count" if counter else "the model segments nothing"
        return [TensorReport("dropped", why, theirs, None)]
    if theirs is None and (counter or name.startswith(MASK_HEAD)):
        why = "the weights do not count" if counter else "the weights segment nothing"
        return [TensorReport("started afresh", f"as built ({why})", None, ours)]
    raise UserError(
        f"the detector in {given.label} does not fit this one: {name} is {theirs.shape if theirs else 'missing'} "
        f"for {ours.shape if ours else 'nothing'}; {given.advice}"
    )


def _under(report: TensorReport, in_weights: str, in_model: str) -> TensorReport:
    """The report of a tensor of a backbone, whose names begin so in the detectors."""
    theirs, ours = report.in_weights, report.in_model
    return replace(
        report,
        in_weights=replace(theirs, name=in_weights + theirs.name) if theirs else None,
        in_model=replace(ours, name=in_model + ours.name) if ours else None,
    )
