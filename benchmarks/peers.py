"""Candidates besides whole networks: one layer of ours or of a peer, and timm's networks in other runtimes."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import parhelion
from parhelion.files.atomic import replacement
from parhelion.models.reference import reference
from parhelion.speed.networks import (
    SEED,
    TIMM,
    TRAINING_COST,
    Network,
    image_multiply_adds,
    logits_problem,
    noise,
    original,
    settled,
)
from parhelion.speed.timing import Candidate, Run, not_as_exact, not_finite

PACKAGES = ("parhelion", "torch", "timm", "gsa-pytorch", "halonet-pytorch", "onnxruntime", "openvino")
# Networks are exported once; the name holds everything that the file depends on.
EXPORTS = Path(__file__).parent / ".cache"
LAYER_SLACK = 2.0


def our_halo(dim: int, heads: int, block: int, halo: int) -> nn.Module:
    """Our layer as the paper has it."""
    return parhelion.layers.HaloAttention(dim, heads=heads, block=block, halo=halo)


def timm_halo(dim: int, heads: int, block: int, halo: int) -> nn.Module:
    """timm's layer; as ours it has no output projection."""
    from timm.layers.halo_attn import HaloAttn

    return HaloAttn(dim, dim, num_heads=heads, dim_head=dim // heads, block_size=block, halo_size=halo)


def halonet_pytorch_halo(dim: int, heads: int, block: int, halo: int) -> nn.Module:
    """halonet-pytorch's layer, which projects after its unfolding, and once more at the end."""
    from halonet_pytorch import HaloAttention

    return HaloAttention(dim=dim, dim_head=dim // heads, heads=heads, block_size=block, halo_size=halo)


def our_gsa(dim: int, heads: int, size: int) -> nn.Module:
    """Our layer as the paper has it."""
    return parhelion.layers.GlobalSelfAttention(dim, heads=heads, size=size)


def gsa_pytorch_gsa(dim: int, heads: int, size: int) -> nn.Module:
    """gsa-pytorch's layer, which has an output projection besides."""
    from gsa_pytorch import GSA

    return GSA(dim, heads=heads, dim_key=dim // heads, rel_pos_length=size)


def convolution(dim: int) -> nn.Module:
    """The 3x3 convolution that an attention layer stands for."""
    return nn.Conv2d(dim, dim, 3, padding=1, bias=False)


@dataclass(frozen=True, kw_only=True)
class Layer(Candidate):
    """One layer on a square map: its output, or with `backward` all gradients besides."""

    make: Callable[[], nn.Module]
    channels: int
    side: int
    backward: bool = False
    compiled: bool = False
    channels_last: bool = True  # False: contiguous, where a peer is faster so

    def units(self) -> float:
        """Images, or millions of pixels where that is the unit."""
        return self.batch * self.side**2 / 1e6 if self.unit == "megapixels" else self.batch

    def layer(self) -> nn.Module:
        """The layer with the same weights each time, in plain PyTorch's layout for weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return self.make().train(self.backward)

    def features(self) -> Tensor:
        """The map that enters, in the layout that the layer is given."""
        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(self.batch, self.channels, self.side, self.side, generator=generator)
        return x.contiguous(memory_format=self._layout)

    @property
    def _layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def build(self) -> Run:
        """The output per call; with `backward` the output, the gradient of the map, and those of the weights."""
        layer = self.layer().to(memory_format=self._layout)
        return _run(torch.compile(layer) if self.compiled else layer, self.features(), backward=self.backward)

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite, or less exact than plain PyTorch, each output and gradient against float64."""
        wrong = not_finite(answer)
        if wrong is not None:
            return wrong
        layer, x = reference(self.layer()), self.features()
        baseline = _run(copy.deepcopy(layer), x, backward=self.backward)()
        with _masks_of_gsa_pytorch_in_float64():
            truth = _run(layer.double(), x.double(), backward=self.backward)()
        for parts in zip(answer, baseline, truth, strict=True):
            wrong = wrong or not_as_exact(*parts, slack=LAYER_SLACK)
        return wrong

    def multiply_adds(self) -> int:
        """Counted on plain PyTorch; a backward pass counts twice its forward pass."""
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            reference(self.layer().eval()).to("meta")(self.features().to("meta"))
        return counter.get_total_flops() // 2 * (TRAINING_COST if self.backward else 1)


def _run(layer: nn.Module, x: Tensor, *, backward: bool) -> Run:
    if not backward:

        def forward() -> Sequence[Tensor]:
            with torch.inference_mode():
                return (layer(x),)

        return forward
    weights = [weight for weight in layer.parameters() if weight.requires_grad]
    leaves = [x.detach().requires_grad_(), *weights]
    upstream = []

    def forward_and_backward() -> Sequence[Tensor]:
        out = layer(leaves[0])
        if not upstream:
            upstream.append(_upstream(out))
        return (out.detach(), *torch.autograd.grad(out, leaves, upstream[0]))

    return forward_and_backward


def _upstream(out: Tensor) -> Tensor:
    """The gradient that comes from above: the same numbers in any dtype and layout."""
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(SEED + 1))
    return torch.empty_like(out).copy_(gradient)


@contextmanager
def _masks_of_gsa_pytorch_in_float64() -> Iterator[None]:
    """gsa-pytorch makes its masks in float32 whatever the layer is in, so float64 needs them cast."""
    try:
        from gsa_pytorch import gsa_pytorch
    except ModuleNotFoundError:
        yield
        return
    masks = gsa_pytorch.calc_reindexing_tensor
    with patch.object(gsa_pytorch, "calc_reindexing_tensor", lambda *sizes: masks(*sizes).double()):
        yield


@dataclass(frozen=True, kw_only=True)
class WithGsaPytorch(Network):
    """One of our GSA networks with gsa-pytorch's layers, averaged where ours has a stride."""

    folded: bool = False
    needs: tuple[str, ...] = ("gsa_pytorch",)

    def network(self) -> nn.Module:
        """The network in eval mode."""
        network = original(self.model, self.image_px)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            for block in network.bottlenecks:
                ours = block.operator
                if isinstance(ours, parhelion.layers.GlobalSelfAttention):
                    theirs = gsa_pytorch_gsa(ours.dim, ours.heads, ours.size)
                    block.operator = nn.Sequential(theirs, nn.AvgPool2d(ours.stride))
            settled(network, self.image_px)
        return network.to(memory_format=torch.channels_last)

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite; its layers are compared with float64 one by one, in the cases of layers."""
        return not_finite(answer)

    def multiply_adds(self) -> None:
        """Not counted."""


@dataclass(frozen=True, kw_only=True)
class Runtime(Candidate):
    """timm's network exported to ONNX, in another runtime with as many threads as PyTorch."""

    model: str  # timm:NAME
    image_px: int
    engine: Literal["onnxruntime", "openvino"]

    def build(self) -> Run:
        """Logits of the batch per call."""
        path = exported(self.model, self.image_px, self.batch)
        images = noise(self.batch, self.image_px).contiguous().numpy()
        call = _onnxruntime(path) if self.engine == "onnxruntime" else _openvino(path, self.precision)
        return lambda: (torch.from_numpy(call(images)),)

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite, or less exact than PyTorch at this precision."""
        precision = "autocast" if self.precision == "bfloat16" else self.precision
        as_pytorch = Network(
            name=self.name, model=self.model, image_px=self.image_px, batch=self.batch, precision=precision
        )
        return not_finite(answer) or logits_problem(answer[0], as_pytorch, self.model, self.image_px)

    def multiply_adds(self) -> int:
        """Counted on timm's network."""
        return self.batch * image_multiply_adds(self.model, self.image_px)


def exported(model: str, image_px: int, batch: int) -> Path:
    """timm's network as an ONNX file for batches of `batch`, weights inside; made at the first call."""
    versions = f"torch{version('torch')}-timm{version('timm')}".replace("+", "_")
    path = EXPORTS / f"{model.removeprefix(TIMM)}-{image_px}px-batch{batch}-{versions}.onnx"
    if not path.exists():
        EXPORTS.mkdir(exist_ok=True)
        network = original(model, image_px)
        program = torch.onnx.export(network, (noise(batch, image_px).contiguous(),), dynamo=True, verbose=False)
        with replacement(path) as temporary:
            program.save(temporary)
    return path


def _onnxruntime(path: Path) -> Callable[[Any], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise wait busily while the next candidate is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _openvino(path: Path, precision: str) -> Callable[[Any], Any]:
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16"}
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY", **hint}
    network = openvino.Core().compile_model(path, "CPU", settings)
    request = network.create_infer_request()
    # A shared output would change under the next call; copying logits costs nothing.
    return lambda images: request.infer([images], share_inputs=True)[0].copy()
