"""What every row of the tables tells about itself, whatever family it belongs to."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parhelion.errors import UserError
from parhelion.models.network import Network

WIDTHS = (64, 128, 256, 512)  # base widths of a ResNet's stages
STRIDES = (1, 2, 2, 2)  # of each stage's first block
TINY_WIDTHS, TINY_BLOCKS = (32, 64, 128), (1, 1, 1)  # of the small members, for 32-pixel images


@dataclass(frozen=True, kw_only=True)
class Row(ABC):
    """A model as numbers: what to build, what it must count, and where the numbers come from.

    The fields here tell about the model; those that a family adds build it, and are the user's to change.
    """

    image_px: int  # side of the square images that the paper trains on
    params: int  # counted: trainable numbers with 1000 classes and 3 input channels
    multiply_adds: int  # counted: of one image of image_px
    published_params: float | None = None  # printed in the paper; None where the paper prints none
    source: str  # where the row comes from

    @abstractmethod
    def network(self) -> Network:
        """The description that the skeleton builds."""


def per_stage(**choices: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The choices of each stage in turn, with its stride at the end.

    Raises:
        UserError: choices of different lengths, or more stages than there are strides.
    """
    lengths = {name: len(values) for name, values in choices.items()}
    if len(set(lengths.values())) != 1 or max(lengths.values()) > len(STRIDES):
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"every stage needs one number of each, for at most {len(STRIDES)} stages, but {found}")
    return zip(*choices.values(), STRIDES, strict=False)


def check_stages(name: str, stages: tuple[int, ...], count: int) -> None:
    """Raise UserError where `stages`, counted from 1, names one that a network of `count` stages does not have."""
    odd = [stage for stage in stages if stage not in range(1, count + 1)]
    if odd:
        raise UserError(f"{name} names stage {odd[0]}, but the network has the stages 1 to {count}")
