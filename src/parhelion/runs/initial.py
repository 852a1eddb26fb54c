"""Weights to start a training from: a run, a file, a repository of the Hugging Face hub, or a model of timm."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import errors, hf_hub_download
from timm.models import get_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from parhelion.data.transforms import Preprocessing
from parhelion.errors import UserError, nearest
from parhelion.models.adapt import Adaptation, Normalised, Pretrained, adapt
from parhelion.models.catalog import create_model
from parhelion.models.resnet import ResNet
from parhelion.models.timm_resnets import our_name, plain_resnet
from parhelion.files.weights import read_header, read_weights, weights_file, why_not_fit
from parhelion.files.weights import PICKLE_SUFFIXES, read_saved

HUB, TIMM, TORCHVISION = "hf-hub:", "timm:", "torchvision:"
PUBLISHED = (HUB, TIMM, TORCHVISION)
"""How the name of published weights begins; what begins otherwise is a path."""

HUB_FILE = "model.safetensors"
FORMS = f"a run folder, a .safetensors file, {HUB}OWNER/NAME or {TIMM}NAME"
# What wrappers put before every name: DistributedDataParallel, torch.compile, timm's feature extractors.
WRAPPERS = ("module.", "_orig_mod.", "model.")
# The hub's client has no common ancestor for what can go wrong.
HUB_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    *(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


def initialise(
    model: nn.Module, spec: str, *, class_names: Sequence[str] | None = None, normalised: Normalised | None = None
) -> Adaptation:
    """Fill `model`, one of `create_model`, in place from what `spec` means; see `initial_weights` and `adapt`.

    class_names: those that the model will be trained on, in order; a classifier of other classes starts from zeros.
    normalised: how its images will be; a note says where those behind the weights were normalised otherwise.
    """
    network = model.model if isinstance(model, FeatureGetterNet) else model
    if not isinstance(network, ResNet):
        raise UserError(f"{type(model).__name__} is no model of parhelion.create_model, which alone takes weights here")
    weights = initial_weights(spec)
    adaptation = adapt(network, weights, class_names=class_names)
    return replace(adaptation, notes=normalisation_notes(spec, weights.normalised, normalised))


def normalisation_notes(label: str, theirs: Normalised | None, ours: Normalised | None) -> tuple[str, ...]:
    """A sentence where the images behind the weights of `label` were normalised in another way than ours will be.

    Weights of other channels count with their average, as their first convolution is summed over channels.
    """
    if theirs is None or ours is None:
        return ()
    channels = len(ours[0])
    fitted = [[sum(values) / len(values)] * channels if len(values) != channels else list(values) for values in theirs]
    if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(chain(*fitted), chain(*ours), strict=True)):
        return ()
    before, after = (f"mean {_spelled(mean)} and deviation {_spelled(std)}" for mean, std in (theirs, ours))
    mean, std = map(_spelled, fitted)
    return (
        f"the images behind {label} were normalised with {before}, those of this run are with {after}; "
        f"--mean {mean} --std {std} normalises as the weights expect",
    )


def _spelled(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def initial_weights(spec: str) -> Pretrained:
    """The weights that `spec` means, and what is known about them.

    Args:
        spec: A run folder; a .safetensors file, ours or any other of plain tensors; `hf-hub:OWNER/NAME`, perhaps with
            `@REVISION`, for the model.safetensors of a repository; `timm:NAME`, perhaps with `.TAG`, for a plain
            ResNet of timm, fetched from its repository on the hub. Pickles are never opened.

    Raises:
        UserError: there is nothing there, it cannot be fetched, it is damaged, or timm's model is none of ours.
    """
    if spec.startswith(TIMM):
        return _of_timm(spec)
    if spec.startswith(HUB):
        repository, _, revision = spec.removeprefix(HUB).partition("@")
        return _of_file(_download(spec, repository, revision or None), label=spec)
    if spec.startswith(TORCHVISION):
        raise UserError(f"{spec!r} is a name for detectors, which start from torchvision's; give {FORMS}")
    if not spec or not Path(spec).exists():
        raise UserError(f"there is nothing at {spec!r}; give {FORMS}")
    return _of_file(weights_file(Path(spec)), label=spec)


def _of_file(path: Path, *, label: str) -> Pretrained:
    if path.suffix.lower() in PICKLE_SUFFIXES or "parhelion_format" in read_header(path):
        weights, facts = read_saved(path)
    else:
        weights, facts = read_weights(path), {}
    weights = _unwrapped(weights)
    check_finite(label, weights)
    if "layer1.0.conv1.weight" in weights:
        raise UserError(
            f"{label} names its tensors as ResNets of timm and torchvision do, whose layout a file does not tell for "
            f"certain; give {TIMM}NAME, such as {TIMM}resnet50"
        )
    names = facts.get("class_names")
    return Pretrained(
        label=label,
        weights=weights,
        architecture=facts.get("model"),
        model=_network(label, facts, weights),
        class_names=tuple(names) if names is not None else None,
        normalised=_normalised(facts),
    )


def _normalised(facts: Mapping[str, Any]) -> Normalised | None:
    """Mean and deviation that a file of ours names, if it does."""
    if "preprocessing" not in facts:
        return None
    preprocessing = Preprocessing.from_dict(facts["preprocessing"])
    return preprocessing.mean, preprocessing.std


def _network(label: str, facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> ResNet | None:
    """The network that a file of ours was written for, on the meta device; None for other files."""
    if "model" not in facts or "model_arguments" not in facts:
        return None
    try:
        with torch.device("meta"):
            model = create_model(facts["model"], **facts["model_arguments"])
    except UserError as error:
        raise UserError(f"{label} was written for a model that this parhelion does not build: {error}") from error
    if misfit := why_not_fit(model, weights):
        raise UserError(f"{label} says that it is of {facts['model']}, but does not hold its tensors: {misfit}")
    return model if isinstance(model, ResNet) else None


def _unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without the prefixes that all their names share because the network was wrapped."""
    for prefix in WRAPPERS:
        if weights and all(name.startswith(prefix) for name in weights):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
    return dict(weights)


