"""`ClassificationRecipe`: a `Recipe` and what only classification needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from parhelion.errors import UserError
from parhelion.runs.recipe import RULES, Recipe, Rules, share

if TYPE_CHECKING:
    # Imported where they are used: they bring torch, and a list of recipes should not wait for it.
    from parhelion.data.transforms import Augmentation, Preprocessing

# fmt: off
OWN_RULES: Rules = {
    "mixup":           (lambda v: v >= 0,         "at least 0 (0: off)"),
    "cutmix":          (lambda v: v >= 0,         "at least 0 (0: off)"),
    "eval_px":         (lambda v: v >= 0,         "at least 0 (0: as image_px)"),
    "label_smoothing": (share,                    "at least 0 and below 1"),
    "dropout":         (share,                    "at least 0 and below 1"),
    "eval_crop_ratio": (lambda v: 0 < v <= 1,     "above 0 and at most 1"),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(Recipe):
    """A run that trains a classifier; images are squares of `image_px`."""

    task: ClassVar[str] = "classification"
    rules: ClassVar[Rules] = {**RULES, **OWN_RULES}

    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """What an image counts in the loss; balanced: images / (classes * images of its class), 1 on average, so that rare
    classes count as much as frequent ones. A mixed image counts as its parts do."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """Order of the training images; shuffled: each comes once in an epoch; balanced: as many come in an epoch, but each
    class equally often, so that images of rare classes come again and not all of the frequent ones come."""
    dropout: float = 0.0
    """Probability that a feature before the classifier is dropped."""
    compile: bool = False
    """Train through torch.compile."""

    crop: Literal["resized", "padded", "center"] = "resized"
    """Training crop; resized: of random size and shape; padded: the image, moved a little at random; center: as in
    evaluation."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a resized crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of a resized crop."""
    randaugment: int = 0
    """Magnitude of RandAugment, 0 to 31; 0 leaves it out."""
    erase: float = 0.0
    """Probability that a random rectangle of a training image is erased."""
    mixup: float = 0.0
    """Alpha of mixup: pairs of images are averaged with weights from Beta(alpha, alpha); 0 leaves it out."""
    cutmix: float = 0.0
    """Alpha of CutMix: a rectangle of one image replaces that of another; 0 leaves it out. With mixup: each half of
    the time."""

    eval_crop_ratio: float = 1.0
    """Share of the image's shorter side that the central crop keeps in evaluation."""
    eval_px: int = 0
    """Height and width of the images in evaluation, in pixels; 0: as in training."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] = "bicubic"
    """How images are resized."""

    @property
    def compiled(self) -> bool:
        return self.compile

    def preprocessing(self, image_px: int = 0) -> Preprocessing:
        """What happens to every image of `image_px` pixels; by default as in evaluation."""
        from parhelion.data.transforms import Preprocessing

        return Preprocessing(
            image_px=image_px or self.eval_px or self.image_px,
            in_chans=self.in_chans,
            mean=self.per_channel(self.mean),
            std=self.per_channel(self.std),
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

    def check_together(self) -> None:
        super().check_together()
        if self.class_weights == self.sampling == "balanced":
            raise UserError("class_weights and sampling are both balanced, which favours rare classes twice; take one")
        # These check their own fields.
        self.preprocessing()
        self.augmentation()
