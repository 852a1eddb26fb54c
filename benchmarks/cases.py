"""What is measured and what it must show, as data. The first candidate of a case is ours."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import peers
from peers import Layer, Runtime, WithGsaPytorch
from torch import nn

from parhelion.speed.networks import Network
from parhelion.speed.timing import Candidate, Precision

# A row of a measured case: see `parhelion.speed.timing.measure`.
Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Mapping[str, Row]

OURS, CONVOLUTION = "parhelion", "3x3 convolution"
TIMM_HALO, TIMM_H1, RESNET = "timm HaloAttn", "timm halonet_h1", "timm resnet50"
LAYER_ROUNDS, NETWORK_ROUNDS = 25, 5
MAP_SIDES = (32, 64, 128, 256)  # of the first stage, for images of 128, 256, 512 and 1024 px
MAP_PIXELS = 65536  # in a batch, whatever the side
SIDES = tuple(f"{4 * side} px" for side in MAP_SIDES)


@dataclass(frozen=True)
class Target:
    """A promise about a case: a quantity of ours, mostly over the same of others, keeps to a bound."""

    quantity: str  # of QUANTITIES
    over: tuple[str, ...]  # the fastest of these counts
    direction: Literal["at most", "at least"]
    bound: float
    aim: float | None
    says: str
    _: KW_ONLY
    ours: tuple[str, ...] = (OURS,)

    def reached(self, rows: Rows) -> float | None:
        """The quantity, from the rows by name; None where a candidate that it needs was not measured."""
        ours, theirs = ([rows[name] for name in names if name in rows] for names in (self.ours, self.over))
        return QUANTITIES[self.quantity](ours, theirs)

    def met(self, value: float, bound: float) -> bool:
        """Whether `value` keeps to `bound`."""
        return value <= bound if self.direction == "at most" else value >= bound


def _over(of: Callable[[Row], float | None]) -> Callable[[Sequence[Row], Sequence[Row]], float | None]:
    """What the fastest of ours has, over what the fastest of the others has."""

    def ratio(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
        if not ours or not theirs:
            return None
        mine, other = (of(min(rows, key=_seconds)) for rows in (ours, theirs))
        return None if mine is None or other is None else mine / other

    return ratio


def _seconds(row: Row) -> float:
    return row["seconds"]["median"]


def _share_of_floor(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
    return max((row["floor"]["share"] for row in ours if row["floor"] is not None), default=None)


def _spread(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
    times = [_seconds(row) for row in ours]
    return max(times) / min(times) if len(times) == len(MAP_SIDES) else None


def _growth(ours: Sequence[Row], theirs: Sequence[Row]) -> float | None:
    if len(ours) != len(MAP_SIDES):
        return None
    return math.log(_seconds(ours[-1]) / _seconds(ours[0])) / math.log(MAP_SIDES[-1] / MAP_SIDES[0])


QUANTITIES: Mapping[str, Callable[[Sequence[Row], Sequence[Row]], float | None]] = {
    "time": _over(_seconds),
    "images/s": _over(lambda row: row["images_per_second"]),
    "peak memory": _over(lambda row: row["peak_memory_mib"]),
    # The largest of ours, the floor over the time: 1 is as fast as the machine can be.
    "share of the floor": _share_of_floor,
    # Of maps of all sides, equally many pixels each. The longest time over the shortest: 1 is flat.
    "spread over sides": _spread,
    # The exponent of time against the side, from the smallest to the largest map: 0 is flat, 1 is as the side.
    "growth with side": _growth,
}
"""What a target may be about: from the measured rows of ours and of the others."""


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
        Layer(name=TIMM_HALO, make=timm, channels_last=False, **sizes),
        Layer(name=f"{TIMM_HALO}, compiled", make=timm, channels_last=False, compiled=True, **sizes),
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
            name=name,
            make=make(side),
            channels=64,
            side=side,
            batch=MAP_PIXELS // side**2,
            unit="megapixels",
        )
        for name, side in zip(SIDES, MAP_SIDES, strict=True)
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
        Network(name=TIMM_H1, model="timm:halonet_h1", **theirs),
        Network(name=f"{TIMM_H1}, compiled", model="timm:halonet_h1", compiled=True, **theirs),
        Network(name=RESNET, model="timm:resnet50", **theirs),
        Network(name="timm efficientnet_b1", model="timm:efficientnet_b1", **theirs),
        *runtimes,
    )


def _gsa_networks() -> tuple[Candidate, ...]:
    sizes = {"image_px": 224, "batch": 8}
    return (
        Network(name=OURS, model="gsa_resnet50", **sizes),
        Network(name=f"{OURS}, compiled", model="gsa_resnet50", compiled=True, **sizes),
        Network(name=RESNET, model="timm:resnet50", **sizes),
        Network(name=f"{RESNET}, compiled", model="timm:resnet50", compiled=True, **sizes),
        WithGsaPytorch(name="gsa-pytorch layers", model="gsa_resnet50", **sizes),
    )


def _training() -> tuple[Candidate, ...]:
    sizes = {"image_px": 256, "batch": 8, "train": True}
    return (
        Network(name=OURS, model="halonet_h1", **sizes),
        Network(name=TIMM_H1, model="timm:halonet_h1", **sizes),
        Network(name=f"{TIMM_H1}, compiled", model="timm:halonet_h1", compiled=True, **sizes),
        Network(name=RESNET, model="timm:resnet50", **sizes),
    )


def _accelerated(model: str, bound: float, aim: float) -> Case:
    sizes = {"image_px": 256, "batch": 8}
    ours, theirs = "accelerated", "timm"
    target = Target("images/s", (theirs,), "at least", bound, aim, "images/s over the original's", ours=(ours,))
    return Case(
        name=f"accelerate-{model}",
        title=f"accelerate(timm {model}), 256 px, batch 8, float32, inference",
        candidates=(
            Network(name=ours, model=f"accelerated:{model}", **sizes),
            Network(name=theirs, model=f"timm:{model}", **sizes),
        ),
        targets=(target,),
    )


LAYER = "HaloAttention, 64 channels, 64x64, 4 heads, block 8, halo 3, batch 4"

CASES = (
    Case(
        name="halo-layer-forward",
        title=f"{LAYER}, forward",
        candidates=_halo_layer(backward=False),
        targets=(
            Target("time", (CONVOLUTION,), "at most", 1.0, 0.6, "time over the 3x3 convolution's"),
            Target("images/s", (TIMM_HALO,), "at least", 6, 10, "times faster than timm's layer"),
        ),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="halo-layer-backward",
        title=f"{LAYER}, forward and backward",
        candidates=_halo_layer(backward=True),
        targets=(
            Target("time", (CONVOLUTION,), "at most", 1.0, 0.7, "time over the 3x3 convolution's"),
            Target("images/s", (TIMM_HALO,), "at least", 4, 6, "times faster than timm's layer"),
        ),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="halonet-h1-float32",
        title="halonet_h1, 256 px, batch 8, float32, inference",
        candidates=_networks("float32"),
        targets=(
            Target("images/s", (TIMM_H1,), "at least", 6, 9, "images/s over timm's halonet_h1"),
            Target("images/s", (RESNET,), "at least", 1.2, 1.8, "images/s over timm's resnet50, channels-last"),
        ),
    ),
    Case(
        name="halonet-h1-bfloat16",
        title="halonet_h1, 256 px, batch 8, bfloat16, inference",
        candidates=_networks("bfloat16"),
        targets=(
            Target("images/s", (TIMM_H1,), "at least", 5, 9, "images/s over timm's in autocast"),
            Target("images/s", ("OpenVINO, timm halonet_h1",), "at least", 2, 4, "images/s over OpenVINO's of timm's"),
        ),
    ),
    Case(
        name="gsa-resnet50",
        title="gsa_resnet50, 224 px, batch 8, float32, inference",
        candidates=_gsa_networks(),
        targets=(
            Target("images/s", (RESNET,), "at least", 0.85, 1.15, "images/s over timm's resnet50, channels-last"),
        ),
    ),
    _gsa_case(64, 56, (Target("time", (CONVOLUTION,), "at most", 1.5, 1.0, "time over the 3x3 convolution's"),)),
    _gsa_case(128, 28),
    _gsa_case(512, 7),
    Case(
        name="halonet-h1-training",
        title="halonet_h1, 256 px, batch 8, float32, training step",
        candidates=_training(),
        targets=(
            Target("images/s", (TIMM_H1,), "at least", 4, 6, "images/s over timm's"),
            Target("peak memory", (TIMM_H1,), "at most", 0.5, 0.35, "peak memory over timm's"),
        ),
    ),
    _accelerated("halonet_h1", 5, 8),
    _accelerated("halonet50ts", 1.15, 1.3),
    Case(
        name="halo-per-pixel",
        title=f"HaloAttention at the first stage of images of 128 to 1024 px, {MAP_PIXELS} pixels a batch, forward",
        candidates=_by_side(lambda side: partial(peers.our_halo, dim=64, heads=4, block=8, halo=3)),
        targets=(
            Target("spread over sides", (), "at most", 1.15, None, "longest over shortest time per pixel", ours=SIDES),
        ),
        rounds=LAYER_ROUNDS,
    ),
    Case(
        name="gsa-per-pixel",
        title=f"GSA module at the first stage of images of 128 to 1024 px, {MAP_PIXELS} pixels a batch, forward",
        candidates=_by_side(lambda side: partial(peers.our_gsa, dim=64, heads=8, size=side)),
        targets=(
            Target(
                "growth with side", (), "at most", 1.0, None, "exponent of time per pixel against the side", ours=SIDES
            ),
        ),
        rounds=LAYER_ROUNDS,
    ),
)
