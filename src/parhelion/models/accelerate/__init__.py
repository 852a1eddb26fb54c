"""Parhelion's attention in models that others built."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from timm.layers.lambda_layer import LambdaLayer
from timm.layers.non_local_attn import BatNonLocalAttn, NonLocalAttn
from torch import nn

from parhelion.errors import UserError
from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.models.accelerate.halo import AcceleratedHaloAttn

Model = TypeVar("Model", bound=nn.Module)

CHANGED, BEFORE = "changed now", "changed before"

LEFT = {
    BottleneckAttn: "which attends to the whole map, not to windows",
    LambdaLayer: "which turns its context into matrices, without attention maps",
    NonLocalAttn: "which attends to the whole map, not to windows",
    BatNonLocalAttn: "which is a bilinear transform",
    nn.MultiheadAttention: "which attends to whole sequences",
    HaloAttention: "which is Parhelion's own",
    GlobalSelfAttention: "which is Parhelion's own",
}


class Finding(NamedTuple):
    """An attention layer of the model, and its fate: CHANGED, BEFORE or, as a clause, the reason why it was left."""

    name: str
    kind: str
    fate: str


def accelerate(model: Model, *, report: Callable[[str], None] | None = print) -> Model:
    """Put Parhelion's attention into every `HaloAttn` of timm and `GSA` of gsa_pytorch that `model` holds, in place.

    The layers keep their parameters, the names and identity of these, submodules and hooks, so that checkpoints load
    both ways and optimisers stay valid; only `forward` is another, and does not call timm's `pos_embed`, of which it
    reads the parameters. Outputs, gradients and running statistics are the original's up to rounding. timm's layers
    then also accept maps that their block does not divide, and return ceil(H/stride) x ceil(W/stride) pixels for
    them; `BottleneckAttn` and `LambdaLayer` still want the image size that they were built for. Subclasses, and
    layers whose `forward` was replaced, may compute something else and are left. Calling it twice changes nothing
    more. `decelerate` takes it back; `parhelion.reference` makes a copy whose layers need no kernels.

    Memory formats stay the user's choice. The layers run fastest on channels-last data:
    `accelerate(model).to(memory_format=torch.channels_last)`, and images in that format. A model that was compiled is
    compiled anew at its next call; a scripted one cannot be changed, and the accelerated layers cannot be scripted.

    Args:
        model: Any module; the layer itself too.
        report: Receives one sentence for every kind of layer: what was changed, or what other attention was left
            and why; and one if nothing was changed. None for silence.

    Returns:
        `model`, the object that was given.

    Raises:
        UserError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"accelerate takes a torch.nn.Module, not {model!r:.60} of type {type(model).__name__}")
    forms = fast_forms()
    findings = []
    for name, module in model.named_modules():
        kind, fate = _kind(module, forms), _fate(module, forms)
        if fate == CHANGED:
            module.__class__ = forms[type(module)]
        if fate is not None:
            findings.append(Finding(name or "the model itself", kind, fate))
    if report is not None:
        for sentence in _sentences(_kind(model, forms), findings):
            report(sentence)
    return model


def decelerate(model: Model) -> Model:
    """Give the layers that `accelerate` changed their own class, and so their own code, back, in place.

    Parameters, submodules and hooks stay, as they did before. Maps that timm's block does not divide are refused again.

    Returns:
        `model`, the object that was given.

    Raises:
        UserError: `model` is not a torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"decelerate takes a torch.nn.Module, not {model!r:.60} of type {type(model).__name__}")
    originals = {fast: original for original, fast in fast_forms().items()}
    for module in model.modules():
        if type(module) in originals:
            vars(module).pop("impl", None)
            module.__class__ = originals[type(module)]
    return model


def fast_forms() -> dict[type[nn.Module], type[nn.Module]]:
    """From each class that can be swapped to the one that takes its place."""
    forms: dict[type[nn.Module], type[nn.Module]] = {HaloAttn: AcceleratedHaloAttn}
    # A model holds modules of gsa_pytorch only where someone imported it; we need not.
    if getattr(sys.modules.get("gsa_pytorch"), "GSA", None) is not None:
        from parhelion.models.accelerate.gsa import GSA, AcceleratedGSA

        forms[GSA] = AcceleratedGSA
    return forms


def _kind(module: nn.Module, forms: dict[type[nn.Module], type[nn.Module]]) -> str:
    """The name of the class that the module had before it was accelerated or scripted."""
    if isinstance(module, torch.jit.ScriptModule):
        return str(module.original_name)
    originals = {fast: original for original, fast in forms.items()}
    return originals.get(type(module), type(module)).__name__


def _fate(module: nn.Module, forms: dict[type[nn.Module], type[nn.Module]]) -> str | None:
    """What becomes of the module, see `Finding`; None if it is no attention that we know."""
    if isinstance(module, tuple(forms.values())):
        return BEFORE
    if type(module) in forms:
        return "whose forward was replaced on the object" if "forward" in vars(module) else CHANGED
    if isinstance(module, torch.jit.ScriptModule) and _kind(module, forms) in {original.__name__ for original in forms}:
        return "which is scripted: accelerate the model before torch.jit.script"
    for original in forms:
        if isinstance(module, original):
            return f"which is a subclass of {original.__name__} and may compute something else"
    return next((reason for kind, reason in LEFT.items() if isinstance(module, kind)), None)


def _sentences(model: str, findings: list[Finding]) -> Iterator[str]:
    """The report."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, kind, fate in findings:
        groups.setdefault((kind, fate), []).append(name)
    beginnings = {CHANGED: "Accelerated", BEFORE: "Accelerated before:"}
    for (kind, fate), names in sorted(groups.items(), key=lambda group: (group[0][1] not in beginnings, group[0])):
        reason = "" if fate in beginnings else f", {fate}"
        yield f"{beginnings.get(fate, 'Left as it was:')} {len(names)} {kind}{reason}: {', '.join(names)}."
    fates = {finding.fate for finding in findings}
    if BEFORE in fates and CHANGED not in fates:
        yield f"Nothing more to accelerate in {model}."
    elif CHANGED not in fates:
        yield f"Nothing to accelerate in {model}: no HaloAttn of timm and no GSA of gsa_pytorch that can be swapped."
