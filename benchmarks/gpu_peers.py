"""Layers as candidates on a GPU: ours, and the same by others, each checked against float64 before it is timed."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from gpu_floor import Work, layer_work
from peers import LAYER_SLACK, Layer, _masks_of_gsa_pytorch_in_float64
from torch import Tensor, nn

import parhelion
from parhelion.layers.heads import apart, together
from parhelion.models.reference import reference, run_on
from parhelion.ops.implementation import Implementation
from parhelion.speed.networks import BATCH_NORMS, SEED, TRAINING_COST, at_precision
from parhelion.speed.timing import Precision, Run, not_as_exact, not_finite

Attend = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor], int, int], Tensor]

# Images at a time in float64, whose windows would not fit into memory for a whole batch.
TRUE_IMAGES = 8


class HaloBy(parhelion.layers.HaloAttention):
    """Our layer, whose attention somebody else's function computes; with impl="reference" it is our layer."""

    def __init__(self, attend: Attend, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        if self.impl == "reference":
            return super().forward(x)
        k, v = self.kv(x).split((self.dim_qk, self.dim_out), dim=1)
        q, k, v = (apart(part, self.heads) for part in (self.q(x), k, v))
        return together(self.attend(q, k, v, (self.table_h, self.table_w), self.block, self.halo))


class Channels(nn.Module):
    """Some channels of a map, in the place of a projection."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """The channels, not copied."""
        return x[:, self.start : self.stop]


def halo(attend: Attend | None, dim: int, *, heads: int, block: int, halo: int) -> nn.Module:
    """Our layer (`attend` None), or the same layer by another attention. Logits are scaled as timm's are."""
    options: dict[str, Any] = {"heads": heads, "block": block, "halo": halo, "scale": None}
    return parhelion.layers.HaloAttention(dim, **options) if attend is None else HaloBy(attend, dim, **options)


def halo_operation(attend: Attend | None, dim: int, **options: int) -> nn.Module:
    """The same without projections: queries, keys and values are the channels of the map."""
    layer = cast(parhelion.layers.HaloAttention, halo(attend, dim, **options))
    layer.q, layer.kv = Channels(0, dim), Channels(dim, 3 * dim)  # type: ignore[assignment]
    return layer


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], block: int, halo: int) -> Tensor:
    """Halo attention by PyTorch's fused attention over gathered windows, relative logits as a bias tensor."""
    tiles = _tiles(q, block) * q.shape[-1] ** -0.5
    rows, cols = _relative_logits(tiles, tables, block, halo)
    bias = (rows[..., :, None] + cols[..., None, :]).flatten(-2)
    keys, values = _windows(k, block, halo), _windows(v, block, halo)
    return _untiled(F.scaled_dot_product_attention(tiles, keys, values, attn_mask=bias, scale=1.0), q, block)


def by_flex(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], block: int, halo: int) -> Tensor:
    """Halo attention by FlexAttention over gathered windows, a batch entry each; scores read the relative logits."""
    from torch.nn.attention.flex_attention import flex_attention

    return _flex(flex_attention, q, k, v, tables, (block, halo))


def by_compiled_flex(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], block: int, halo: int) -> Tensor:
    """The same, with nothing compiled but FlexAttention itself."""
    return _flex(_compiled_flex(), q, k, v, tables, (block, halo))


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex(
    flex: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], window: tuple[int, int]
) -> Tensor:
    block, halo = window
    tiles, side = _tiles(q, block) * q.shape[-1] ** -0.5, block + 2 * halo
    rows, cols = (logits.contiguous() for logits in _relative_logits(tiles, tables, block, halo))

    def score(logit: Tensor, window: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return logit + rows[window, head, query, key // side] + cols[window, head, query, key % side]

    keys, values = _windows(k, block, halo), _windows(v, block, halo)
    return _untiled(flex(tiles, keys, values, score_mod=score, scale=1.0), q, block)


def _tiles(x: Tensor, block: int) -> Tensor:
    """A map (b, h, w, n, d) whose sides the block divides, as (b * blocks, n, queries, d)."""
    tiles = x.unflatten(2, (-1, block)).unflatten(1, (-1, block))
    return tiles.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2).contiguous()


def _untiled(x: Tensor, like: Tensor, block: int) -> Tensor:
    """The way back from `_tiles`, to the shape of `like`."""
    batch, h, w, heads, _ = like.shape
    tiles = x.reshape(batch, h // block, w // block, heads, block, block, x.shape[-1])
    return tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, h, w, heads, x.shape[-1])


def _windows(x: Tensor, block: int, halo: int) -> Tensor:
    """Every block with its halo, (b * blocks, n, keys, d); zeros outside the image."""
    padded, side = F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo)), block + 2 * halo
    windows = padded.unfold(1, side, block).unfold(2, side, block)
    return windows.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2).contiguous()


