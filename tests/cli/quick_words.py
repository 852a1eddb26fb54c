"""The words with which a detector trains on `recipes.tiny_scenes` within a second."""

from runs.tiny_scenes import TINY

SIZES = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
QUICK = ("--image-px", "64", "--batch", "4", "--warmup-epochs", "0.5", *SIZES)
TRAIN = ("train", "mask_rcnn_halonet_tiny")
