"""Object detection and instance segmentation: torchvision's R-CNNs over Parhelion's and timm's backbones."""

from parhelion.detection.rcnn import faster_rcnn, mask_rcnn

__all__ = ["faster_rcnn", "mask_rcnn"]
