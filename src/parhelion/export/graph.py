"""A classifier as a graph that needs nothing of Parhelion: `program`."""

from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from parhelion.classification.saved import Classifier
from parhelion.errors import UserError, first_line
from parhelion.export.facts import Facts
from parhelion.export.resize import Prepare
from parhelion.models.fold import fold
from parhelion.models.reference import reference
from parhelion.models.resnet import ResNet
from parhelion.shapes import Tensor

# What the tensors of a file are called.
IMAGES, LOGITS, PROBABILITIES = "images", "logits", "probabilities"
# Sizes of the images that a graph is traced with: apart from each other, so that none stands for two.
BATCH, MORE_ROWS, MORE_COLS = 2, 5, 27


class Network(nn.Module):
    """A network whose images are prepared inside, with probabilities for an output."""

    def __init__(self, network: nn.Module, prepare: Prepare) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare

    def forward(self, images: Tensor) -> Tensor:
        """From uint8 images (B, H, W, C) to probabilities (B, classes)."""
        return self.network(self.prepare(images)).softmax(dim=1)


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model` in plain PyTorch, normalisations folded into convolutions where it is a network of ours."""
    copied = reference(model).eval()
    return reference(fold(copied)) if isinstance(copied, ResNet) and _is_unfolded(copied) else copied


def program(classifier: Classifier, facts: Facts) -> ExportedProgram:
    """What `facts` says that a file is to hold, traced. Raises UserError where torch.export refuses the model."""
    network, px, channels = plain(classifier.model), facts.preprocessing.image_px, facts.preprocessing.in_chans
    batch, h, w = facts.fixed or (BATCH, px + MORE_ROWS, px + MORE_COLS)
    sizes: dict[int, Any] = {}
    images = torch.zeros(batch, channels, h, w)
    least = facts.smallest
    axes = (2, 3)
    if facts.prepares:
        network = Network(network, Prepare(facts.preprocessing)).eval()
        images, axes, least = images.permute(0, 2, 3, 1).contiguous().to(torch.uint8), (1, 2), 2
    if facts.fixed is None:
        height, width = Dim("height", min=least), Dim("width", min=least)
        sizes = {0: Dim("batch", min=1), axes[0]: height, axes[1]: width}
    try:
        with torch.no_grad():
            return torch.export.export(network, (images,), dynamic_shapes=(sizes,))
    # What torch.export raises is of many kinds, and nothing of ours is called but the model.
    except Exception as error:
        reason = first_line(error)
        hint = "" if facts.fixed else "; --fixed exports it for images of one size"
        raise UserError(f"{classifier.name} cannot be exported ({reason}){hint}") from error


def _is_unfolded(network: ResNet) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in network.stem.modules())
