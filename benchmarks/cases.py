"""What is measured and what it must show, as data. The first candidate of a case is ours."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import peers
from peers import Layer, Runtime, WithGsaPytorch
from torch import nn

from parhelion.speed.networks import Network
from parhelion.speed.timing import Candidate, Precision

# A row of a measured case: see `parhelion.speed.timing.measure`.
Rows = Mapping[str, Mapping[str, Any]]

OURS, CONVOLUTION = "parhelion", "3x3 convolution"
LAYER_ROUNDS, NETWORK_ROUNDS = 25, 5
MAP_SIDES = (32, 64, 128, 256)  # of the first stage, for images of 128, 256, 512 and 1024 px
MAP_PIXELS = 65536  # in a batch, whatever the side


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """A promise about a case, with what must be reached and what is aimed at."""

    says: str
    at_least: float
    aim: float | None = None
    less_is_better = True

    @abstractmethod
    def reached(self, rows: Rows) -> float | None:
        """The number, from the rows by name; None where a candidate it needs was not measured."""

    def met(self, value: float, bound: float) -> bool:
        """Whether `value` keeps to `bound`."""
        return value <= bound if self.less_is_better else value >= bound


@dataclass(frozen=True, kw_only=True)
class Quotient(Target):
    """A quantity of one candidate over the same of another."""

    over: str
    ours: str = OURS

    def reached(self, rows: Rows) -> float | None:
        """Ours over the other's."""
        if self.ours not in rows or self.over not in rows:
            return None
        ours, theirs = self.quantity(rows[self.ours]), self.quantity(rows[self.over])
        return None if ours is None or theirs is None else ours / theirs

    @abstractmethod
    def quantity(self, row: Mapping[str, Any]) -> float | None:
        """What is compared."""


@dataclass(frozen=True, kw_only=True)
class Time(Quotient):
    """Our time over the other's."""

    def quantity(self, row: Mapping[str, Any]) -> float:
        """Median seconds of a batch."""
        return row["seconds"]["median"]


@dataclass(frozen=True, kw_only=True)
class Speed(Quotient):
    """Our images per second over the other's."""

    less_is_better = False

    def quantity(self, row: Mapping[str, Any]) -> float:
        """Images per second at the median."""
        return row["images_per_second"]


@dataclass(frozen=True, kw_only=True)
class Memory(Quotient):
    """Our peak memory over the other's."""

    def quantity(self, row: Mapping[str, Any]) -> float | None:
        """MiB; None where it was not measured."""
        return row["peak_memory_mib"]


@dataclass(frozen=True, kw_only=True)
class Spread(Target):
    """The longest time per pixel over the shortest; every candidate computes equally many pixels."""

    def reached(self, rows: Rows) -> float | None:
        """1 is flat."""
        times = [row["seconds"]["median"] for row in rows.values()]
        return max(times) / min(times) if len(times) == len(MAP_SIDES) else None


@dataclass(frozen=True, kw_only=True)
class Growth(Target):
    """The exponent with which time per pixel grows with the side, from the smallest to the largest map."""

    def reached(self, rows: Rows) -> float | None:
        """0 is flat, 1 is as the side."""
        times = [row["seconds"]["median"] for row in rows.values()]
        if len(times) != len(MAP_SIDES):
            return None
        return math.log(times[-1] / times[0]) / math.log(MAP_SIDES[-1] / MAP_SIDES[0])


@dataclass(frozen=True, kw_only=True)
class Case:
    """Candidates that are timed in turns, and what they must show."""

    name: str
    title: str
    candidates: tuple[Candidate, ...]
    targets: tuple[Target, ...] = ()
    rounds: int = NETWORK_ROUNDS


def _halo_layer(*, backward: bool) -> tuple[Layer, ...]:
    sizes = {"batch": 4, "channels": 64, "side": 64, "backward": backward}
    window = {"dim": 64, "heads": 4, "block": 8, "halo": 3}
    timm = partial(peers.timm_halo, **window)
    theirs = partial(peers.halonet_pytorch_halo, **window)
    ours = partial(peers.our_halo, **window)
    return (
        Layer(name=OURS, make=ours, **sizes),
        Layer(name=f"{OURS}, compiled", make=ours, compiled=True, **sizes),
        Layer(name=CONVOLUTION, make=partial(peers.convolution, 64), **sizes),
        Layer(name="timm HaloAttn", make=timm, channels_last=False, **sizes),
        Layer(name="timm HaloAttn, compiled", make=timm, channels_last=False, compiled=True, **sizes),
        Layer(name="halonet-pytorch", make=theirs, channels_last=False, needs=("halonet_pytorch",), **sizes),
    )


