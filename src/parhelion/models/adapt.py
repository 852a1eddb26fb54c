"""Weights of a network into another of the same architecture: other classes, channels, windows and image sizes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.files.weights import misfit_clause
from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.layers.tables import refitted_table
from parhelion.models.catalog import TIMM_PREFIX
from parhelion.models.resnet import ResNet

# Names, in the one skeleton, of what may differ.
FIRST_CONVOLUTION, CLASSIFIER, LAST_CONVOLUTION, COUNTER = "stem.0.weight", "head.fc.", "final.", "num_batches_tracked"
# Choices of an operator that change what it computes and that no tensor shows for certain.
CHOICES = ("heads", "block", "halo", "border", "scale", "relative", "rows", "content", "position", "normalize_queries")

Normalised: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation that images are normalised with, one number per channel each."""

Fate = Literal["loaded", "adapted", "started afresh", "dropped"]


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Weights to start from, and what is known about them."""

    # As the user named them.
    label: str
    # By the names that our skeleton gives them.
    weights: Mapping[str, Tensor]
    architecture: str | None = None
    # The network that the weights were trained in, on the meta device; None where the file does not tell.
    model: ResNet | None = None
    class_names: tuple[str, ...] | None = None
    # Mean and deviation, one number per channel, that the images were normalised with; None where nobody tells.
    normalised: Normalised | None = None
    # From our names to those in the file, where they differ.
    names: Mapping[str, str] = field(default_factory=dict)
    # What a model of timm may have otherwise than ours: 3x3 convolutions, and squeeze and excitation.
    foreign: bool = False


@dataclass(frozen=True)
class Place:
    """A tensor where it stands."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor: of the weights, of the model, or of both."""

    fate: Fate
    how: str  # "" if it was loaded as it is
    in_weights: Place | None
    in_model: Place | None

    def line(self) -> str:
        """The report as a line to read."""
        places = [place for place in (self.in_weights, self.in_model) if place is not None]
        shapes = " -> ".join("x".join(map(str, place.shape)) or "one number" for place in places)
        return f"{self.fate}: {places[-1].name}, {shapes}: {self.how}"


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What `adapt` did; every tensor of the weights and every tensor of the model stands in `tensors` once."""

    label: str
    architecture: str | None  # of the weights
    choices: tuple[str, ...]  # of the network, that differ from those the weights were trained with
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()  # what the user should know besides

    @property
    def counts(self) -> dict[Fate, int]:
        """How many tensors met each fate."""
        counted = Counter(tensor.fate for tensor in self.tensors)
        return {fate: counted[fate] for fate in get_args(Fate)}

    def lines(self) -> list[str]:
        """A summary, then a line for each note, each choice that differs and each tensor that was not simply loaded."""
        loaded, *others = self.counts.items()
        counts = ", ".join([f"{loaded[1]} tensors {loaded[0]}", *(f"{count} {fate}" for fate, count in others)])
        return [
            f"init-from {self.label}: {counts}",
            *(f"  note: {note}" for note in self.notes),
            *(f"  changed choice: {choice}" for choice in self.choices),
            *(f"  {tensor.line()}" for tensor in self.tensors if tensor.how),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "counts": self.counts}


def adapt(model: ResNet, pretrained: Pretrained, *, class_names: Sequence[str] | None = None) -> Adaptation:
    """Fill `model` in place from weights of its own architecture, and report every tensor.

    The rule: every tensor of the model must be in the weights and the other way round, each in the same shape, but
    for these.

    * The classifier is kept where it has as many classes and, as far as both sides name them, the same ones in the
      same order. Otherwise it starts from zeros (arXiv 2103.12731, ImageNet-21k transfer), also where the weights
      have none; it is dropped where the model has none.
    * The last 1x1 convolution may be absent together with the classifier, as in a model made with `features_only`;
      so may the stages that such a model has cut off.
    * Filters of the first convolution for other channels all become the old ones' sum over channels, divided by the
      new number of channels: an image whose channels are all alike gives the same response.
    * Relative tables are linearly interpolated between offsets, as `resize` does. Where the network behind
      the weights is unknown, rows of zeros at both ends of a halo table count as the spare ones.
    * Batch normalisation's counters of batches may be missing on either side; nothing is computed from them.
    * In weights of timm's ResNets (`pretrained.foreign`), a 3x3 convolution in whose place the model attends is
      dropped and the attention starts afresh; so does squeeze and excitation that one side lacks or sizes otherwise.

    Raises:
        UserError: anything else differs; the sentence names both architectures and counts the tensors, and the model
            is left as it was.
    """
    wanted, given = model.state_dict(), pretrained.weights
    apart = _apart(model, pretrained, class_names)
    spare = dict(_spare_rows(model, pretrained))
    fitted = {
        name: _fitted(name, given[name], wanted[name], spare) for name in wanted if name in given and name not in apart
    }
    _check_fit(model, pretrained, fitted, apart)
    reports, filled = [], dict(wanted)
    for name in dict.fromkeys([*wanted, *given]):
        ours = Place(name, tuple(wanted[name].shape)) if name in wanted else None
        theirs = Place(pretrained.names.get(name, name), tuple(given[name].shape)) if name in given else None
        if (fit := fitted.get(name)) is not None:
            filled[name], how = fit
            reports.append(TensorReport("adapted" if how else "loaded", how, theirs, ours))
            continue
        if theirs is not None:
            reports.append(TensorReport("dropped", apart[name], theirs, None))
        if ours is not None:
            filled[name], start = _fresh(name, wanted[name])
            reports.append(TensorReport("started afresh", f"{start} ({apart[name]})", None, ours))
    model.load_state_dict(filled)
    return Adaptation(
        label=pretrained.label,
        architecture=pretrained.architecture,
        choices=tuple(_changed_choices(pretrained.model, model)) if pretrained.model is not None else (),
        tensors=tuple(reports),
    )


def _check_fit(
    model: ResNet, pretrained: Pretrained, fitted: Mapping[str, tuple[Tensor, str] | None], apart: Mapping[str, str]
) -> None:
    wanted, given = model.state_dict(), pretrained.weights
    missing = [name for name in wanted if name not in given and name not in apart]
    unexpected = [pretrained.names.get(name, name) for name in given if name not in wanted and name not in apart]
    reshaped = [
        f"{name} is {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name, fit in fitted.items()
        if fit is None
    ]
    if misfit := misfit_clause(missing, unexpected, reshaped):
        theirs = pretrained.architecture or "an architecture that they do not name"
        ours = getattr(model, "default_cfg", {}).get("architecture", "this model").removeprefix(TIMM_PREFIX)
        raise UserError(f"the weights in {pretrained.label}, of {theirs}, do not fit {ours}: {misfit}")


def _apart(model: ResNet, pretrained: Pretrained, class_names: Sequence[str] | None) -> dict[str, str]:
    """Names of tensors on either side that need no counterpart and are given none, each with the reason."""
    wanted, given = model.state_dict(), pretrained.weights
    names = [*wanted, *given]
    apart = {name: "the weights do not count" for name in wanted if name.endswith(COUNTER) and name not in given}
    apart |= {name: "the model does not count" for name in given if name.endswith(COUNTER) and name not in wanted}
    if why := _why_other_classifier(wanted, pretrained, class_names):
        apart |= {name: why for name in names if name.startswith(CLASSIFIER)}
    if not _has(given, LAST_CONVOLUTION) and not _has(given, CLASSIFIER):
        apart |= {name: "the weights end before it" for name in wanted if name.startswith(LAST_CONVOLUTION)}
    if isinstance(model.final, nn.Identity) and model.network.head_width is not None:
        apart |= {name: "the model ends before it" for name in given if name.startswith(LAST_CONVOLUTION)}
    for stage in range(len(model.stages), len(model.network.stages)):
        apart |= {name: "the model ends before it" for name in given if name.startswith(f"stages.{stage}.")}
    if pretrained.foreign:
        apart |= dict(_replaced(model, given))
    return apart


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _why_other_classifier(
    wanted: Mapping[str, Tensor], pretrained: Pretrained, class_names: Sequence[str] | None
) -> str | None:
    """Why the classifier of the weights is not the model's; None if it is."""
    ours, theirs = wanted.get(f"{CLASSIFIER}weight"), pretrained.weights.get(f"{CLASSIFIER}weight")
    if theirs is None:
        return "the weights have no classifier"
    if ours is None:
        return "the model has no classifier"
    if len(ours) != len(theirs):
        return f"{len(ours)} classes, not {len(theirs)}"
    if class_names is not None and pretrained.class_names not in (None, tuple(class_names)):
        return "the classes have other names or another order"
    return None