def check_finite(label: str, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError where `weights`, those of `label`, hold NaN or infinity; the sentence names the first tensor."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{label} holds numbers that are not finite in {len(bad)} tensors (first: {bad[0]})")


def _of_timm(spec: str) -> Pretrained:
    name = spec.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    try:
        source = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise UserError(f"timm has no weights {name!r}; it has {tags}") from error
    with torch.device("meta"):
        network = plain_resnet(timm.create_model(name, pretrained=False))
    if isinstance(network, str):
        raise UserError(f"timm's {name} has no counterpart here: {network}; its plain ones do, such as {TIMM}resnet50")
    if source is None or not source.hf_hub_id:
        raise UserError(f"timm has no weights of {name} on the hub; `{TIMM}resnet50` has some")
    weights = _timm_weights(_download(spec, source.hf_hub_id, None), network, label=spec, name=name)
    return replace(weights, normalised=(source.mean, source.std))


def _timm_weights(path: Path, network: ResNet, *, label: str, name: str) -> Pretrained:
    """The weights of timm's model `name` in `path` under our names; `network`: its counterpart of ours."""
    theirs = read_weights(path)
    check_finite(label, theirs)
    return Pretrained(
        label=label,
        weights={our_name(tensor_name): tensor for tensor_name, tensor in theirs.items()},
        architecture=f"timm's {name}",
        model=network,
        names={our_name(tensor_name): tensor_name for tensor_name in theirs},
        foreign=True,
    )


def _download(spec: str, repository: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision))
    except HUB_ERRORS as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise UserError(
            f"the {HUB_FILE} of {spec} cannot be fetched from the Hugging Face hub ({reason}); check the name and the "
            "connection, or give a .safetensors file that is on this machine"
        ) from error