def _gsa_layer(channels: int, side: int) -> tuple[Layer, ...]:
    sizes = {"batch": 8, "channels": channels, "side": side}
    options = {"dim": channels, "heads": 8, "size": side}
    theirs = partial(peers.gsa_pytorch_gsa, **options)
    return (
        Layer(name=OURS, make=partial(peers.our_gsa, **options), **sizes),
        Layer(name=CONVOLUTION, make=partial(peers.convolution, channels), **sizes),
        Layer(name="gsa-pytorch", make=theirs, channels_last=False, needs=("gsa_pytorch",), **sizes),
    )


def _gsa_case(channels: int, side: int, targets: tuple[Target, ...] = ()) -> Case:
    return Case(
        name=f"gsa-module-{side}",
        title=f"GSA module, {channels} channels, {side}x{side}, 8 heads, batch 8, forward",
        candidates=_gsa_layer(channels, side),
        targets=targets,
        rounds=LAYER_ROUNDS,
    )


def _by_side(make: Callable[[int], Callable[[], nn.Module]]) -> tuple[Layer, ...]:
    return tuple(
        Layer(
            name=f"{4 * side} px",
            make=make(side),
            channels=64,
            side=side,
            batch=MAP_PIXELS // side**2,
            unit="megapixels",
        )
        for side in MAP_SIDES
    )


def _networks(precision: Precision) -> tuple[Candidate, ...]:
    """halonet_h1 and its peers for inference; bfloat16 is in the weights for ours, by autocast for timm's."""
    sizes = {"image_px": 256, "batch": 8, "precision": precision}
    theirs = sizes | {"precision": "float32" if precision == "float32" else "autocast"}
    autocast = (
        ()
        if precision == "float32"
        else (Network(name=f"{OURS}, autocast", model="halonet_h1", folded=False, **theirs),)
    )
    runtimes = tuple(
        Runtime(
            name=f"{label}, timm {model}", engine=engine, model=f"timm:{model}", needs=(engine, "onnxscript"), **sizes
        )
        for engine, label in (("onnxruntime", "onnxruntime"), ("openvino", "OpenVINO"))
        # onnxruntime has no bfloat16 on the CPU.
        if precision == "float32" or engine == "openvino"
        for model in ("halonet_h1", "resnet50")
    )
    return (
        Network(name=OURS, model="halonet_h1", **sizes),
        Network(name=f"{OURS}, compiled", model="halonet_h1", compiled=True, **sizes),
        Network(name=f"{OURS}, not folded", model="halonet_h1", folded=False, **sizes),
        *autocast,
        Network(name="timm halonet_h1", model="timm:halonet_h1", **theirs),
        Network(name="timm halonet_h1, compiled", model="timm:halonet_h1", compiled=True, **theirs),
        Network(name="timm resnet50", model="timm:resnet50", **theirs),
        Network(name="timm efficientnet_b1", model="timm:efficientnet_b1", **theirs),
        *runtimes,
    )


def _gsa_networks() -> tuple[Candidate, ...]:
    sizes = {"image_px": 224, "batch": 8}
    return (
        Network(name=OURS, model="gsa_resnet50", **sizes),
        Network(name=f"{OURS}, compiled", model="gsa_resnet50", compiled=True, **sizes),
        Network(name="timm resnet50", model="timm:resnet50", **sizes),
        Network(name="timm resnet50, compiled", model="timm:resnet50", compiled=True, **sizes),
        WithGsaPytorch(name="gsa-pytorch layers", model="gsa_resnet50", **sizes),
    )


def _training() -> tuple[Candidate, ...]:
    sizes = {"image_px": 256, "batch": 8, "train": True}
    return (
        Network(name=OURS, model="halonet_h1", **sizes),
        Network(name="timm halonet_h1", model="timm:halonet_h1", **sizes),
        Network(name="timm halonet_h1, compiled", model="timm:halonet_h1", compiled=True, **sizes),
        Network(name="timm resnet50", model="timm:resnet50", **sizes),
    )