def _replaced(model: ResNet, given: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Tensors of each spatial operator, and squeeze and excitation, that a ResNet of timm has otherwise."""
    for path, module in model.named_modules():
        if not path.endswith((".operator", ".se")):
            continue
        ours = {f"{path}.{name}": tensor.shape for name, tensor in module.state_dict().items()}
        theirs = {name: tensor.shape for name, tensor in given.items() if name.startswith(f"{path}.")}
        if path.endswith(".se"):
            why = "squeeze and excitation differs"
        elif isinstance(module, nn.Conv2d):
            continue
        else:
            why = "attention in place of a 3x3 convolution"
        if ours != theirs:
            yield from dict.fromkeys([*ours, *theirs], why).items()


def _spare_rows(model: ResNet, pretrained: Pretrained) -> Iterator[tuple[str, tuple[int, int]]]:
    """Of every relative table: its name, and its spare rows at either end in the weights and in the model."""
    trained = dict(pretrained.model.named_modules()) if pretrained.model is not None else {}
    for path, module in model.named_modules():
        if not isinstance(module, HaloAttention | GlobalSelfAttention):
            continue
        names = [f"{path}.{name}" for name in ("table_h", "table_w")]
        spare = (0, 0)
        if isinstance(module, HaloAttention):
            known = trained.get(path)
            tables = [pretrained.weights[name] for name in names if name in pretrained.weights]
            found = known.spare_rows if isinstance(known, HaloAttention) else min(map(_zero_ends, tables), default=0)
            spare = (found, module.spare_rows)
        yield from dict.fromkeys(names, spare).items()


def _zero_ends(table: Tensor) -> int:
    """Rows of zeros that `table` has at both ends alike."""
    filled = table.flatten(1).ne(0).any(dim=1).nonzero() if table.ndim > 1 else table
    return min(int(filled[0]), len(table) - 1 - int(filled[-1])) if table.ndim > 1 and len(filled) else 0


def _fitted(
    name: str, given: Tensor, wanted: Tensor, spare: Mapping[str, tuple[int, int]]
) -> tuple[Tensor, str] | None:
    """`given` in the shape of `wanted`, and how it came to it ("" if it had it); None if it cannot."""
    if given.is_floating_point() != wanted.is_floating_point():
        return None
    if name in spare:
        return _fitted_table(given, wanted, spare[name])
    if given.shape == wanted.shape:
        return given, ""
    if name == FIRST_CONVOLUTION and (given.shape[:1] + given.shape[2:]) == (wanted.shape[:1] + wanted.shape[2:]):
        before, after = given.shape[1], wanted.shape[1]
        mean = given.to(wanted.dtype).sum(dim=1, keepdim=True) / after
        return mean.expand_as(wanted), f"{before} channels summed, and shared out among {after}"
    return None


def _fitted_table(given: Tensor, wanted: Tensor, spare: tuple[int, int]) -> tuple[Tensor, str] | None:
    before, after = spare
    if given.ndim != 2 or given.shape[1] != wanted.shape[1] or len(given) <= 2 * before:
        return None
    theirs, ours = len(given) - 2 * before, len(wanted) - 2 * after
    if (theirs, before) == (ours, after):
        return given, ""
    changes = [f"{theirs} offsets interpolated to {ours}"] if theirs != ours else []
    changes += [f"{before} spare rows at either end become {after}"] if before != after else []
    return refitted_table(given.to(wanted.dtype), ours, spare=spare), ", ".join(changes)


def _fresh(name: str, wanted: Tensor) -> tuple[Tensor, str]:
    """What a tensor without weights starts from, in one word too."""
    if name.startswith(CLASSIFIER):
        return torch.zeros_like(wanted), "zeros"
    return wanted, "as built"


def _changed_choices(before: ResNet, after: ResNet) -> Iterator[str]:
    """One phrase for every choice that differs, wherever it differs in the same way."""
    if before.network.act != after.network.act:
        yield f"act {before.network.act} -> {after.network.act}"
    changes = (
        f"{choice} {getattr(old.operator, choice)} -> {getattr(new.operator, choice)}"
        for old, new in zip(before.bottlenecks, after.bottlenecks, strict=False)
        if type(old.operator) is type(new.operator)
        for choice in CHOICES
        if getattr(old.operator, choice, None) != getattr(new.operator, choice, None)
    )
    yield from dict.fromkeys(changes)
