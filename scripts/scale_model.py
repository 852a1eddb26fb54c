"""What training on many GPUs costs: computing, gradients, sums of batch norms, input; docs/scale.md explains it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from parhelion.errors import UserError
from parhelion.models import create_model
from parhelion.models.count import multiply_adds, parameters
from parhelion.recipes.table import RECIPES, recipe

NODE_GPUS = 8
# Of recipes that are not for ImageNet's thousand.
RECIPE_CLASSES = {"halonet_h4_base128_imagenet21k": 21_000}
# Forward pass once, backward pass twice; a multiply-add is two FLOPs.
TRAINING_FLOPS = 3 * 2
BACKWARD_SHARE = 2 / 3
GRADIENT_BYTES = 4
# DDP sends gradients in pieces of this size.
BUCKET_BYTES = 25 * 2**20
# Forward and backward, of each batch norm.
SUMS_PER_NORM = 4
# Most pixels of a part of a batch on one GPU; larger batches are accumulated.
PART_PIXELS = 128 * 256**2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What of a recipe decides its cost."""

    name: str
    params: int
    # Of one image, forward.
    multiply_adds: int
    norms: int
    # Parts that FSDP2 gathers one by one.
    units: int
    # Images of an epoch, epochs, images of an update.
    images: int
    passes: float
    batch: int
    image_px: int = 224

    @property
    def updates(self) -> float:
        """Of the whole run."""
        return self.passes * (self.images // self.batch)


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins GPUs of a node, or nodes."""

    # That a GPU, or a node, sends while it receives as much.
    bytes_per_second: float
    # For a few bytes, once.
    hop_seconds: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Assumed machines; the defaults are what docs/scale.md states."""

    gpus: int
    inside: Link = Link(bytes_per_second=200e9, hop_seconds=4e-6)
    between: Link = Link(bytes_per_second=10e9, hop_seconds=10e-6)
    # Share of the backward pass (FSDP2: of all computing) during which gradients may travel unnoticed.
    overlap: float = 0.7
    # A tenth of 312 TFLOP/s, which an A100 is sold for in bfloat16.
    flops_per_second: float = 0.1 * 312e12
    # Measured by the user; 0: from flops_per_second.
    images_per_second: float = 0.0
    workers_per_gpu: int = 8
    worker_images_per_second: float

    @property
    def tiers(self) -> tuple[tuple[int, Link], ...]:
        """How many meet over each kind of link."""
        return (min(self.gpus, NODE_GPUS), self.inside), (math.ceil(self.gpus / NODE_GPUS), self.between)

    def rate(self, job: Job) -> float:
        """Training images per second of one GPU that waits for nothing."""
        return self.images_per_second or self.flops_per_second / (TRAINING_FLOPS * job.multiply_adds)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user sets."""

    accumulate: int = 1
    sharding: str = "none"
    sync_bn: bool = True


@dataclass(frozen=True, kw_only=True)
class Update:
    """Seconds of one update: computing, batch norms' sums, weights and gradients beyond what is hidden; and input."""

    compute: float
    norms: float
    gradients: float
    input: float

    @property
    def seconds(self) -> float:
        """What the update takes, since reading goes on beside everything else."""
        return max(self.compute + self.norms + self.gradients, self.input)

    @property
    def limit(self) -> str:
        """What to mend first."""
        network = self.norms + self.gradients
        if self.input >= self.compute + network:
            return "input"
        return "compute" if self.compute >= network else "network"


def job(name: str, *, classes: int = 0) -> Job:
    """The recipe `name` as the model of cost sees it; 1000 classes unless it is known to have others."""
    wanted, entry = recipe(name), RECIPES[name]
    if not entry.images:
        raise UserError(f"{name} is for any number of images, so its hours cannot be told; give a recipe with its own")
    found = counted(
        wanted.model, wanted.image_px, classes or RECIPE_CLASSES.get(name, 1000), wanted.batch, **wanted.model_choices()
    )
    return replace(found, name=name, images=entry.images, passes=entry.passes)


def counted(model: str, image_px: int, classes: int, batch: int, **choices: Any) -> Job:
    """A network in training, without a recipe: one update."""
    with torch.device("meta"):
        network: Any = create_model(model, num_classes=classes, image_size=image_px, **choices)
    return Job(
        name=model,
        params=parameters(network),
        multiply_adds=multiply_adds(network, (image_px, image_px)),
        norms=sum(type(module) is nn.BatchNorm2d for module in network.modules()),
        units=len(list(network.bottlenecks)) + 1,
        images=batch,
        passes=1,
        batch=batch,
        image_px=image_px,
    )


def few_bytes_seconds(cluster: Cluster) -> float:
    """An all-reduce of next to nothing: up a tree and down again, in each tier."""
    return sum(2 * math.ceil(math.log2(count)) * link.hop_seconds for count, link in cluster.tiers)


def ring_seconds(cluster: Cluster, size: float) -> float:
    """`size` bytes once around the rings of both tiers: a gather or a scatter; an all-reduce is two of them."""
    return sum((count - 1) / count * size / link.bytes_per_second for count, link in cluster.tiers)


def gradient_seconds(job: Job, cluster: Cluster, choices: Choices) -> float:
    """What weights and gradients travel for in one update, hidden or not."""
    size = GRADIENT_BYTES * job.params
    if choices.sharding == "fsdp":
        # Gathered for the forward and for the backward pass, then the gradients scattered, in every part of the batch.
        return choices.accumulate * 3 * (ring_seconds(cluster, size) + job.units * few_bytes_seconds(cluster))
    return 2 * ring_seconds(cluster, size) + math.ceil(size / BUCKET_BYTES) * few_bytes_seconds(cluster)


def update(job: Job, cluster: Cluster, choices: Choices) -> Update:
    """The cost of one update."""
    images = job.batch / cluster.gpus
    compute = images / cluster.rate(job)
    # DDP sends after the last part only, while that goes backward.
    busy = compute if choices.sharding == "fsdp" else BACKWARD_SHARE * compute / choices.accumulate
    sums = SUMS_PER_NORM * job.norms * choices.accumulate if choices.sync_bn else 0
    return Update(
        compute=compute,
        norms=sums * few_bytes_seconds(cluster),
        gradients=max(0.0, gradient_seconds(job, cluster, choices) - cluster.overlap * busy),
        input=images / (cluster.workers_per_gpu * cluster.worker_images_per_second),
    )


def hours(job: Job, cluster: Cluster, choices: Choices) -> float:
    """The whole run without its evaluations."""
    return job.updates * update(job, cluster, choices).seconds / 3600


def parts(job: Job, gpus: int) -> int:
    """Parts of a batch, a power of two, so that none holds more than PART_PIXELS on a GPU."""
    pixels = job.batch / gpus * job.image_px**2
    return 2 ** max(0, math.ceil(math.log2(pixels / PART_PIXELS)))
