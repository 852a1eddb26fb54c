"""What a detector finds in image files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from parhelion.data.image_files import image_files
from parhelion.data.images import BadImage, open_image
from parhelion.data.loaders import OnBadImage, refuses
from parhelion.detection.detections import Found
from parhelion.detection.saved import Detector
from parhelion.detection.scores import found_in
from parhelion.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects in one image file, best first."""

    path: Path
    image: Image.Image
    found: Found


def objects(
    detector: Detector,
    paths: Sequence[Path],
    *,
    min_score: float = 0.5,
    top: int = 100,
    on_bad_image: OnBadImage = "refuse",
) -> Iterator[Objects | BadImage]:
    """What is found in each of `paths`, in order, one at a time: at most `top` objects of at least `min_score`.

    Of a folder all images below it count, see `image_files`. Both limits may ask for more than the detector was trained
    to find. The images are numbered from 1 (`Found.image_id`). An unreadable one raises BadImage, or with "skip" comes
    out as the BadImage in its place. Raises UserError.
    """
    if not 0 <= min_score <= 1 or top < 1:
        raise UserError(f"min_score is {min_score} and top is {top}; they must be from 0 to 1 and at least 1")
    refuse = refuses(on_bad_image)
    for number, path in enumerate(image_files(paths).files, start=1):
        try:
            image = open_image(path, detector.in_chans, exif=detector.exif)
        except BadImage as bad:
            if refuse:
                raise
            yield bad.with_traceback(None)
            continue
        tensor = to_dtype(pil_to_tensor(image), scale=True)
        seen = {"image_id": number, "size": (image.height, image.width)}
        with _reaching(detector, min_score, top):
            ((found,),) = found_in(detector.model, [{"image": [tensor], "target": [seen]}])
        yield Objects(path=path, image=image, found=found.above(min_score).best(top))


@contextmanager
def _reaching(detector: Detector, min_score: float, top: int) -> Iterator[None]:
    """Let the network's own limits be no tighter than these."""
    heads: Any = detector.model.roi_heads
    before = heads.score_thresh, heads.detections_per_img
    heads.score_thresh, heads.detections_per_img = min(before[0], min_score), max(before[1], top)
    try:
        yield
    finally:
        heads.score_thresh, heads.detections_per_img = before
