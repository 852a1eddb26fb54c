"""`Recipe`: everything that a training run depends on besides its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

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

    epochs: int
    """Passes over the training images."""
    batch: int = 128
    """Images per update, over all processes together."""
    optimizer: Literal["sgd", "adamw", "lamb", "lion"] = "sgd"
    """Optimiser; sgd uses Nesterov momentum."""
    lr_per_256: float
    """Peak learning rate for a batch of 256; the rate used is lr_per_256 * batch / 256."""
    warmup_epochs: float = 1.0
    """Epochs over which the learning rate rises to its peak, update by update."""
    lr_end_ratio: float = 0.01
    """Share of the peak at which the cosine schedule ends."""
    momentum: float = 0.9
    """Momentum of sgd; the first beta of the other optimisers."""
    weight_decay: float = 5e-4
    """Weight decay; biases, norms and position tables named by the model are not decayed."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 clips nothing."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    drop_path: float = 0.0
    """Probability that the last block skips its residual branch; earlier blocks less."""
    dropout: float = 0.0
    """Probability that a feature before the classifier is dropped."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of training; no: float32. Evaluation is always float32."""

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
    """Magnitude of RandAugment, 0 to 10; 0 leaves it out."""
    erase: float = 0.0
    """Probability that a random rectangle of a training image is erased."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation; 0 leaves them alone."""

    mean: tuple[float, ...] = (0.5,)
    """Mean that is subtracted from pixels in 0..1: one number, or one per channel."""
    std: tuple[float, ...] = (0.25,)
    """Deviation that pixels are divided by: one number, or one per channel."""
    eval_crop_ratio: float = 1.0
    """Share of the image's shorter side that the central crop keeps in evaluation."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bicubic"
    """How images are resized."""

    workers: int = 0
    """Processes that read images; 0 reads them in the training process."""
    seed: int = 0
    """Seed of weights, order and augmentation."""
    on_bad_image: Literal["refuse", "skip"] = "refuse"
    """What to do with an unreadable image: refuse: stop and name it; skip: leave it out and count it."""

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)

    def preprocessing(self) -> Preprocessing:
        """What happens to every image, in training and later."""
        from parhelion.data.transforms import Preprocessing

        return Preprocessing(
            image_px=self.image_px,
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


def _share(value: float) -> bool:
    return 0 <= value < 1


# fmt: off
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {  # field: what must hold, in code and in words
    "image_px":        (lambda v: v >= 1,         "at least 1"),
    "in_chans":        (lambda v: v in (1, 3),    "1 (grey) or 3 (colour)"),
    "epochs":          (lambda v: v >= 1,         "at least 1"),
    "batch":           (lambda v: v >= 1,         "at least 1"),
    "lr_per_256":      (lambda v: 0 < v < 1e9,    "above 0"),
    "warmup_epochs":   (lambda v: v >= 0,         "at least 0"),
    "lr_end_ratio":    (lambda v: 0 <= v <= 1,    "from 0 to 1"),
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
CHOICES = ("optimizer", "precision", "on_bad_image")
# fmt: on


def check(recipe: Recipe) -> None:
    """Raise UserError for the first field whose value cannot be."""
    for field, (holds, words) in RULES.items():
        value = getattr(recipe, field)
        if not holds(value):
            raise UserError(f"{field} is {value}; it must be {words}")
    types = get_type_hints(Recipe)
    for field in CHOICES:
        value, choices = getattr(recipe, field), get_args(types[field])
        if value not in choices:
            raise UserError(f"{field} is {value!r}; it must be one of {', '.join(choices)}")
    if recipe.warmup_epochs >= recipe.epochs:
        raise UserError(f"warmup_epochs is {recipe.warmup_epochs}; it must be below epochs, which is {recipe.epochs}")
    # These two check their own fields.
    recipe.preprocessing()
    recipe.augmentation()
