"""From a PIL image to the tensor a model takes: one way for evaluation, a random one for training.

torch and timm are imported where they are used: that takes seconds, and to check a recipe the dataclasses are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from parhelion.errors import UserError, nearest

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Transform: TypeAlias = "Callable[[Image.Image], Tensor]"

Crop = Literal["resized", "padded", "center"]
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
WHOLE_SCALE, WHOLE_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What evaluation and prediction do to an image; it travels with the weights.

    The shorter side is resized to image_px / crop_ratio, the middle image_px x image_px square is kept, values 0..1
    are shifted by `mean` and divided by `std` (one number per channel). Raises UserError.
    """

    image_px: int
    in_chans: int = 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _require(self.image_px >= 1, "image_px", self.image_px, "at least 1")
        _require(0 < self.crop_ratio <= 1, "crop_ratio", self.crop_ratio, "more than 0 and at most 1")
        one_per_channel = f"{self.in_chans} numbers, one per channel"
        _require(len(self.mean) == self.in_chans, "mean", self.mean, one_per_channel)
        _require(len(self.std) == self.in_chans, "std", self.std, one_per_channel)
        _require(min(self.std, default=1.0) > 0, "std", self.std, "more than 0")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation is '{self.interpolation}', but it should be one of {', '.join(INTERPOLATIONS)}"
                + nearest(self.interpolation, INTERPOLATIONS)
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The preprocessing that `as_dict` wrote, also after a round trip through JSON. Raises UserError."""
        known = {field.name: field.default for field in fields(cls)}
        unknown = sorted(values.keys() - known.keys())
        missing = sorted(name for name, default in known.items() if default is MISSING and name not in values)
        if unknown or missing:
            raise UserError(
                f"the preprocessing has {', '.join(values) or 'no entries'}; "
                f"it lacks {', '.join(missing) or 'none'} and should not have {', '.join(unknown) or 'any other'}"
            )
        # JSON has no tuples.
        tuples: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**tuples)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to an image at random; raises UserError for values that mean nothing."""

    crop: Crop = "resized"
    """resized: a random part of the image, resized (large images). padded: the image resized until its shorter side
    is image_px, an eighth of that added in black on every side, and a square cut out at random (small images).
    center: what evaluation sees."""
    crop_scale: tuple[float, float] = WHOLE_SCALE
    """Area of the part, as a share of the image; for crop "resized" only."""
    crop_ratio: tuple[float, float] = WHOLE_RATIO
    """Width over height of the part; for crop "resized" only."""
    flip: float = 0.5
    """Probability of a mirror image."""
    randaugment: int = 0
    """RandAugment's magnitude, 0 to 31 (arXiv 1909.13719): timm's rand-mN-mstd0.5-inc1; 0 is off. Beyond 10 rotation,
    shear, colour, contrast, brightness and sharpness go on growing, as in EfficientNet's implementation; posterising
    and shifts do not."""
    erase: float = 0.0
    """Probability that a rectangle is replaced by noise (random erasing, arXiv 1708.04896)."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""

    def __post_init__(self) -> None:
        _require(self.crop in get_args(Crop), "crop", self.crop, " or ".join(map(repr, get_args(Crop))))
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "crop_scale", self.crop_scale, "two rising numbers in 0 to 1")
        low, high = self.crop_ratio
        _require(0 < low <= high, "crop_ratio", self.crop_ratio, "two rising positive numbers")
        _require(0 <= self.flip <= 1, "flip", self.flip, "a probability, 0 to 1")
        _require(0 <= self.erase <= 1, "erase", self.erase, "a probability, 0 to 1")
        _require(0 <= self.randaugment <= 31, "randaugment", self.randaugment, "0 (off) to 31")
        _require(self.color_jitter >= 0, "color_jitter", self.color_jitter, "0 (off) or more")
        if self.crop != "resized" and (self.crop_scale, self.crop_ratio) != (WHOLE_SCALE, WHOLE_RATIO):
            raise UserError(f"crop_scale and crop_ratio are for crop 'resized', but crop is '{self.crop}'")


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """The deterministic transform of `preprocessing`: image -> float32 (in_chans, image_px, image_px)."""
    from timm.data import create_transform

    return create_transform(
        input_size=(preprocessing.in_chans, preprocessing.image_px, preprocessing.image_px),
        crop_pct=preprocessing.crop_ratio,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def as_stored(image: Image.Image) -> Tensor:
    """The pixels of `image` as they are: (h, w, channels) uint8."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def train_transform(preprocessing: Preprocessing, augmentation: Augmentation) -> Transform:
    """The random transform: image -> float32 (in_chans, image_px, image_px), normalised as in evaluation.

    Draws from the global generators of `random`, numpy and torch; `make_loader` seeds them for each image.
    """
    from timm.data import create_transform
    from torchvision import transforms

    crop, augment, normalise = create_transform(
        input_size=(preprocessing.in_chans, preprocessing.image_px, preprocessing.image_px),
        is_training=True,
        separate=True,
        scale=augmentation.crop_scale,
        ratio=augmentation.crop_ratio,
        hflip=augmentation.flip,
        color_jitter=None,
        auto_augment=_randaugment(augmentation.randaugment),
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=augmentation.erase,
        re_mode="pixel",
    )
    for step in augment.transforms:
        _cap(step)
    if augmentation.crop != "resized":
        crop = _square_crop(preprocessing, augmentation)
    steps = [crop, augment, normalise]
    if augmentation.color_jitter:
        # timm leaves the jitter out when RandAugment is on; whoever asks for both gets both.
        steps.insert(2, transforms.ColorJitter(*[augmentation.color_jitter] * 3))
    return transforms.Compose(steps)


# The largest magnitude of operations that would leave nothing to see beyond it; the others stop at the recipe's.
CAPS = {
    # 1 bit, as from 7.5 on. At 10 timm would keep 0 bits, which is black, and an error in Pillow 13.
    "PosterizeIncreasing": 9,
    # 45% of the image. EfficientNet's 10 pixels per step come to as much, since its images grow with the magnitude: 44%
    # of 320 pixels at 14, 52% of 600 at 31. timm counts in shares: at 23 the image would leave its frame.
    "TranslateXRel": 10,
    "TranslateYRel": 10,
}


def _randaugment(magnitude: int) -> str | None:
    """RandAugment in timm's words; None for magnitude 0."""
    # timm caps magnitudes at 10 unless told otherwise.
    higher = "-mmax31" if magnitude > 10 else ""
    return f"rand-m{magnitude}-mstd0.5-inc1{higher}" if magnitude else None


def _cap(randaugment: Any) -> None:
    """Set the magnitudes beyond which timm's operations do not go."""
    for operation in randaugment.ops:
        if operation.name in CAPS:
            operation.magnitude_max = CAPS[operation.name]


def _square_crop(preprocessing: Preprocessing, augmentation: Augmentation) -> Callable[[Image.Image], Image.Image]:
    from timm.data.transforms import str_to_interp_mode
    from torchvision import transforms

    size, ratio = preprocessing.image_px, preprocessing.crop_ratio
    padded = augmentation.crop == "padded"
    cut = transforms.RandomCrop(size, padding=size // 8) if padded else transforms.CenterCrop(size)
    shorter_side = size if padded else int(size / ratio)
    resize = transforms.Resize(shorter_side, interpolation=str_to_interp_mode(preprocessing.interpolation))
    return transforms.Compose([resize, cut, transforms.RandomHorizontalFlip(augmentation.flip)])


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}, but it should be {right}")
