"""The pictures that a detection run leaves in its folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from parhelion.data.annotated.coco import CocoImages
from parhelion.data.annotated.instances import Instances
from parhelion.data.annotated.mask_drawing import View, each_drawn
from parhelion.data.annotated.transforms import detection_eval_transform
from parhelion.data.images import BadImage
from parhelion.detection.detections import truth
from parhelion.detection.plots import Pair, detection_sheet
from parhelion.detection.saved import Detector
from parhelion.detection.scores import found_in

CURVES = "learning_curves.png"
SHEET = "detections.png"
# Images of a sheet.
SHOWN = 8
# Longer side at which true masks are drawn: a sheet shows no more.
MASK_PX = 1024


def draw_sheet(detector: Detector, images: CocoImages, path: Path, title: str) -> None:
    """Draw to `path` what is annotated in some of `images`, evenly among them, and what `detector` finds there."""
    pairs: list[Pair] = []
    for number in np.linspace(0, len(images) - 1, min(SHOWN, len(images))).astype(int).tolist():
        image, instances, _ = images[number]
        if isinstance(image, BadImage):
            continue
        target = instances.target(masks=False)
        tensor, seen = detection_eval_transform()(image, instances)
        ((found,),) = found_in(detector.model, [{"image": [tensor], "target": [seen]}])
        masks = _small_masks(instances) if detector.masks else None
        true = truth(instances.image_id, instances.size, target["boxes"], target["labels"], masks)
        pairs.append(Pair(image=image, truth=true, found=found))
    if pairs:
        detection_sheet(pairs, detector.class_names, path, title)


def _small_masks(instances: Instances) -> Iterator[Tensor]:
    """The masks of the objects, one at a time: those of a large photograph together would fill the memory."""
    scale = min(1.0, MASK_PX / max(instances.size))
    h, w = (max(1, round(side * scale)) for side in instances.size)
    return each_drawn(instances.objects().segmentations, View.whole(instances.size, scaled=(h, w)))
