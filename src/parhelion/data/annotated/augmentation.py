"""How much training may change an image with annotated objects. Needs no torch, so that recipes are checked at once."""

from dataclasses import dataclass

from parhelion.errors import UserError


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


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}, but it should be {right}")