def _accelerated(model: str, at_least: float, aim: float) -> Case:
    sizes = {"image_px": 256, "batch": 8}
    return Case(
        name=f"accelerate-{model}",
        title=f"accelerate(timm {model}), 256 px, batch 8, float32, inference",
        candidates=(
            Network(name="accelerated", model=f"accelerated:{model}", **sizes),
            Network(name="timm", model=f"timm:{model}", **sizes),
        ),
        targets=(
            Speed(says="images/s over the original's", ours="accelerated", over="timm", at_least=at_least, aim=aim),
        ),
    )


LAYER = "HaloAttention, 64 channels, 64x64, 4 heads, block 8, halo 3, batch 4"

CASES = (
    Case(
        name="halo-layer-forward",
        title=f"{LAYER}, forward",
        candidates=_halo_layer(backward=False),
        targets=(
            Time(says="time over the 3x3 convolution's", over=CONVOLUTION, at_least=1.0, aim=0.6),
            Speed(says="times faster than timm's layer", over="timm HaloAttn", at_least=6, aim=10),
        ),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="halo-layer-backward",
        title=f"{LAYER}, forward and backward",
        candidates=_halo_layer(backward=True),
        targets=(
            Time(says="time over the 3x3 convolution's", over=CONVOLUTION, at_least=1.0, aim=0.7),
            Speed(says="times faster than timm's layer", over="timm HaloAttn", at_least=4, aim=6),
        ),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="halonet-h1-float32",
        title="halonet_h1, 256 px, batch 8, float32, inference",
        candidates=_networks("float32"),
        targets=(
            Speed(says="images/s over timm's halonet_h1", over="timm halonet_h1", at_least=6, aim=9),
            Speed(says="images/s over timm's resnet50, channels-last", over="timm resnet50", at_least=1.2, aim=1.8),
        ),
    ),
    Case(
        name="halonet-h1-bfloat16",
        title="halonet_h1, 256 px, batch 8, bfloat16, inference",
        candidates=_networks("bfloat16"),
        targets=(
            Speed(says="images/s over timm's in autocast", over="timm halonet_h1", at_least=5, aim=9),
            Speed(says="images/s over OpenVINO's of timm's", over="OpenVINO, timm halonet_h1", at_least=2, aim=4),
        ),
    ),
    Case(
        name="gsa-resnet50",
        title="gsa_resnet50, 224 px, batch 8, float32, inference",
        candidates=_gsa_networks(),
        targets=(
            Speed(says="images/s over timm's resnet50, channels-last", over="timm resnet50", at_least=0.85, aim=1.15),
        ),
    ),
    _gsa_case(64, 56, (Time(says="time over the 3x3 convolution's", over=CONVOLUTION, at_least=1.5, aim=1.0),)),
    _gsa_case(128, 28),
    _gsa_case(512, 7),
    Case(
        name="halonet-h1-training",
        title="halonet_h1, 256 px, batch 8, float32, training step",
        candidates=_training(),
        targets=(
            Speed(says="images/s over timm's", over="timm halonet_h1", at_least=4, aim=6),
            Memory(says="peak memory over timm's", over="timm halonet_h1", at_least=0.5, aim=0.35),
        ),
    ),
    _accelerated("halonet_h1", 5, 8),
    _accelerated("halonet50ts", 1.15, 1.3),
    Case(
        name="halo-per-pixel",
        title=f"HaloAttention at the first stage of images of 128 to 1024 px, {MAP_PIXELS} pixels a batch, forward",
        candidates=_by_side(lambda side: partial(peers.our_halo, dim=64, heads=4, block=8, halo=3)),
        targets=(Spread(says="longest over shortest time per pixel", at_least=1.15),),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="gsa-per-pixel",
        title=f"GSA module at the first stage of images of 128 to 1024 px, {MAP_PIXELS} pixels a batch, forward",
        candidates=_by_side(lambda side: partial(peers.our_gsa, dim=64, heads=8, size=side)),
        targets=(Growth(says="exponent of time per pixel against the side", at_least=1.0),),
        rounds=LAYER_ROUNDS,
    ),
)
