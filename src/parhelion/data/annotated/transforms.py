"""From a PIL image and what is annotated in it to what a detector takes; random for training.

torchvision is imported where it is used: that takes seconds, and a recipe or a `--help` needs only the dataclass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from parhelion.data.annotated.instances import Instances
from parhelion.data.annotated.mask_drawing import View
from parhelion.errors import UserError

Target: TypeAlias = dict[str, Tensor]
DetectionTransform: TypeAlias = Callable[[Image.Image, Instances], tuple[Tensor, Target]]

# What is smaller after scaling and cropping teaches nothing, and torchvision's detectors refuse a box without area.
SMALLEST_PX = 1


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """What training does to an image and its annotations at random; raises UserError for values that mean nothing."""

    image_px: int
    """Side of the square into which the image is scaled to fit, before jitter; no image comes out larger."""
    jitter: tuple[float, float] = (1.0, 1.0)
    """Range of a random factor on that scale (scale jitter, arXiv 2012.07177). From what is then larger than image_px
    a part of that size is cut out at random; what is smaller stays smaller."""
    flip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share."""

    def __post_init__(self) -> None:
        _require(self.image_px >= 1, "image_px", self.image_px, "at least 1")
        low, high = self.jitter
        _require(0 < low <= high < float("inf"), "jitter", self.jitter, "two rising positive numbers")
        _require(0 <= self.flip <= 1, "flip", self.flip, "a probability, 0 to 1")
        _require(0 <= self.color_jitter < float("inf"), "color_jitter", self.color_jitter, "0 (off) or more")


def detection_train_transform(augmentation: DetectionAugmentation, *, masks: bool) -> DetectionTransform:
    """The random transform: image -> float32 (C, h, w) in 0..1, its sides at most image_px; target without crowds.

    The target: boxes (N, 4) float32 in pixels of the image that comes out, labels (N,) int64, image_id int64, and if
    asked masks (N, h, w) uint8. Where a part was cut out, boxes clip to it, and with masks become the bounds of what
    is left of the mask. Objects go whose box has a side of less than a pixel, or whose mask is empty; N may be 0.

    Draws from torch's global generator alone.
    """
    return _TrainTransform(augmentation, masks)


def detection_eval_transform() -> DetectionTransform:
    """The deterministic transform: image -> float32 (C, h, w) in 0..1 in its own pixels; target: image_id, size (h, w).

    The detector scales for itself, so that what it finds is in the pixels of the annotations.
    """
    return _unscaled


@dataclass(frozen=True)
class _TrainTransform:
    """A class, because worker processes that are not forked get it pickled."""

    augmentation: DetectionAugmentation
    masks: bool

    def __call__(self, image: Image.Image, instances: Instances) -> tuple[Tensor, Target]:
        from torchvision.transforms.v2 import functional
        from torchvision.tv_tensors import Mask

        objects = instances.objects()
        scene, view = self._cropped(self._scaled(_scene(image, objects)), objects.size)
        if self.masks:
            # Not before: drawn at the size of a photograph they would take seconds and gigabytes.
            scene["masks"] = Mask(objects.masks(view))
        if torch.rand(()) < self.augmentation.flip:
            scene = {name: functional.horizontal_flip(part) for name, part in scene.items()}
        pixels = self._recoloured(functional.to_dtype(scene.pop("image"), torch.float32, scale=True))
        target = {name: part.as_subclass(Tensor) for name, part in scene.items()}
        target["labels"] = torch.from_numpy(objects.labels)
        target = _without_the_tiny(_bounded_by_masks(target) if self.masks and view.part != view.scaled else target)
        target["image_id"] = torch.tensor(instances.image_id)
        return pixels.as_subclass(Tensor), target

    def _scaled(self, scene: dict[str, Any]) -> dict[str, Any]:
        from torchvision.transforms.v2 import functional

        h, w = _size(scene)
        low, high = self.augmentation.jitter
        factor = torch.empty(()).uniform_(low, high).item()
        scale = self.augmentation.image_px / max(h, w) * factor
        size = [max(1, round(h * scale)), max(1, round(w * scale))]
        return {name: functional.resize(part, size, antialias=True) for name, part in scene.items()}

    def _cropped(self, scene: dict[str, Any], size: tuple[int, int]) -> tuple[dict[str, Any], View]:
        """A part at random, and which part of the image of `size` (h, w) that is."""
        from torchvision.transforms.v2 import functional

        h, w = _size(scene)
        height, width = min(h, self.augmentation.image_px), min(w, self.augmentation.image_px)
        if (height, width) == (h, w):
            return scene, View.whole(size, scaled=(h, w))
        top = int(torch.randint(h - height + 1, ()))
        left = int(torch.randint(w - width + 1, ()))
        cropped = {name: functional.crop(part, top, left, height, width) for name, part in scene.items()}
        return cropped, View(size=size, scaled=(h, w), top=top, left=left, part=(height, width))

    def _recoloured(self, pixels: Tensor) -> Tensor:
        if not self.augmentation.color_jitter:
            return pixels
        from torchvision.transforms.v2 import ColorJitter

        return ColorJitter(*[self.augmentation.color_jitter] * 3)(pixels)


def _unscaled(image: Image.Image, instances: Instances) -> tuple[Tensor, Target]:
    from torchvision.transforms.v2 import functional

    pixels = functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)
    return pixels, {"image_id": torch.tensor(instances.image_id), "size": torch.tensor(instances.size)}


def _scene(image: Image.Image, objects: Instances) -> dict[str, Any]:
    """Image and boxes, each of the class by which torchvision knows what to do with it."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional

    boxes = torch.from_numpy(objects.boxes)
    return {
        "image": tv_tensors.Image(functional.pil_to_tensor(image)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=objects.size),
    }


def _size(scene: dict[str, Any]) -> tuple[int, int]:
    h, w = scene["image"].shape[-2:]
    return h, w


def _bounded_by_masks(target: Target) -> Target:
    """The objects with a mask, their boxes as narrow as that allows."""
    from torchvision.ops import masks_to_boxes

    target = _those(_any_pixel(target["masks"]), target)
    # torchvision counts the last row and column in; a box ends after them.
    past = torch.tensor([0.0, 0.0, 1.0, 1.0])
    return {**target, "boxes": masks_to_boxes(target["masks"]).float() + past}


def _without_the_tiny(target: Target) -> Target:
    sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
    large = (sides >= SMALLEST_PX).all(1)
    if "masks" in target:
        large &= _any_pixel(target["masks"])
    return _those(large, target)


def _any_pixel(masks: Tensor) -> Tensor:
    # Of uint8 values `any` is uint8, by which torch would choose rows by number.
    return masks.flatten(1).any(1).bool()


def _those(chosen: Tensor, target: Target) -> Target:
    return {name: values[chosen] for name, values in target.items()}


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}, but it should be {right}")