def _relative_logits(q: Tensor, tables: tuple[Tensor, Tensor], block: int, halo: int) -> tuple[Tensor, Tensor]:
    """Of every query and row of its window, and of every query and column, (b * blocks, n, queries, side)."""
    places = torch.arange(block, device=q.device)
    offsets = torch.arange(block + 2 * halo, device=q.device) - places[:, None] + (block - 1)
    by_place = q.unflatten(2, (block, block))
    half = q.shape[-1] // 2
    rows = torch.einsum("wnijd,iad->wnija", by_place[..., :half], tables[0].to(q.dtype)[offsets])
    cols = torch.einsum("wnijd,jcd->wnijc", by_place[..., half:], tables[1].to(q.dtype)[offsets])
    return rows.flatten(2, 3), cols.flatten(2, 3)


@dataclass(frozen=True, kw_only=True)
class GpuLayer(Layer):
    """One layer on a square map of a device; see `Layer`."""

    precision: Precision = "bfloat16"
    device: str = "cuda"
    impl: Implementation | None = None  # of our operations; None: the layer's own, which is "auto"
    graphed: bool = False  # replayed as a CUDA graph
    partly_compiled: bool = False  # it compiles something of itself
    exact: Callable[[], nn.Module] | None = None  # the layer that it must agree with; None: itself in plain PyTorch

    @property
    def compiles(self) -> bool:
        """Whether it takes minutes to build."""
        return self.compiled or self.partly_compiled

    def why_not(self) -> str | None:
        """Why this cannot run here."""
        return why_not_graphed(self.graphed, self.device) or super().why_not()

    def layer(self) -> nn.Module:
        """The layer with the same weights each time, on the CPU in float32."""
        return with_impl(super().layer(), self.impl)

    def features(self) -> Tensor:
        """The map that enters, made on the device, where that takes no time."""
        generator = torch.Generator(self.device).manual_seed(SEED)
        sizes = (self.batch, self.channels, self.side, self.side)
        return torch.randn(sizes, generator=generator, device=self.device).contiguous(memory_format=self._layout)

    def _ready(self) -> tuple[nn.Module, Tensor, Any]:
        """Layer and map on the device at the precision of the candidate, and the context to call it in."""
        dtype, context = at_precision(self.precision, self.device)
        layer = self.layer().to(self.device, dtype, memory_format=self._layout)  # type: ignore[call-overload]
        return layer, self.features().to(dtype), context

    def build(self) -> Run:
        """The output per call; with `backward` the output, the gradient of the map, and those of the weights."""
        layer, x, context = self._ready()
        called = torch.compile(layer) if self.compiled else layer
        run = partial(calls, backward=self.backward)(called, _weights(layer), x, context=context)
        return graphed(run) if self.graphed else run

    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """Not finite, or less exact than plain PyTorch; each output and gradient against float64."""
        wrong = not_finite(answer)
        if wrong is None:
            for parts in zip(answer, *self.expected(), strict=True):
                wrong = wrong or not_as_exact(*parts, slack=LAYER_SLACK)
        return wrong

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients by plain PyTorch at this precision, and in float64; once for those that share them."""
        make = self.exact or self.make
        sizes = (self.channels, self.side, self.batch, self.precision, self.backward, self.device)
        if (make, sizes) not in _EXPECTED:
            _EXPECTED[make, sizes] = replace(self, make=make, channels_last=True)._expected()
        return _EXPECTED[make, sizes]

    def _expected(self) -> tuple[list[Tensor], list[Tensor]]:
        layer, x, context = self._ready()
        layer = reference(layer)
        twin = copy.deepcopy(layer)
        with torch.no_grad(), context():
            upstream = upstream_of(layer(x))
        baseline = calls(twin, _weights(twin), x, context=context, upstream=upstream, backward=self.backward)()
        with _masks_of_gsa_pytorch_in_float64():
            return list(baseline), self._truth(layer.double(), x.double(), upstream.double())

    def _truth(self, layer: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
        """Some images at a time, where no batch statistics connect them; gradients of weights are sums over images."""
        connected = self.backward and any(isinstance(module, BATCH_NORMS) for module in layer.modules())
        images = len(x) if connected else TRUE_IMAGES
        chunks = zip(x.split(images), upstream.split(images), strict=True)
        weights = _weights(layer)
        parts = [calls(layer, weights, some, upstream=above, backward=self.backward)() for some, above in chunks]
        maps, sums = 2, zip(*parts, strict=True)
        return [torch.cat(one) if place < maps else torch.stack(one).sum(0) for place, one in enumerate(sums)]

    def multiply_adds(self) -> int:
        """Counted on plain PyTorch; a backward pass counts twice its forward pass."""
        forward = sum(int(stage.multiply_adds) for stage in replace(self, backward=False).work().values())
        return TRAINING_COST * forward if self.backward else forward

    def work(self) -> dict[str, Work]:
        """What each stage must do, counted on plain PyTorch."""
        layer = reference(self.layer().eval()).to("meta")
        return layer_work(layer, (self.batch, self.channels, self.side, self.side), backward=self.backward)


# What a case's candidates must give, with whose layer at which sizes; large, so dropped after each case.
_EXPECTED: dict[tuple[Callable[[], nn.Module], tuple[Any, ...]], tuple[list[Tensor], list[Tensor]]] = {}


def forget_expected() -> None:
    """Drop what `GpuLayer.expected` keeps."""
    _EXPECTED.clear()


def _weights(layer: nn.Module) -> list[Tensor]:
    return [weight for weight in layer.parameters() if weight.requires_grad]


def with_impl(module: nn.Module, impl: Implementation | None) -> nn.Module:
    """`module`, whose attention runs as `impl` says; None leaves it alone."""
    return module if impl is None else run_on(impl, module)


def calls(
    layer: Callable[[Tensor], Tensor],
    weights: Sequence[Tensor],
    x: Tensor,
    *,
    backward: bool,
    upstream: Tensor | None = None,
    context: Callable[[], Any] = ExitStack,
) -> Run:
    """The output per call; with `backward` the output and the gradients of the map and of the weights."""

    def forward() -> Sequence[Tensor]:
        with torch.inference_mode(), context():
            return (layer(x),)

    if not backward:
        return forward
    leaves, above = [x.detach().requires_grad_(), *weights], [] if upstream is None else [upstream]

    def forward_and_backward() -> Sequence[Tensor]:
        with context():
            out = layer(leaves[0])
        if not above:
            above.append(upstream_of(out))
        return (out.detach(), *torch.autograd.grad(out, leaves, above[0].to(out.dtype)))

    return forward_and_backward


def upstream_of(out: Tensor) -> Tensor:
    """The gradient that comes from above: the same numbers for every output of a shape and dtype."""
    generator = torch.Generator(out.device).manual_seed(SEED + 1)
    return torch.empty_like(out).copy_(torch.randn(out.shape, generator=generator, device=out.device))


def graphed(run: Run) -> Run:
    """`run` recorded once and replayed: one launch for all its kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # On a stream of its own: with the end of one graph, PyTorch 2.11 takes cuBLAS's workspace from all others that were
    # captured on the same stream (pytorch/pytorch#193402).
    with torch.cuda.graph(graph, stream=stream):
        answer = run()

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return answer

    return replay


def why_not_graphed(graphed: bool, device: str) -> str | None:
    return "CUDA graphs want a GPU" if graphed and device == "cpu" else None


@contextmanager
def choices_noted() -> Iterator[set[str]]:
    """The names of the implementations that our operations run within the block."""
    names: set[str] = set()

    def noting(chosen: Callable[..., str], *arguments: Any, **reasons: Any) -> str:
        name = chosen(*arguments, **reasons)
        names.add(name)
        return name

    with ExitStack() as stack:
        for operation in ("halo", "content", "axial"):
            api = import_module(f"parhelion.ops.{operation}.api")
            stack.enter_context(patch.object(api, "chosen", partial(noting, api.chosen)))
        yield names
