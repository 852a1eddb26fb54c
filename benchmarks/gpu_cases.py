"""What is measured on a GPU and what it must show, as data. Ours come first in every case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gpu_peers as peers
from cases import CONVOLUTION, OURS, RESNET, TIMM_H1, TIMM_HALO, Case, Target
from gpu_networks import GpuNetwork, WithGsaPytorch, operator, operators
from gpu_peers import GpuLayer
from peers import convolution, gsa_pytorch_gsa, our_gsa, timm_halo

from parhelion.speed.timing import Candidate

COMPILED, REFERENCE = f"{OURS}, compiled", f"{OURS}, reference"
SDPA, FLEX = "SDPA with a bias", "FlexAttention"
GSA_PYTORCH = "gsa-pytorch layers"
# Channels, side of the map, heads.
HALO_LAYERS = ((64, 64, 4), (128, 32, 8), (256, 16, 8))
GSA_LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
BLOCK, HALO = 8, 3
LAYER_ROUNDS, NETWORK_ROUNDS = 15, 7
TRAINED = ("halonet_h1", "gsa_resnet50")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the cases are. Those of a rehearsal have the same names, and sizes that a CPU computes in seconds."""

    device: str = "cuda"
    layer_numbers: int = 2**25  # of a map: more than a GPU's cache holds
    side: int | None = None  # of every layer's map, if not the case's own
    inference: int = 256  # images of a batch
    training: int = 128
    halonet_px: int = 256
    gsa_px: int = 224
    step_images: int = 64
    stand_ins: Mapping[str, str] = field(default_factory=dict)  # models that take the place of others

    @property
    def kernel(self) -> str:
        """The name of our fast implementation there."""
        return "cpu" if self.device == "cpu" else "triton"

    def model(self, name: str) -> str:
        """What is built where a case names this model."""
        return self.stand_ins.get(name, name)

    def image_px(self, model: str) -> int:
        """Side of the images of one of `TRAINED`."""
        return self.gsa_px if model == "gsa_resnet50" else self.halonet_px

    def layer(self, channels: int, side: int) -> dict[str, Any]:
        """Sizes of a layer's case: a batch that fills the GPU."""
        side = self.side or side
        batch = max(1, self.layer_numbers // (channels * side**2))
        return {"channels": channels, "side": side, "batch": batch, "device": self.device}


FULL = Scale()
TINY = Scale(
    device="cpu",
    layer_numbers=1,
    side=16,
    inference=1,
    training=2,
    halonet_px=32,
    gsa_px=32,
    step_images=2,
    stand_ins={
        "halonet_h1": "halonet_tiny",
        "gsa_resnet50": "gsa_tiny",
        "timm:halonet_h1": "timm:test_efficientnet",
        "timm:resnet50": "timm:test_resnet",
    },
)


best = partial(Target, ours=(OURS, COMPILED))
"""A target of whichever of ours is faster."""

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
    sdpa = GpuLayer(name=SDPA, make=partial(peers.halo, peers.by_sdpa, channels, **window), exact=ours, **sizes)
    flexible = partial(peers.halo, peers.by_compiled_flex, channels, **window)
    flex = GpuLayer(name=FLEX, make=flexible, partly_compiled=True, exact=ours, **sizes)
    whole = partial(peers.halo, peers.by_flex, channels, **window)
    says = "images/s over the best of timm, SDPA and FlexAttention"
    share = best("share of the floor", (), "at least", 0.35, 0.6, "share of the floor")
    forward, both = (best("images/s", LAYER_PEERS, "at least", *bounds, says) for bounds in ((3, 6), (2.5, 5)))
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
        targets=(both,) if backward else (share, forward),
        rounds=LAYER_ROUNDS,
    )


def _halo_operation(scale: Scale, channels: int, side: int, heads: int) -> Case:
    window = {"heads": heads, "block": BLOCK, "halo": HALO}
    sizes = scale.layer(channels, side) | {"channels": 3 * channels}
    make = partial(peers.halo_operation, None, channels, **window)
    ours = GpuLayer(name=OURS, make=make, **sizes)
    by_sdpa = partial(peers.halo_operation, peers.by_sdpa, channels, **window)
    sdpa = GpuLayer(name=SDPA, make=by_sdpa, exact=make, **sizes)
    flex = partial(peers.halo_operation, peers.by_compiled_flex, channels, **window)
    return Case(
        name=f"halo-operation-{channels}",
        title=_title("halo_attention", sizes | {"channels": channels}, f"{heads} heads, without projections, forward"),
        candidates=(
            ours,
            replace(ours, name=f"{OURS}, forward and backward", backward=True),
            sdpa,
            replace(sdpa, name=f"{SDPA}, forward and backward", backward=True),
            GpuLayer(name=FLEX, make=flex, partly_compiled=True, exact=make, **sizes),
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
        "image_px": scale.image_px(model),
        "batch": scale.training if train else scale.inference,
        "precision": "autocast" if train else "bfloat16",
        "device": scale.device,
        "train": train,
    }
    ours = GpuNetwork(name=OURS, model=scale.model(model), **sizes)
    resnet = GpuNetwork(name=RESNET, model=scale.model("timm:resnet50"), **sizes)
    halonet = GpuNetwork(name=TIMM_H1, model=scale.model("timm:halonet_h1"), **sizes)
    with_gsa_pytorch = WithGsaPytorch(name=GSA_PYTORCH, model=scale.model(model), **sizes | {"precision": "autocast"})
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
    sizes: dict[str, Any] = {
        "image_px": scale.image_px("halonet_h1"),
        "batch": 1,
        "precision": "bfloat16",
        "device": scale.device,
    }
    networks = {OURS: "halonet_h1", TIMM_H1: "timm:halonet_h1", RESNET: "timm:resnet50"}
    eager = [GpuNetwork(name=name, model=scale.model(model), **sizes) for name, model in networks.items()]
    return Case(
        name="halonet-h1-one-image",
        title="halonet_h1, 256 px, one image, inference, bfloat16",
        candidates=(*eager, *(replace(one, name=f"{one.name}, CUDA graph", graphed=True) for one in eager)),
        rounds=NETWORK_ROUNDS,
    )


def cases(scale: Scale) -> tuple[Case, ...]:
    """All cases, those that promise something first."""
    timm, resnet, gsa_pytorch = (f"{TIMM_H1}, compiled",), (f"{RESNET}, compiled",), (GSA_PYTORCH,)
    than_timm, than_resnet = "images/s over timm's, compiled", "images/s over timm's resnet50, compiled, channels-last"
    gsa = (
        best("images/s", resnet, "at least", 0.8, 1.1, than_resnet),
        best("images/s", gsa_pytorch, "at least", 3, 5, "images/s over the same network with gsa-pytorch's layers"),
    )
    h1_inference = (
        best("images/s", timm, "at least", 3, 5, than_timm),
        best("images/s", resnet, "at least", 0.8, 1.3, than_resnet),
    )
    h1_training = (
        best("images/s", timm, "at least", 2.5, 4, than_timm),
        best("peak memory", timm, "at most", 0.5, 0.3, "peak memory over timm's, compiled"),
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
        image_px, built = scale.image_px(model), scale.model(model)
        for number, channels, side, says in operators(built, image_px):
            sizes = {"channels": channels, "side": side, "batch": scale.inference, "device": scale.device}
            make = partial(operator, built, image_px, number)
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
