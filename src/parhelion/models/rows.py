"""What every row of the tables tells about itself, whatever family it belongs to."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from parhelion.models.resnet import Network


@dataclass(frozen=True, kw_only=True)
class Row(ABC):
    """A model as numbers: what to build, what it must count, and where the numbers come from."""

    image_px: int  # side of the square images that the paper trains on
    params: int  # counted: trainable numbers with 1000 classes and 3 input channels
    multiply_adds: int  # counted: of one image of image_px
    published_params: float | None = None  # printed in the paper; None where the paper prints none
    source: str  # where the row comes from

    @abstractmethod
    def network(self) -> Network:
        """The description that the skeleton builds."""


# Every field of `Row` itself describes the row; what a family adds may be overridden by the user.
WIDTHS = (64, 128, 256, 512)  # base widths of a ResNet's stages
TINY_WIDTHS = (32, 64, 128)  # of the small members, for 32-pixel images
TINY_BLOCKS = (1, 1, 1)
STRIDES = (1, 2, 2, 2)  # of each stage's first block
