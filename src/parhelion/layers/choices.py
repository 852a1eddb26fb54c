"""What the parts of a network can be told, as words and numbers: they need no torch."""

from typing import Literal

Activation = Literal["relu", "silu"]
StemKind = Literal["conv7", "conv3", "patch4"]
TableRows = Literal["offsets", "window"]
# kernel, stride, padding of the convolution, and whether a 3x3 max-pool of stride 2 follows
STEMS: dict[StemKind, tuple[int, int, int, bool]] = {
    "conv7": (7, 2, 3, True),
    "conv3": (3, 2, 1, False),
    "patch4": (4, 4, 0, False),
}


def stem_reduction(kind: StemKind) -> int:
    """Pixels of the image per pixel of the first stage's map, along one axis."""
    _, stride, _, pooled = STEMS[kind]
    return 2 * stride if pooled else stride
