"""Networks as candidates for `parhelion.speed.timing`: ours, timm's, and timm's accelerated by us."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parhelion.errors import UserError, nearest
from parhelion.models import create_model, model_info
from parhelion.models.accelerate import accelerate
from parhelion.models.count import multiply_adds
from parhelion.models.fold import fold
from parhelion.models.reference import reference
from parhelion.models.single_images import SingleImages
from parhelion.runs.places import TIMM
from parhelion.speed.names import ACCELERATED, split
from parhelion.speed.timing import Candidate, Precision, Run, not_as_exact, not_finite

SEED = 20103019
# Whole networks add up many roundings in another order: twice, as for one operation, would be luck.
NETWORK_SLACK = 4.0
CHECKED_IMAGES = 2
# A backward pass counts twice its forward pass: once for the inputs, once for the weights.
TRAINING_COST = 3
LEARNING_RATE, MOMENTUM = 1e-3, 0.9
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_name(model: str) -> None:
    """Raise UserError unless `model` is one of ours, or `timm:NAME` or `accelerated:NAME` with a name of timm."""
    prefix, name = split(model)
    if not prefix:
        model_info(name)
    elif not name or not timm.is_model(name):
        offer = nearest(name, timm.list_models()) or f"; {prefix}NAME takes a name of timm.list_models()"
        raise UserError(f"timm has no model {name!r}{offer}")


def own_image_px(model: str) -> int:
    """Side of the square images that `model` is made for."""
    prefix, name = split(model)
    if not prefix:
        return model_info(name).image_px
    config: Any = timm.get_pretrained_cfg(name)
    return config.input_size[-1] if config else 224


def original(model: str, image_px: int) -> nn.Module:
    """`model` with the weights it is measured with, the same each time, in eval mode; timm's in plain PyTorch.

    Raises:
        UserError: the model refuses images of `image_px`.
    """
    prefix, name = split(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = timm.create_model(name) if prefix else create_model(name, image_size=image_px)
        try:
            return settled(network, image_px)
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [f"it raises {type(error).__name__}"])[0]
            raise UserError(f"{model} does not take images of {image_px}x{image_px} pixels: {reason}") from error


def settled(network: nn.Module, image_px: int) -> nn.Module:
    """`network` in eval mode, as if it had been trained: every branch takes part, and activations have unit size.

    Norms that start at zero are set to one, and running statistics are those of noise.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        if norm.weight is not None and not norm.weight.any():
            nn.init.ones_(norm.weight)
    with torch.no_grad():
        network.train()(noise(CHECKED_IMAGES, image_px))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def noise(batch: int, image_px: int) -> Tensor:
    """The images that everything is measured on: the same few in turns, in channels-last memory.

    A network is `settled` on these. Untrained attention multiplies activations with each other, so that an
    image that is slightly off may overflow some layers later; and what the pixels are does not decide the speed.
    """
    images = torch.randn(CHECKED_IMAGES, 3, image_px, image_px, generator=torch.Generator().manual_seed(SEED))
    return images[torch.arange(batch) % CHECKED_IMAGES].contiguous(memory_format=torch.channels_last)


def at_precision(precision: Precision, device: str) -> tuple[torch.dtype, Callable[[], AbstractContextManager[Any]]]:
    """The dtype of weights and images, and the context to call the network in."""
    if precision == "autocast":
        return torch.float32, lambda: torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return (torch.float32 if precision == "float32" else torch.bfloat16), nullcontext


