"""Networks as candidates on a GPU, and the attention layers within them."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import timm
import torch
from gpu_peers import graphed, why_not_graphed, with_impl
from peers import gsa_pytorch_gsa
from torch import Tensor, nn

import parhelion
from parhelion.models.fold import fold
from parhelion.models.reference import reference
from parhelion.ops.implementation import Implementation
from parhelion.speed.names import split
from parhelion.speed.networks import (
    BATCH_NORMS,
    CHECKED_IMAGES,
    NETWORK_SLACK,
    SEED,
    Network,
    at_precision,
    gradients,
    noise,
    settled,
)
from parhelion.speed.timing import Precision, Run, not_as_exact, not_finite

# Weight of each residual branch's last norm. With one, untrained attention multiplies roundings to bfloat16 up until
# nothing of the logits is left, and no check could tell right from wrong; training starts it at zero.
BRANCH = 0.05


def quiet(model: str, image_px: int, change: Callable[[nn.Module], None] | None = None) -> nn.Module:
    """`model` as early in training, in eval mode, the same each time: branches count, but little; see `BRANCH`.

    change: Done to the network before its running statistics are those of noise.
    """
    return copy.deepcopy(_quiet(model, image_px, change or _unchanged))


def _unchanged(network: nn.Module) -> None:
    pass


@lru_cache
def _quiet(model: str, image_px: int, change: Callable[[nn.Module], None]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = _network(model, image_px)
        change(network)
        for module in network.modules():
            if isinstance(module, BATCH_NORMS) and module.weight is not None and not module.weight.any():
                nn.init.constant_(module.weight, BRANCH)
        return settled(network, image_px)


def _network(model: str, image_px: int) -> nn.Module:
    prefix, name = split(model)
    return timm.create_model(name) if prefix else parhelion.create_model(name, image_size=image_px)


@dataclass(frozen=True, kw_only=True)
class GpuNetwork(Network):
    """A network on a device; see `Network`. A training step is checked before it is compiled."""

    device: str = "cuda"
    impl: Implementation | None = None  # of our operations; None: the network's own, which is "auto"
    graphed: bool = False  # replayed as a CUDA graph

    @property
    def compiles(self) -> bool:
        """Whether it takes minutes to build."""
        return self.compiled

    def why_not(self) -> str | None:
        """Why this cannot run here."""
        return why_not_graphed(self.graphed, self.device) or super().why_not()

    def network(self) -> nn.Module:
        """The network as it will be called, before compiling."""
        network = quiet(self.model, self.image_px)
        network = with_impl(fold(network) if self._folds else network, self.impl)
        return network.to(memory_format=torch.channels_last)

    def build(self) -> Run:
        """Logits of the batch per call, or the loss of a training step."""
        run = super().build()
        return graphed(run) if self.graphed else run

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite, or less exact than plain PyTorch: all logits of the batch, or for training our gradients."""
        if self.train:
            return super().problem(answer)
        logits = answer[0].cpu()
        same = torch.arange(len(logits)) % CHECKED_IMAGES
        truth = true_logits(self.model, self.image_px, self.device)[same]
        baseline = plain_logits(self.model, self.image_px, self.precision, self.device)[same]
        return not_finite(answer) or not_as_exact(logits, baseline, truth, slack=NETWORK_SLACK)

    def _gradient_problem(self) -> str | None:
        # One image without batch statistics, since float64 in plain PyTorch keeps gigabytes for a batch.
        images = noise(1, self.image_px)
        plain = reference(quiet(self.model, self.image_px))
        dtype, context = at_precision(self.precision, self.device)
        with context():
            actual = gradients(self.network().to(self.device, dtype), images.to(self.device, dtype))
            baseline = gradients(copy.deepcopy(plain).to(self.device, dtype), images.to(self.device, dtype))
        truth = gradients(plain.double().to(self.device), images.double().to(self.device)).cpu()
        wrong = not_as_exact(actual.cpu(), baseline.cpu(), truth, slack=NETWORK_SLACK)
        return wrong and wrong.replace("output errs", "gradient errs")


@dataclass(frozen=True, kw_only=True)
class WithGsaPytorch(GpuNetwork):
    """One of our GSA networks with gsa-pytorch's layers, averaged where ours has a stride."""

    needs: tuple[str, ...] = ("gsa_pytorch",)

    def network(self) -> nn.Module:
        """The network as it will be called."""
        return quiet(self.model, self.image_px, with_gsa_pytorch).to(memory_format=torch.channels_last)

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite; its layers are compared with float64 one by one, in the cases of layers."""
        return not_finite(answer)

    def multiply_adds(self) -> None:  # type: ignore[override]
        """Not counted."""


def with_gsa_pytorch(network: nn.Module) -> None:
    """Put gsa-pytorch's layers into the place of ours."""
    for block in network.bottlenecks:
        ours = block.operator
        if isinstance(ours, parhelion.layers.GlobalSelfAttention):
            block.operator = nn.Sequential(gsa_pytorch_gsa(ours.dim, ours.heads, ours.size), nn.AvgPool2d(ours.stride))


@lru_cache
def true_logits(model: str, image_px: int, device: str) -> Tensor:
    """Logits of the first images in float64."""
    network = reference(quiet(model, image_px)).to(device, torch.float64)
    with torch.inference_mode():
        return network(noise(CHECKED_IMAGES, image_px).to(device, torch.float64)).cpu()


@lru_cache
def plain_logits(model: str, image_px: int, precision: Precision, device: str) -> Tensor:
    """Logits of the first images by plain PyTorch at `precision`."""
    dtype, context = at_precision(precision, device)
    network = reference(quiet(model, image_px)).to(device, dtype)
    with torch.inference_mode(), context():
        return network(noise(CHECKED_IMAGES, image_px).to(device, dtype)).cpu()


@lru_cache
def operators(model: str, image_px: int) -> tuple[tuple[int, int, int, str], ...]:
    """The different attention layers of a network of ours: (its number, channels, side of its map, what it is)."""
    with torch.device("meta"):
        network = reference(parhelion.create_model(model, image_size=image_px)).eval()
    found: dict[str, tuple[int, int, int, str]] = {}

    def note(number: int, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        _, channels, side, _ = arguments[0].shape
        says = f"{type(module).__name__}, {channels} channels, {side}x{side}, stride {module.stride}"
        found.setdefault(f"{module} {side}", (number, channels, side, says))

    for number, module in enumerate(_attention(network)):
        module.register_forward_pre_hook(partial(note, number))
    with torch.no_grad():
        network(torch.empty(1, 3, image_px, image_px, device="meta"))
    return tuple(found.values())


def operator(model: str, image_px: int, number: int) -> nn.Module:
    """An attention layer of a network of ours, by its number."""
    return _attention(parhelion.create_model(model, image_size=image_px))[number]


def _attention(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if hasattr(module, "impl")]
