"""`Recipe`: everything that a training run depends on besides its images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from parhelion.errors import UserError

if TYPE_CHECKING:
    # Imported where they are used: they bring torch, and a list of recipes should not wait for it.
    from parhelion.data.transforms import Augmentation, Preprocessing


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run; every field acts."""

    model: str
    """Name of the model, as `parhelion models` lists it."""
    image_px: int
    """Height and width of the images that the model sees, in pixels."""
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
    """How the learning rate falls after the warm-up; step: to a tenth every step_updates updates."""
    step_updates: int = 0
    """Updates from one fall of the learning rate to the next, for the schedule step."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each layer to the one before it; 1: none."""
    momentum: float = 0.9
    """Momentum of sgd; the first beta of the other optimisers."""
    weight_decay: float = 5e-4
    """Weight decay; biases, norms and position tables named by the model are not decayed."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 clips nothing."""
    ema_decay: float = 0.0
    """Decay, per update, of a running average of the weights, which is then what is evaluated and saved; 0: none."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    drop_path: float = 0.0
    """Probability that the last block skips its residual branch; earlier blocks less."""
    dropout: float = 0.0
    """Probability that a feature before the classifier is dropped."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of training; no: float32. Evaluation is always float32."""
    compile: bool = False
    """Train through torch.compile."""
    recompute: bool = False
    """Keep only the input of each block for the backward pass, and compute the block again: less memory, more time."""
    sharding: Literal["none", "fsdp"] = "none"
    """How several processes hold the weights; none: all of them each (DDP); fsdp: a part each (FSDP2)."""
    sync_bn: bool = True
    """Take batch statistics over the images of all processes, not over each process's own."""

    crop: Literal["resized", "padded", "center"] = "resized"
    """Training crop; resized: of random size and shape; padded: the image, moved a little at random; center: as in
    evaluation."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a resized crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a resized crop."""
    flip: float = 0.5
    """Probability of a mirrored training image."""
    randaugment: int = 0
    """Magnitude of RandAugment, 0 to 31; 0 leaves it out."""
    erase: float = 0.0
    """Probability that a random rectangle of a training image is erased."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 leaves them alone."""
    mixup: float = 0.0
    """Alpha of mixup: pairs of images are averaged with weights from Beta(alpha, alpha); 0 leaves it out."""
    cutmix: float = 0.0
    """Alpha of CutMix: a rectangle of one image replaces that of another; 0 leaves it out. With mixup: each half of
    the time."""

    mean: tuple[float, ...] = (0.5,)
    """Mean that is subtracted from pixels in 0..1: one number, or one per channel."""
    std: tuple[float, ...] = (0.25,)
    """Deviation that pixels are divided by: one number, or one per channel."""
    eval_crop_ratio: float = 1.0
    """Share of the image's shorter side that the central crop keeps in evaluation."""
    eval_px: int = 0
    """Height and width of the images in evaluation, in pixels; 0: as in training."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bicubic"
    """How images are resized."""

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

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    def model_choices(self) -> dict[str, Any]:
        """`choices` by name, as values; UserError for what is not name=value, or comes twice."""
        pairs = [_choice(text) for text in self.choices]
        if len(dict(pairs)) < len(pairs):
            raise UserError(f"choices holds {' '.join(self.choices)}; each name must come once")
        return dict(pairs)

    def preprocessing(self, image_px: int = 0) -> Preprocessing:
        """What happens to every image of `image_px` pixels; by default as in evaluation."""
        from parhelion.data.transforms import Preprocessing

        return Preprocessing(
            image_px=image_px or self.eval_px or self.image_px,
            in_chans=self.in_chans,
            mean=self._per_channel(self.mean),
            std=self._per_channel(self.std),
            crop_ratio=self.eval_crop_ratio,
            interpolation=self.interpolation,
        )

    def augmentation(self) -> Augmentation:
        """What happens to training images at random."""
        from parhelion.data.transforms import Augmentation

        return Augmentation(
            crop=self.crop,
            crop_scale=self.crop_scale,
            crop_ratio=self.crop_ratio,
            flip=self.flip,
            randaugment=self.randaugment,
            erase=self.erase,
            color_jitter=self.color_jitter,
        )

    def _per_channel(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(values) * self.in_chans if len(values) == 1 else tuple(values)


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


def _share(value: float) -> bool:
    return 0 <= value < 1


# fmt: off
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {  # field: what must hold, in code and in words
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
    "layer_decay":     (lambda v: 0 < v <= 1,     "above 0 and at most 1 (1: off)"),
    "ema_decay":       (_share,                   "at least 0 (0: off) and below 1"),
    "mixup":           (lambda v: v >= 0,         "at least 0 (0: off)"),
    "cutmix":          (lambda v: v >= 0,         "at least 0 (0: off)"),
    "eval_px":         (lambda v: v >= 0,         "at least 0 (0: as image_px)"),
    "checkpoint_updates": (lambda v: v >= 0,      "at least 0 (0: off)"),
    "keep":            (lambda v: v >= 1,         "at least 1"),
    "momentum":        (_share,                   "at least 0 and below 1"),
    "weight_decay":    (lambda v: 0 <= v < 1e9,   "at least 0"),
    "clip_norm":       (lambda v: v >= 0,         "at least 0 (0: off)"),
    "label_smoothing": (_share,                   "at least 0 and below 1"),
    "drop_path":       (_share,                   "at least 0 and below 1"),
    "dropout":         (_share,                   "at least 0 and below 1"),
    "eval_crop_ratio": (lambda v: 0 < v <= 1,     "above 0 and at most 1"),
    "workers":         (lambda v: v >= 0,         "at least 0"),
    "seed":            (lambda v: 0 <= v < 2**32, "from 0 to 4294967295"),
}
CHOICES = ("optimizer", "schedule", "precision", "sharding", "on_bad_image")
# fmt: on


def check(recipe: Recipe) -> None:
    """Raise UserError for the first field whose value cannot be."""
    types = get_type_hints(Recipe)
    for field, kind in types.items():
        # A recipe may have been read from a file.
        if not _is_of(kind, getattr(recipe, field)):
            raise UserError(f"{field} is {getattr(recipe, field)!r}; it must be {_kind_in_words(kind)}")
    for field, (holds, words) in RULES.items():
        value = getattr(recipe, field)
        if not holds(value):
            raise UserError(f"{field} is {value}; it must be {words}")
    for field in CHOICES:
        value, choices = getattr(recipe, field), get_args(types[field])
        if value not in choices:
            raise UserError(f"{field} is {value!r}; it must be one of {', '.join(choices)}")
    if recipe.warmup_epochs >= recipe.epochs:
        raise UserError(f"warmup_epochs is {recipe.warmup_epochs}; it must be below epochs, which is {recipe.epochs}")
    if (recipe.schedule == "step") != (recipe.step_updates > 0):
        raise UserError(
            f"schedule is {recipe.schedule} and step_updates is {recipe.step_updates}; the schedule step needs "
            "step_updates above 0, and no other takes it"
        )
    # These check their own fields.
    recipe.model_choices()
    recipe.preprocessing()
    recipe.augmentation()


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
