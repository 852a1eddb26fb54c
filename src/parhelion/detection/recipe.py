"""`DetectionRecipe`: a `Recipe` and what only detection needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from parhelion.errors import UserError
from parhelion.runs.recipe import RULES, Recipe, Rules

if TYPE_CHECKING:
    # Imported where it is used: it brings torch, and a list of recipes should not wait for it.
    from parhelion.data.annotated.transforms import DetectionAugmentation

# fmt: off
OWN_RULES: Rules = {
    "fpn_width":       (lambda v: v >= 1,         "at least 1"),
    "box_width":       (lambda v: v >= 1,         "at least 1"),
    "mask_width":      (lambda v: v >= 1,         "at least 1"),
    "proposals":       (lambda v: v >= 1,         "at least 1"),
    "sampled_boxes":   (lambda v: v >= 1,         "at least 1"),
    "min_score":       (lambda v: 0 <= v < 1,     "at least 0 and below 1"),
    "max_found":       (lambda v: v >= 1,         "at least 1"),
    "jitter":          (lambda v: len(v) == 2 and 0 < v[0] <= v[1], "two rising numbers above 0"),
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(Recipe):
    """A run that trains a Mask R-CNN or Faster R-CNN; `image_px` is the longer side of its images.

    `model` is the backbone: a model of `parhelion models`, or `timm:NAME`.
    """

    task: ClassVar[str] = "detection"
    rules: ClassVar[Rules] = {**RULES, **OWN_RULES}

    masks: bool = True
    """Segment each object (Mask R-CNN); otherwise find boxes only (Faster R-CNN)."""
    norm: Literal["batch", "frozen"] = "batch"
    """The backbone's batch norms: batch: trained; frozen: fixed as the weights to start from have them."""
    norm_heads: bool = False
    """Batch norms in the feature pyramid and the mask head, too."""
    fpn_width: int = 256
    """Channels of the feature pyramid."""
    box_width: int = 1024
    """Width of the two linear layers of the box head."""
    mask_width: int = 256
    """Channels of the four convolutions of the mask head."""
    proposals: int = 2000
    """Proposals that are kept of each image while training; half as many in evaluation."""
    sampled_boxes: int = 512
    """Proposals of each image that the box head learns from."""
    min_score: float = 0.05
    """Smallest score of what counts as found."""
    max_found: int = 100
    """Most objects that are found in one image; where more than 100, so many of each class count in COCO's numbers."""

    jitter: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest random factor on the scale at which a training image fits into image_px; what then is
    larger is cut at random."""

    exif: Literal["upright", "stored"] = "upright"
    """How photos are read that EXIF says were taken with the camera turned; upright: turned as it says; stored: as
    their pixels are stored, for annotations made that way."""
    on_bad_annotation: Literal["refuse", "drop"] = "refuse"
    """What to do with annotations that cannot be: refuse: stop and list them; drop: leave them out and count them;
    scores leave out only what cannot be scored."""

    def as_dict(self) -> dict[str, Any]:
        return {"task": self.task, **super().as_dict()}

    def detector(self, classes: int) -> dict[str, Any]:
        """What `detection.saved.built` makes the network of; ready for JSON."""
        sizes = {"widths": [self.fpn_width, self.box_width, *([self.mask_width] if self.masks else [])]}
        return {
            "kind": "mask_rcnn" if self.masks else "faster_rcnn",
            "backbone": self.model,
            "num_classes": classes,
            "image_px": self.image_px,
            "in_chans": self.in_chans,
            "norm": self.norm,
            "norm_heads": self.norm_heads,
            **sizes,
            "choices": self.model_choices(),
            "image_mean": list(self.per_channel(self.mean)),
            "image_std": list(self.per_channel(self.std)),
            "rpn_post_nms_top_n_train": self.proposals,
            "rpn_post_nms_top_n_test": -(-self.proposals // 2),
            "rpn_pre_nms_top_n_train": self.proposals,
            "rpn_pre_nms_top_n_test": -(-self.proposals // 2),
            "box_batch_size_per_image": self.sampled_boxes,
            "box_score_thresh": self.min_score,
            "box_detections_per_img": self.max_found,
        }

    def augmentation(self) -> DetectionAugmentation:
        """What happens to training images at random."""
        from parhelion.data.annotated.transforms import DetectionAugmentation

        return DetectionAugmentation(
            image_px=self.image_px, jitter=self.jitter, flip=self.flip, color_jitter=self.color_jitter
        )

    def check_together(self) -> None:
        super().check_together()
        # This checks its own fields.
        self.augmentation()
        for name in ("mean", "std"):
            values = self.per_channel(getattr(self, name))
            if len(values) != self.in_chans or (name == "std" and min(values) <= 0):
                raise UserError(
                    f"{name} is {list(getattr(self, name))}; it must be one number or one for each of the "
                    f"{self.in_chans} channels{', above 0' if name == 'std' else ''}"
                )
