"""What is measured on a GPU and what it must show, as data; and the table of it. Ours come first in every case."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gpu_peers as peers
from cases import CONVOLUTION, OURS, Case, Rows, Target
from gpu_networks import GpuNetwork, WithGsaPytorch, operator, operators
from gpu_peers import GpuLayer
from peers import convolution, gsa_pytorch_gsa, our_gsa, timm_halo
from table import linked

from parhelion.speed.report import figures
from parhelion.speed.timing import Candidate, footnote

COMPILED, REFERENCE = f"{OURS}, compiled", f"{OURS}, reference"
SDPA, FLEX = "SDPA with a bias", "FlexAttention"
TIMM_HALO, TIMM_H1, RESNET = "timm HaloAttn", "timm halonet_h1", "timm resnet50"
GSA_PYTORCH = "gsa-pytorch layers"
# Channels, side of the map, heads.
HALO_LAYERS = ((64, 64, 4), (128, 32, 8), (256, 16, 8))
GSA_LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
BLOCK, HALO = 8, 3
LAYER_ROUNDS, NETWORK_ROUNDS = 15, 7
TRAINED = ("halonet_h1", "gsa_resnet50")
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the cases are. Those of a dry run have the same names, and sizes that a CPU computes in seconds."""

    device: str = "cuda"
    layer_numbers: int = 2**25  # of a map: more than a GPU's cache holds
    side: int | None = None  # of every layer's map, if not the case's own
    inference: int = 256  # images of a batch
    training: int = 128
    halonet_px: int = 256  # where timm's, which want just these, take no part
    gsa_px: int = 224
    step_images: int = 64

    @property
    def kernel(self) -> str:
        """The name of our fast implementation there."""
        return "cpu" if self.device == "cpu" else "triton"

    @property
    def flex(self) -> peers.Attend:
        """FlexAttention as it is meant, compiled; uncompiled, which writes every logit down, for a dry run."""
        return peers.by_flex if self.device == "cpu" else peers.by_compiled_flex

    def image_px(self, model: str) -> int:
        """Side of the images of one of `TRAINED`."""
        return self.gsa_px if model == "gsa_resnet50" else self.halonet_px

    def layer(self, channels: int, side: int) -> dict[str, Any]:
        """Sizes of a layer's case: a batch that fills the GPU."""
        side = self.side or side
        batch = max(1, self.layer_numbers // (channels * side**2))
        return {"channels": channels, "side": side, "batch": batch, "device": self.device}


FULL = Scale()
TINY = Scale(device="cpu", layer_numbers=1, side=16, inference=1, training=1, halonet_px=64, gsa_px=64, step_images=2)


@dataclass(frozen=True, kw_only=True)
class Best(Target):
    """The fastest of ours against the fastest of the others, as far as they were measured."""

    over: tuple[str, ...]
    ours: tuple[str, ...] = (OURS, COMPILED)

    def fastest(self, rows: Rows, names: Iterable[str]) -> Mapping[str, Any] | None:
        """The row with the shortest median; None where none was measured."""
        measured = [rows[name] for name in names if name in rows]
        return min(measured, key=lambda row: row["seconds"]["median"], default=None)

    def reached(self, rows: Rows) -> float | None:
        """None where all of ours, or all of the others, are missing."""
        ours, theirs = self.fastest(rows, self.ours), self.fastest(rows, self.over)
        return None if ours is None or theirs is None else self.compared(ours, theirs)

    def compared(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
        """Our images per second over theirs."""
        return ours["images_per_second"] / theirs["images_per_second"]


@dataclass(frozen=True, kw_only=True)
class BestSpeed(Best):
    """Our images per second over theirs."""

    less_is_better = False


@dataclass(frozen=True, kw_only=True)
class BestMemory(Best):
    """The peak memory of our fastest over that of their fastest."""

    def compared(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
        """None where memory was not measured."""
        mine, other = ours["peak_memory_mib"], theirs["peak_memory_mib"]
        return None if mine is None or other is None else mine / other


@dataclass(frozen=True, kw_only=True)
class Share(Target):
    """The floor over our time: 1 is as fast as the machine can be."""

    ours: tuple[str, ...] = (OURS, COMPILED)
    less_is_better = False

    def reached(self, rows: Rows) -> float | None:
        """The largest share of ours."""
        floors = [rows[name]["floor"] for name in self.ours if name in rows]
        return max((floor["share"] for floor in floors if floor is not None), default=None)


LAYER_PEERS = (
    TIMM_HALO,
    f"{TIMM_HALO}, channels-last",
    f"{TIMM_HALO}, compiled",
    SDPA,
    f"{SDPA}, compiled",
    FLEX,
    f"{FLEX}, layer compiled",
)


def _halo_layer(scale: Scale, channels: int, side: int, heads: int, *, backward: bool) -> Case:
    window = {"heads": heads, "block": BLOCK, "halo": HALO}
    sizes = scale.layer(channels, side) | {"backward": backward}
    ours = partial(peers.halo, None, channels, **window)
    timm = GpuLayer(name=TIMM_HALO, make=partial(timm_halo, channels, **window), channels_last=False, **sizes)
    sdpa = GpuLayer(name=SDPA, make=partial(peers.halo, peers.by_sdpa, channels, **window), **sizes)
    flex = GpuLayer(name=FLEX, make=partial(peers.halo, scale.flex, channels, **window), **sizes)
    whole = partial(peers.halo, peers.by_flex, channels, **window)
    says = "images/s over the best of timm, SDPA and FlexAttention"
    speed = {False: (3, 6), True: (2.5, 5)}[backward]
    share = () if backward else (Share(says="share of the floor", at_least=0.35, aim=0.6),)
    way = "forward and backward" if backward else "forward"
    return Case(
        name=f"halo-layer-{channels}{'-backward' if backward else ''}",
        title=_title("HaloAttention", sizes, f"{heads} heads, block {BLOCK}, halo {HALO}, {way}"),
        candidates=(
            GpuLayer(name=OURS, make=ours, **sizes),
            GpuLayer(name=COMPILED, make=ours, compiled=True, **sizes),
            GpuLayer(name=f"{OURS}, CUDA graph", make=ours, graphed=True, **sizes),
            timm,
            replace(timm, name=LAYER_PEERS[1], channels_last=True),
            replace(timm, name=LAYER_PEERS[2], compiled=True),
            sdpa,
            replace(sdpa, name=LAYER_PEERS[4], compiled=True),
            flex,
            replace(flex, name=LAYER_PEERS[6], make=whole, compiled=True),
            GpuLayer(name=CONVOLUTION, make=partial(convolution, channels), **sizes),
        ),
        targets=(*share, BestSpeed(says=says, over=LAYER_PEERS, at_least=speed[0], aim=speed[1])),
        rounds=LAYER_ROUNDS,
    )


def _halo_operation(scale: Scale, channels: int, side: int, heads: int) -> Case:
    window = {"heads": heads, "block": BLOCK, "halo": HALO}
    sizes = scale.layer(channels, side) | {"channels": 3 * channels}
    ours = GpuLayer(name=OURS, make=partial(peers.halo_operation, None, channels, **window), **sizes)
    sdpa = GpuLayer(name=SDPA, make=partial(peers.halo_operation, peers.by_sdpa, channels, **window), **sizes)
    flex = partial(peers.halo_operation, scale.flex, channels, **window)
    return Case(
        name=f"halo-operation-{channels}",
        title=_title("halo_attention", sizes | {"channels": channels}, f"{heads} heads, without projections, forward"),
        candidates=(
            ours,
            replace(ours, name=f"{OURS}, forward and backward", backward=True),
            sdpa,
            replace(sdpa, name=f"{SDPA}, forward and backward", backward=True),
            GpuLayer(name=FLEX, make=flex, **sizes),
        ),
        rounds=LAYER_ROUNDS,
    )


def _gsa_layer(scale: Scale, channels: int, side: int) -> Case:
    sizes = scale.layer(channels, side)
    # gsa-pytorch makes its masks in float32, so that bfloat16 needs autocast there.
    theirs = {"channels_last": False, "needs": ("gsa_pytorch",), "precision": "autocast"}
    ours = GpuLayer(name=OURS, make=partial(our_gsa, channels, 8, sizes["side"]), **sizes)
    return Case(
        name=f"gsa-layer-{channels}",
        title=_title("GlobalSelfAttention", sizes, "8 heads, forward"),
        candidates=(
            ours,
            replace(ours, name=COMPILED, compiled=True),
            GpuLayer(name="gsa-pytorch", make=partial(gsa_pytorch_gsa, channels, 8, sizes["side"]), **theirs, **sizes),
            GpuLayer(name=CONVOLUTION, make=partial(convolution, channels), **sizes),
        ),
        rounds=LAYER_ROUNDS,
    )


def _title(what: str, sizes: Mapping[str, Any], rest: str) -> str:
    side = sizes["side"]
    return f"{what}, {sizes['channels']} channels, {side}x{side}, {rest}, batch {sizes['batch']}, bfloat16"


def _networks(scale: Scale, model: str, *, train: bool) -> tuple[Candidate, ...]:
    """Ours and ResNet-50. Inference has bfloat16 in the weights; training has float32 there and autocast."""
    sizes: dict[str, Any] = {
        "image_px": scale.gsa_px if model == "gsa_resnet50" else 256,
        "batch": scale.training if train else scale.inference,
        "precision": "autocast" if train else "bfloat16",
        "device": scale.device,
        "train": train,
    }
    ours = GpuNetwork(name=OURS, model=model, **sizes)
    resnet = GpuNetwork(name=RESNET, model="timm:resnet50", **sizes)
    halonet = GpuNetwork(name=TIMM_H1, model="timm:halonet_h1", **sizes)
    with_gsa_pytorch = WithGsaPytorch(name=GSA_PYTORCH, model=model, **sizes | {"precision": "autocast"})
    others = (halonet, _compiled(halonet)) if model == "halonet_h1" else (with_gsa_pytorch,)
    return (
        ours,
        _compiled(ours),
        replace(ours, name=REFERENCE, impl="reference"),
        *others,
        resnet,
        _compiled(resnet),
    )


def _compiled(network: GpuNetwork) -> GpuNetwork:
    return replace(network, name=f"{network.name}, compiled", compiled=True)


def _network_case(scale: Scale, model: str, targets: tuple[Target, ...], *, train: bool) -> Case:
    candidates = _networks(scale, model, train=train)
    first = candidates[0]
    assert isinstance(first, GpuNetwork)
    way = "training step, autocast to bfloat16" if train else "inference, bfloat16"
    return Case(
        name=f"{model.replace('_', '-')}-{'training' if train else 'inference'}",
        title=f"{model}, {first.image_px} px, batch {first.batch}, {way}",
        candidates=candidates,
        targets=targets,
        rounds=NETWORK_ROUNDS,
    )


def _one_image(scale: Scale) -> Case:
    """Where launching kernels takes longer than computing: one image at a time."""
    sizes: dict[str, Any] = {"image_px": 256, "batch": 1, "precision": "bfloat16", "device": scale.device}
    networks = {OURS: "halonet_h1", TIMM_H1: "timm:halonet_h1", RESNET: "timm:resnet50"}
    eager = [GpuNetwork(name=name, model=model, **sizes) for name, model in networks.items()]
    return Case(
        name="halonet-h1-one-image",
        title="halonet_h1, 256 px, one image, inference, bfloat16",
        candidates=(*eager, *(replace(one, name=f"{one.name}, CUDA graph", graphed=True) for one in eager)),
        rounds=NETWORK_ROUNDS,
    )


def cases(scale: Scale) -> tuple[Case, ...]:
    """All cases, those that promise something first."""
    over_timm = {"over": (f"{TIMM_H1}, compiled",)}
    over_resnet = {"over": (f"{RESNET}, compiled",), "says": "images/s over timm's resnet50, compiled, channels-last"}
    over_gsa = {"over": (GSA_PYTORCH,), "says": "images/s over the same network with gsa-pytorch's layers"}
    gsa = (BestSpeed(**over_resnet, at_least=0.8, aim=1.1), BestSpeed(**over_gsa, at_least=3, aim=5))
    h1_inference = (
        BestSpeed(says="images/s over timm's, compiled", **over_timm, at_least=3, aim=5),
        BestSpeed(**over_resnet, at_least=0.8, aim=1.3),
    )
    h1_training = (
        BestSpeed(says="images/s over timm's, compiled", **over_timm, at_least=2.5, aim=4),
        BestMemory(says="peak memory over timm's, compiled", **over_timm, at_least=0.5, aim=0.3),
    )
    return (
        *(_halo_layer(scale, *sizes, backward=backward) for backward in (False, True) for sizes in HALO_LAYERS),
        _network_case(scale, "halonet_h1", h1_inference, train=False),
        _network_case(scale, "halonet_h1", h1_training, train=True),
        _network_case(scale, "gsa_resnet50", gsa, train=False),
        _network_case(scale, "gsa_resnet50", gsa, train=True),
        *(_halo_operation(scale, *sizes) for sizes in HALO_LAYERS),
        *(_gsa_layer(scale, *sizes) for sizes in GSA_LAYERS),
        _one_image(scale),
    )


def choices(scale: Scale, layers: Sequence[Case]) -> tuple[Case, ...]:
    """For every shape that is benchmarked: what impl="auto" runs against each implementation by name.

    The shapes are those of the cases of layers, and of every different attention layer within our networks.
    """
    ours = [(case.title, case.candidates[0]) for case in layers]
    found = [(title, one) for title, one in ours if isinstance(one, GpuLayer) and not one.backward]
    for model in TRAINED:
        image_px = scale.image_px(model)
        for number, channels, side, says in operators(model, image_px):
            sizes = {"channels": channels, "side": side, "batch": scale.inference, "device": scale.device}
            make = partial(operator, model, image_px, number)
            found.append((f"{says}, of {model}, batch {scale.inference}", GpuLayer(name=OURS, make=make, **sizes)))
    return tuple(
        Case(
            name=f"auto-{number}{'-backward' if backward else ''}",
            title=f"{title.replace(', forward', '')}, {'forward and backward' if backward else 'forward'}",
            candidates=tuple(
                replace(layer, name=impl, impl=impl, backward=backward) for impl in ("auto", scale.kernel, "reference")
            ),
            rounds=NETWORK_ROUNDS,
        )
        for number, (title, layer) in enumerate(found)
        for backward in (False, True)
    )


def markdown(report: Mapping[str, Any] | None, source: str) -> str:
    """The tables of a report for docs/benchmarks.md; what was not measured says so, and None is nothing measured."""
    measured = {} if report is None else {case["name"]: case for case in report["cases"]}
    lines = ["| case | | at least | aim | reached |", "|---|---|---|---|---|"]
    for case in cases(FULL):
        known = {target["says"]: target for target in measured.get(case.name, {}).get("targets", ())}
        lines += [_promise(case.title, target, known.get(target.says)) for target in case.targets]
    lines += [_auto_line(report), *_step_lines(report)]
    if report is None:
        return "\n".join(lines)
    lines += ["", "| case | candidate | images/s | ms per batch (lowest to highest) | floor: move, multiply, ms |"]
    lines[-1] += " share of the floor | peak MiB |"
    lines.append("|---|---|---|---|---|---|---|")
    for case in report["cases"]:
        rows = [_candidate(row) for row in case["candidates"]]
        rows += [f"{other['name']} | {other['reason'].replace('|', '/')} | | | | |" for other in case["left_out"]]
        lines += [f"| {'' if index else case['title']} | {row} |" for index, row in enumerate(rows)]
    how = "Medians of one run, the candidates of a case in turns"
    return "\n".join([*lines, "", f"{footnote(report)}. {how}, {report['time'][:10]}: {linked(source)}."])


def _promise(title: str, target: Target, known: Mapping[str, Any] | None) -> str:
    sign = "≤" if target.less_is_better else "≥"
    value = None if known is None else known["reached"]
    text = NOT_MEASURED if value is None else figures(value)
    strong = f"**{text}**" if known is not None and known["at_least_met"] else text
    return f"| {title} | {target.says} | {sign} {target.at_least:g} | {sign} {target.aim:g} | {strong} |"


def _auto_line(report: Mapping[str, Any] | None) -> str:
    shapes = [] if report is None else report["auto"]
    faster = sum(1 for shape in shapes if shape["picks_the_faster"])
    text = f"{faster} of {len(shapes)}" if shapes else NOT_MEASURED
    strong = f"**{text}**" if shapes and faster == len(shapes) else text
    return f'| every shape above and within our networks | impl="auto" picks the faster path | all | | {strong} |'


def _step_lines(report: Mapping[str, Any] | None) -> list[str]:
    runs = {} if report is None else {run["model"]: run for run in report["steps"]}
    lines = []
    for model in TRAINED:
        run = runs.get(model)
        text = NOT_MEASURED if run is None else f"{run['finite_steps']} of {run['steps']}"
        strong = f"**{text}**" if run is not None and run["finite_steps"] == run["steps"] else text
        lines.append(f"| {model}, training steps on images | loss and gradients finite | all of 500 | | {strong} |")
    return lines


def _candidate(row: Mapping[str, Any]) -> str:
    low, median, high = (figures(1e3 * row["seconds"][key]) for key in ("lowest", "median", "highest"))
    floor = row["floor"]
    bound, share = "-", "-"
    if floor is not None:
        bound = f"{figures(1e3 * floor['move_seconds'])}, {figures(1e3 * floor['multiply_seconds'])}"
        share = f"{100 * floor['share']:.0f}%"
    rate, memory = figures(row["images_per_second"]), figures(row["peak_memory_mib"])
    return f"{row['name']} | {rate} | {median} ({low} to {high}) | {bound} | {share} | {memory}"
