"""The activations by name."""

from torch import nn

from parhelion.layers.choices import Activation

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
