"""Weights for a detector to start from: a classifier's for the backbone, or those of a whole detector."""

import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from parhelion.detection.pyramid import Pyramid
from parhelion.detection.saved import Detector, holds_detector
from parhelion.errors import UserError
from parhelion.models import create_model
from parhelion.models.adapt import COUNTER, Adaptation, Normalised, Place, Pretrained, TensorReport, adapt
from parhelion.models.catalog import IMAGENET_MEAN, IMAGENET_STD
from parhelion.models.resnet import ResNet
from parhelion.models.timm_resnets import our_name
from parhelion.runs.initial import check_finite, initialise, normalisation_notes
from parhelion.runs.places import PUBLISHED, TORCHVISION

# How the names of a backbone's tensors begin in a detector: of any backbone, and of one of Parhelion's.
BODY, NETWORK = "backbone.body.", "backbone.body.model."
# Parts of a detector with outputs for each class.
OF_CLASSES = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
MASK_HEAD = ("roi_heads.mask_head.", "roi_heads.mask_predictor.")

# torchvision's detectors whose weights fit.
KINDS: dict[str, Any] = {"maskrcnn_resnet50_fpn": MaskRCNN, "fasterrcnn_resnet50_fpn": FasterRCNN}
FITTING = " and ".join(f"{TORCHVISION}{name}" for name in KINDS)
# COCO's category ids have gaps, which torchvision counts as classes of this name.
NO_CLASS = "N/A"


def initialise_detector(model: nn.Module, spec: str, *, class_names: Sequence[str]) -> Adaptation:
    """Fill `model`, one of `mask_rcnn` or `faster_rcnn`, in place from what `spec` means.

    * A detector that `parhelion train` saved fills the whole model: the backbone as `models.adapt.adapt` does, all
      other tensors where the shapes agree. The outputs for each class start afresh unless both detectors have the same
      classes in the same order. The mask head of a Mask R-CNN starts afresh from a Faster R-CNN.
    * `torchvision:NAME` is a detector of torchvision, trained on COCO, see `published`. It fits over a ResNet-50, ours
      or timm's. Attention that our other networks have in place of its 3x3 convolutions starts afresh.
    * Everything else that `runs.initial` knows fills the backbone only.

    Raises UserError where the weights are missing or damaged, hold NaN or infinity, or do not fit; the model is left as
    it was.
    """
    normalised = _normalised(model)
    if spec.startswith(TORCHVISION):
        adaptation = _of_torchvision(model, published(spec), class_names)
        return replace(adaptation, notes=normalisation_notes(spec, (IMAGENET_MEAN, IMAGENET_STD), normalised))
    is_path = not spec.startswith(PUBLISHED) and bool(spec) and Path(spec).exists()
    if is_path and _is_detector(Path(spec)):
        detector = Detector.load(Path(spec))
        adaptation = _of_detector(model, spec, detector, class_names)
        return replace(adaptation, notes=normalisation_notes(spec, _normalised(detector.model), normalised))
    network = _network(model)
    if network is None:
        kind = type(model.get_submodule("backbone.body")).__name__
        raise UserError(f"weights to start from fit Parhelion's backbones; this one is a {kind}")
    return initialise(network, spec, normalised=normalised)


def _network(detector: nn.Module) -> ResNet | None:
    """The Parhelion network in the backbone of `detector`; None over another backbone."""
    pyramid: Any = detector.get_submodule("backbone")
    return cast("Pyramid", pyramid).network


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
class Published:
    """The weights of a detector of torchvision, under the names that its present version gives them."""

    label: str
    name: str
    weights: Mapping[str, Tensor]
    # By label, the background and gaps included.
    categories: tuple[str, ...]
    # That of its batch norms, which are frozen.
    eps: float

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that it finds, without the gaps in torchvision's labels, see `rows`."""
        return tuple(self.categories[row] for row in self.rows[1:])

    @property
    def rows(self) -> list[int]:
        """torchvision's labels of the background and of each class, without the gaps."""
        return [0, *(label for label, name in enumerate(self.categories) if label and name != NO_CLASS)]


