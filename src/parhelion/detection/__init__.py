"""Object detection and instance segmentation: torchvision's R-CNNs over Parhelion's and timm's backbones."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.detection.rcnn import faster_rcnn, mask_rcnn
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "faster_rcnn": "parhelion.detection.rcnn",
            "mask_rcnn": "parhelion.detection.rcnn",
        },
    )

__all__ = [
    "faster_rcnn",
    "mask_rcnn",
]
