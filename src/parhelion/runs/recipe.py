"""`Recipe`: what every training run depends on besides its images, whatever it trains for."""

from __future__ import annotations

import json
import math
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

from parhelion.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

Rules: TypeAlias = Mapping[str, tuple[Callable[[Any], bool], str]]
"""By field: what must hold for its value, in code and in words."""


EMA_WARMUP_POWER = 2 / 3
"""The running average of the weights covers at most the last u^(2/3) updates after u of them: timm's warm-up."""
# Below this share of the updates that `ema_decay` averages over, the run is too short for it.
FAR_SHORTER = 0.1


def share(value: float) -> bool:
    """Whether `value` is at least 0 and below 1."""
    return 0 <= value < 1


# fmt: off
RULES: Rules = {
    "image_px":        (lambda v: v >= 1,         "at least 1"),
    "in_chans":        (lambda v: v in (1, 3),    "1 (grey) or 3 (colour)"),
    "epochs":          (lambda v: v >= 1,         "at least 1"),
    "batch":           (lambda v: v >= 1,         "at least 1"),
    "freeze":          (lambda v: v >= 0,         "at least 0 (0: nothing)"),
    "updates":         (lambda v: v >= 0,         "at least 0 (0: as the epochs have)"),
    "accumulate":      (lambda v: v >= 1,         "at least 1"),
    "lr_per_256":      (lambda v: 0 < v < 1e9,    "above 0"),
    "warmup_epochs":   (lambda v: v >= 0,         "at least 0"),
    "lr_end_ratio":    (lambda v: 0 <= v <= 1,    "from 0 to 1"),
    "step_updates":    (lambda v: v >= 0,         "at least 0"),
    "drop_updates":    (lambda v: list(v) == sorted({u for u in v if u > 0}), "rising numbers above 0"),
    "layer_decay":     (lambda v: 0 < v <= 1,     "above 0 and at most 1 (1: off)"),
    "ema_decay":       (share,                    "at least 0 (0: off) and below 1"),
    "checkpoint_updates": (lambda v: v >= 0,      "at least 0 (0: off)"),
    "keep":            (lambda v: v >= 1,         "at least 1"),
    "momentum":        (share,                    "at least 0 and below 1"),
    "weight_decay":    (lambda v: 0 <= v < 1e9,   "at least 0"),
    "clip_norm":       (lambda v: v >= 0,         "at least 0 (0: off)"),
    "drop_path":       (share,                    "at least 0 and below 1"),
    "workers":         (lambda v: v >= 0,         "at least 0"),
    "seed":            (lambda v: 0 <= v < 2**32, "from 0 to 4294967295"),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """One training run; every field acts."""

    task: ClassVar[str]
    """What is trained for; also the module beside this one that does it."""
    rules: ClassVar[Rules] = RULES

    model: str
    """Name of the model, as `parhelion models` lists it."""
    image_px: int
    """Side of the images that the model sees, in pixels."""
    in_chans: int = 3
    """Channels of the images: 3 for colour, 1 for grey; images are converted."""
    choices: tuple[str, ...] = ()
    """Choices of the model, as name=value: block=12 halo=2; `parhelion models NAME --json` shows them all."""
    freeze: int = 0
    """Parts of the model that stay as they are, batch statistics included: 0: none, 1: the stem, 2: the stem and the
    first stage, and so on."""

    epochs: int
    """Passes over the training images."""
    batch: int = 128
    """Images per update, over all processes and accumulated parts together."""
    updates: int = 0
    """Updates after which training ends, also in the middle of an epoch; 0: when all epochs are over."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to need less memory."""
    optimizer: Literal["sgd", "momentum", "adamw", "lamb", "lion"] = "sgd"
    """Optimiser; sgd uses Nesterov momentum, momentum the plain one."""
    lr_per_256: float
    """Peak learning rate for a batch of 256; the rate used is lr_per_256 * batch / 256."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises to its peak, update by update."""
    lr_end_ratio: float = 0.01
    """Share of the peak at which the cosine schedule ends."""
    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls after the warm-up; step: to a tenth every step_updates updates, or after each of
    drop_updates."""
    step_updates: int = 0
    """Updates from one fall of the learning rate to the next, for the schedule step."""
    drop_updates: tuple[int, ...] = ()
    """Updates after each of which the learning rate falls, for the schedule step: instead of step_updates."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each layer to the one before it; 1: none."""
    momentum: float = 0.9
    """Momentum of sgd; the first beta of the other optimisers."""
    weight_decay: float = 5e-4
    """Weight decay; biases, norms and position tables named by the model are not decayed."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 clips nothing."""
    ema_decay: float = 0.0
    """Decay, per update, of a running average of the weights, which is then what is evaluated and saved; 0: none. It
    covers about the last 1 / (1 - ema_decay) updates, but after u updates at most u^(2/3)."""
    drop_path: float = 0.0
    """Probability that the last block skips its residual branch; earlier blocks less."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of training; no: float32. Evaluation is always float32."""
    recompute: bool = False
    """Keep only the input of each block for the backward pass, and compute the block again: less memory, more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """How several processes hold the weights; none: all of them each (DDP); fsdp: a part each (FSDP2)."""
    sync_bn: bool = True
    """Take batch statistics over the images of all processes, not over each process's own."""

    flip: float = 0.5
    """Probability of a mirrored training image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 leaves them alone."""
    mean: tuple[float, ...] = (0.5,)
    """Mean that is subtracted from pixels in 0..1: one number, or one per channel."""
    std: tuple[float, ...] = (0.25,)
    """Deviation that pixels are divided by: one number, or one per channel."""

    workers: int = 0
    """Processes that read images; 0 reads them in the training process."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: leave it out and count it."""
    checkpoint_updates: int = 1000
    """Updates between checkpoints within an epoch; 0: only at the end of each epoch."""
    keep: int = 2
    """Newest checkpoints that are kept."""

    @property
    def compiled(self) -> bool:
        """Whether the network is trained through torch.compile."""
        return False

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe with these fields, also after a round trip through JSON, which has no tuples."""
        tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**tuples)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The fields that need not be given, by name: what a recipe had that was written before there was a field."""
        return {field.name: field.default for field in fields(cls) if field.default is not MISSING}

    def model_choices(self) -> dict[str, Any]:
        """`choices` by name, as values; UserError for what is not name=value, or comes twice."""
        pairs = [_choice(text) for text in self.choices]
        if len(dict(pairs)) < len(pairs):
            raise UserError(f"choices holds {' '.join(self.choices)}; each name must come once")
        return dict(pairs)

    def per_channel(self, values: tuple[float, ...]) -> tuple[float, ...]:
        """One number per channel of the images; a single one is repeated."""
        return tuple(values) * self.in_chans if len(values) == 1 else tuple(values)

    def check(self) -> None:
        """Raise UserError for the first field whose value cannot be."""
        hints = get_type_hints(type(self))
        types = {field.name: hints[field.name] for field in fields(self)}
        for field, kind in types.items():
            # A recipe may have been read from a file.
            if not _is_of(kind, getattr(self, field)):
                raise UserError(f"{field} is {getattr(self, field)!r}; it must be {_kind_in_words(kind)}")
        for field, (holds, words) in self.rules.items():
            if not holds(getattr(self, field)):
                raise UserError(f"{field} is {getattr(self, field)}; it must be {words}")
        for field, kind in types.items():
            value, choices = getattr(self, field), get_args(kind)
            if get_origin(kind) is Literal and value not in choices:
                raise UserError(f"{field} is {value!r}; it must be one of {', '.join(choices)}")
        self.check_together()

    def never_reached(self, updates: int) -> list[str]:
        """A sentence for each setting that acts in full only after `updates` updates, where the run ends.

        To be told, not refused: `--updates 3` on a long recipe is how it is tried out, and such a try should not need
        another schedule; yet a schedule that was meant to act must not fail to in silence.
        """
        dropped = [update for update in self.drop_updates if update >= updates]
        beyond = {"drop_updates": ", ".join(map(str, dropped))} if dropped else {}
        if self.step_updates >= updates:
            beyond["step_updates"] = str(self.step_updates)
        sentences = [
            f"{field} is {value}, but the run ends after {updates} updates: the learning rate does not fall there"
            for field, value in beyond.items()
        ]
        asked, covered = 1 / (1 - self.ema_decay), updates**EMA_WARMUP_POWER
        if covered < FAR_SHORTER * asked:
            fitting = 1 - float(f"{1 / covered:.1g}")
            sentences.append(
                f"ema_decay is {self.ema_decay}, an average over {asked:.0f} updates, but the run ends after {updates} "
                f"updates; ema_decay {fitting:g}, over {1 / (1 - fitting):.0f}, acts in full there"
            )
        return sentences

    def check_together(self) -> None:
        """Raise UserError for the first fields that contradict each other."""
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs is {self.warmup_epochs}; it must be below epochs, which is {self.epochs}")
        steps = [self.step_updates > 0, bool(self.drop_updates)].count(True)
        if steps != (self.schedule == "step"):
            raise UserError(
                f"schedule is {self.schedule}, step_updates is {self.step_updates} and drop_updates is "
                f"{list(self.drop_updates)}; the schedule step needs one of the two, and no other takes them"
            )
        # This checks its own field.
        self.model_choices()


def _choice(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"choices holds {text!r}; each must be name=value, such as block=12")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        # A word, such as act=silu.
        parsed = value
    # Rows hold tuples, which JSON does not know: blocks=[3,4,6,3].
    return name, tuple(parsed) if isinstance(parsed, list) else parsed


def _is_of(kind: Any, value: object) -> bool:
    """Whether `value` is what the annotation `kind` of a field says; a Literal may be any word here."""
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_of(get_args(kind)[0], entry) for entry in value)
    if kind in (int, float):
        # To Python True is a number.
        return (
            isinstance(value, int if kind is int else int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
    return isinstance(value, bool if kind is bool else str)


def _kind_in_words(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list, each entry {_kind_in_words(get_args(kind)[0])}"
    return {int: "a whole number", float: "a finite number", bool: "true or false"}.get(kind, "a word")