def published(spec: str) -> Published:
    """The detector that `torchvision:NAME` or `torchvision:NAME.WEIGHTS` means, fetched by torchvision where need be.

    The file is a pickle, from which torch reads tensors only (`weights_only`): no code in it runs. The checksum of a
    download is the one that torchvision knows.

    Raises UserError where there is no such detector, its structure is not ours, or its weights cannot be fetched.
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
            f"those of {FITTING} fit over a ResNet-50"
        )
    return f"torchvision has no detector {name!r}; weights to start from are {FITTING}"


@dataclass(frozen=True, kw_only=True)
class _Given:
    """A whole detector to start from."""

    label: str
    architecture: str
    weights: Mapping[str, Tensor]
    # The backbone's weights alone, for a model over a Parhelion network; None over another backbone. They stand in
    # `weights`, too, under names that begin with `prefix`.
    body: Pretrained | None
    prefix: str
    same_classes: bool
    # What differs besides the tensors, see `Adaptation`.
    choices: tuple[str, ...] = ()
    # Tensors that were changed to fit: how, and their shape before.
    adapted: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    advice: str = "give the same backbone and widths"


def _filled(model: nn.Module, given: _Given) -> Adaptation:
    """Fill `model` in place, and report every tensor."""
    wanted, weights, network = model.state_dict(), given.weights, _network(model)
    filled, reports = {}, []
    for name in dict.fromkeys([*wanted, *weights]):
        if given.body is not None and name.startswith((NETWORK, given.prefix)):
            continue
        for report in _reports(given, name, wanted.get(name)):
            reports.append(report)
            if report.in_weights and report.in_model:
                filled[name] = weights[name]
    choices = given.choices
    if network is not None and given.body is not None:
        of_body = adapt(network, given.body)
        choices = (*of_body.choices, *choices)
        reports = [*(_under(report, given.prefix, NETWORK) for report in of_body.tensors), *reports]
    model.load_state_dict({**model.state_dict(), **filled})
    return Adaptation(label=given.label, architecture=given.architecture, choices=choices, tensors=tuple(reports))


def _of_detector(model: nn.Module, label: str, detector: Detector, class_names: Sequence[str]) -> Adaptation:
    weights = detector.model.state_dict()
    check_finite(label, weights)
    theirs, of_body = _network(detector.model), None
    if theirs is not None and _network(model) is not None:
        named = {name.removeprefix(NETWORK): tensor for name, tensor in weights.items() if name.startswith(NETWORK)}
        of_body = Pretrained(label=label, weights=named, architecture=detector.arguments["backbone"], model=theirs)
    given = _Given(
        label=label,
        architecture=detector.name,
        weights=weights,
        body=of_body,
        prefix=NETWORK,
        same_classes=tuple(class_names) == detector.class_names,
    )
    return _filled(model, given)


def _of_torchvision(model: nn.Module, theirs: Published, class_names: Sequence[str]) -> Adaptation:
    spec, is_ours = theirs.label, _network(model) is not None
    # timm's names are torchvision's.
    names = {
        f"{NETWORK}{our_name(name.removeprefix(BODY))}" if is_ours and name.startswith(BODY) else name: name
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
        weights={ours.removeprefix(NETWORK): weights[ours] for ours in names if ours.startswith(NETWORK)},
        architecture=architecture,
        model=resnet,
        names={ours.removeprefix(NETWORK): name.removeprefix(BODY) for ours, name in names.items()},
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
    return _filled(model, given)


def _with_eps_of(model: nn.Module, weights: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
    """`weights`, of batch norms with `eps`, scaled so that the norms of `model` compute the same with their own eps."""
    scaled = dict(weights)
    for path, norm in model.named_modules():
        variance = weights.get(f"{path}.running_var")
        if variance is not None and hasattr(norm, "eps"):
            scaled[f"{path}.weight"] = weights[f"{path}.weight"] * ((variance + norm.eps) / (variance + eps)).sqrt()
    return scaled


def _reports(given: _Given, name: str, wanted: Tensor | None) -> list[TensorReport]:
    """What becomes of a tensor outside Parhelion's backbones, on both sides. Raises UserError where it does not fit."""
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
    """`report`, of a backbone's tensor, with the names that the tensor has in both detectors."""
    theirs, ours = report.in_weights, report.in_model
    return replace(
        report,
        in_weights=replace(theirs, name=in_weights + theirs.name) if theirs else None,
        in_model=replace(ours, name=in_model + ours.name) if ours else None,
    )
