"""The objects in image files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from parhelion.data.image_files import image_files
from parhelion.data.images import BadImage, try_open_image
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.detection.detections import Found
from parhelion.detection.saved import Detector
from parhelion.detection.scores import found_in
from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The objects found in one image file, best first."""

    path: Path
    image: Image.Image
    found: Found


def predictions(
    detector: Detector,
    paths: Sequence[Path],
    *,
    min_score: float = 0.5,
    top: int = 100,
    on_bad_image: OnBadImage = "refuse",
) -> Iterator[Prediction | BadImage]:
    """At most `top` objects of at least `min_score` in each image of `paths`, in order, computed image by image.

    A folder stands for all images below it, see `image_files`. Both limits may ask for more than the detector was
    trained to find. Images are numbered from 1 (`Found.image_id`). An unreadable image raises BadImage when its turn
    comes; with "skip" the BadImage comes out in its place. Raises UserError.
    """
    if not 0 <= min_score <= 1 or top < 1:
        raise UserError(f"min_score is {min_score} and top is {top}; they must be from 0 to 1 and at least 1")
    refuse = refuses(on_bad_image)
    for number, path in enumerate(image_files(paths).files, start=1):
        image = try_open_image(path, detector.in_chans, exif=detector.exif)
        if not isinstance(image, BadImage):
            tensor = to_dtype(pil_to_tensor(image), scale=True)
            seen = {"image_id": number, "size": (image.height, image.width)}
            with _limits_of_at_least(detector, min_score, top):
                ((found,),) = found_in(detector.model, [{"image": [tensor], "target": [seen]}])
            yield Prediction(path=path, image=image, found=found.above(min_score).best(top))
        elif refuse:
            raise image
        else:
            yield image


@contextmanager
def _limits_of_at_least(detector: Detector, min_score: float, top: int) -> Iterator[None]:
    """In this the network finds objects down to `min_score`, and up to `top` of them, whatever its own limits."""
    heads: Any = detector.model.roi_heads
    before = heads.score_thresh, heads.detections_per_img
    heads.score_thresh, heads.detections_per_img = min(before[0], min_score), max(before[1], top)
    try:
        yield
    finally:
        heads.score_thresh, heads.detections_per_img = before