@dataclass(frozen=True, kw_only=True)
class Network(Candidate):
    """A network on a batch of square images of noise: its logits, or one step of training.

    All of them compute in channels-last memory. A training step is forward pass, cross-entropy, backward pass and a
    step of SGD with momentum.
    """

    model: str  # a name of ours, timm:NAME or accelerated:NAME
    image_px: int
    train: bool = False
    compiled: bool = False
    folded: bool = True  # ours, inference: through parhelion.fold

    @property
    def _folds(self) -> bool:
        return self.folded and not self.train and not split(self.model)[0]

    def network(self) -> nn.Module:
        """The network as it will be called, before compiling."""
        network = original(self.model, self.image_px)
        if split(self.model)[0] == ACCELERATED:
            before = [type(module) for module in network.modules()]
            network = accelerate(network, report=None)
            if [type(module) for module in network.modules()] == before:
                raise UserError(f"{self.model}: parhelion.accelerate finds nothing to change in timm's model")
        if self._folds:
            network = fold(network)
        return network.to(memory_format=torch.channels_last)

    def build(self) -> Run:
        """Logits of the batch per call, or the loss of a training step.

        Raises:
            UserError: batch norm cannot train on a single image so small.
        """
        dtype, context = at_precision(self.precision, self.device)
        network = self.network()
        if self.train and self.batch == 1 and not SingleImages(network, in_chans=3).suffice(*[self.image_px] * 2):
            raise UserError(
                f"{self.name} cannot train on one image of {self.image_px} pixels, of which batch norm gets one value "
                "of each channel, where it needs more; give a larger batch or larger images"
            )
        network.to(self.device, dtype)
        images = noise(self.batch, self.image_px).to(self.device, dtype)
        if not self.train:
            called = torch.compile(network) if self.compiled else network

            def forward() -> Sequence[Tensor]:
                with torch.inference_mode(), context():
                    return (called(images),)

            return forward
        network.train()
        called = torch.compile(network) if self.compiled else network
        optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        target = torch.arange(self.batch, device=self.device)

        def step() -> Sequence[Tensor]:
            with context():
                loss = F.cross_entropy(called(images).float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return (loss.detach(),)

        return step

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite; or, for what we compute, less exact than plain PyTorch.

        Compared are logits, or for training gradients.
        """
        wrong = not_finite(answer)
        if wrong is not None or split(self.model)[0] == TIMM:
            return wrong
        if self.train:
            return self._gradient_problem()
        return logits_problem(answer[0], self, self.model, self.image_px)

    def _gradient_problem(self) -> str | None:
        # One image without batch statistics, since float64 in plain PyTorch keeps gigabytes for a batch.
        images = noise(1, self.image_px)
        truth_network = reference(original(self.model, self.image_px))
        dtype, context = at_precision(self.precision, self.device)
        with context():
            actual = gradients(self.network().to(self.device, dtype), images.to(self.device, dtype))
            baseline = gradients(copy.deepcopy(truth_network).to(self.device, dtype), images.to(self.device, dtype))
        truth = gradients(truth_network.double(), images.double())
        wrong = not_as_exact(actual.cpu(), baseline.cpu(), truth, slack=NETWORK_SLACK)
        return wrong and wrong.replace("output errs", "gradient errs")

    def multiply_adds(self) -> int:
        """Counted on the original; a training step counts three forward passes."""
        count = self.batch * image_multiply_adds(self.model, self.image_px)
        return TRAINING_COST * count if self.train else count


@lru_cache
def image_multiply_adds(model: str, image_px: int) -> int:
    """Multiply-adds of one image through `model`, counted on plain PyTorch."""
    prefix, name = split(model)
    network = timm.create_model(name) if prefix else create_model(name, image_size=image_px)
    return multiply_adds(network, (image_px, image_px))


def logits_problem(logits: Tensor, candidate: Candidate, model: str, image_px: int) -> str | None:
    """A sentence where `logits` of the first images are not as exact as those of plain PyTorch."""
    truth = true_logits(model, image_px)
    baseline = plain_logits(model, image_px, candidate.precision, candidate.device)
    checked = min(len(logits), len(truth))
    return not_as_exact(logits[:checked].cpu(), baseline[:checked], truth[:checked], slack=NETWORK_SLACK)


@lru_cache
def true_logits(model: str, image_px: int) -> Tensor:
    """Logits of the first images in float64."""
    network = reference(original(model, image_px)).double()
    with torch.inference_mode():
        return network(noise(CHECKED_IMAGES, image_px).double())


@lru_cache
def plain_logits(model: str, image_px: int, precision: Precision, device: str) -> Tensor:
    """Logits of the first images by plain PyTorch at `precision`."""
    dtype, context = at_precision(precision, device)
    network = reference(original(model, image_px)).to(device, dtype)
    with torch.inference_mode(), context():
        return network(noise(CHECKED_IMAGES, image_px).to(device, dtype)).cpu()


def gradients(network: nn.Module, images: Tensor) -> Tensor:
    """All gradients of the sum of squared logits, in one row."""
    network.zero_grad(set_to_none=True)
    network(images).square().sum().backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])
