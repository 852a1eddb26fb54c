"""Whole models as programs of torch.export, as ONNX files, and as graphs of torch.fx."""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from error_budget import assert_as_exact_as
from simulated_rounding import simulated, step_by_step
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close
from torchvision.models import feature_extraction

import parhelion
from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.models import create_model
from parhelion.models.accelerate import accelerate

pytestmark = pytest.mark.compile

# The smallest has tables for half of these sizes, and needs more than 8 pixels: a last map of one pixel is a case of
# its own for torch.export.
SIZES = [(1, 20, 200), (3, 33, 47), (2, 200, 20), (2, 64, 64), (5, 131, 70)]
BATCH, H, W = Dim("batch", min=1, max=64), Dim("h", min=20, max=200), Dim("w", min=20, max=200)
NAMED, AUTOMATIC = {0: BATCH, 2: H, 3: W}, dict.fromkeys((0, 2, 3), Dim.AUTO)

MODELS: dict[str, dict[str, Any]] = {
    "gsa_tiny": {},
    "halonet_tiny": {},
    "hybrid": {"conv_stages": (1, 2), "border": "masked"},
    "resnet_tiny": {},
    "halonet_tiny, patches": {"stem": "patch4"},
}
# What each shows alone: global attention; windows, the masked border and convolutions; the stem of patches.
FEW = ("gsa_tiny", "hybrid", "halonet_tiny, patches")


def few_of(names: Iterable[str], few: Sequence[str]) -> list[Any]:
    """All names as parameters; those that are not among the few are thorough."""
    return [pytest.param(name, marks=[] if name in few else [pytest.mark.thorough]) for name in names]


def network(name: str, **choices: Any) -> nn.Module:
    """A small model with logits of about 1; fresh attention without a scale lets them grow without bound."""
    registered = "halonet_tiny" if name == "hybrid" else name.split(",")[0]
    model = create_model(registered, num_classes=7, **MODELS[name], **choices)
    model(torch.randn(2, 3, 40, 48))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 40, 48))
    return model.eval()


class GsaNetwork(nn.Module):
    """A module of gsa_pytorch behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        gsa_pytorch = pytest.importorskip("gsa_pytorch", reason="needs gsa_pytorch, whose module is accelerated")
        self.stem = nn.Conv2d(3, 12, 3, stride=2)
        self.attention = gsa_pytorch.GSA(12, heads=3, dim_key=5, rel_pos_length=13)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.stem(x)).mean((2, 3))


def accelerated_timm() -> nn.Module:
    """A network of timm's with two layers of its halo attention, as its halonet26t has three."""
    sizes = {"s": 2, "gs": 0, "br": 0.5}
    attention = {"block_size": 4, "halo_size": 1, "num_heads": 2}
    config = ByoModelCfg(
        blocks=(
            ByoBlockCfg(type="bottle", d=1, c=32, **sizes),
            ByoBlockCfg(type="self_attn", d=2, c=64, self_attn_layer="halo", self_attn_kwargs=attention, **sizes),
        ),
        stem_chs=16,
        stem_type="3x3",
        stem_pool="",
    )
    return accelerate(ByobNet(config, num_classes=7, zero_init_last=False), report=None).eval()


def accelerated_gsa() -> nn.Module:
    return accelerate(GsaNetwork(), report=None).eval()


# torch.export


def assert_same_bits(actual: Tensor | list[Tensor], expected: Tensor | list[Tensor]) -> None:
    assert_close(actual, expected, rtol=0.0, atol=0.0)


def assert_serves_every_size(
    model: nn.Module, dimensions: dict[int, Any], *, channels: int = 3, same: Callable[..., None] = assert_same_bits
) -> None:
    program = torch.export.export(model, (torch.randn(2, channels, 37, 59),), dynamic_shapes=(dimensions,)).module()
    for batch, h, w in SIZES:
        images = torch.randn(batch, channels, h, w)
        with torch.no_grad():
            same(program(images), model(images))


@pytest.mark.parametrize("name", few_of(MODELS, FEW))
def test_one_program_with_named_dimensions_serves_every_size(name: str) -> None:
    assert_serves_every_size(network(name), NAMED)


@pytest.mark.parametrize("name", few_of(["gsa_tiny", "hybrid"], ["gsa_tiny"]))
def test_one_program_with_automatic_dimensions_serves_every_size(name: str) -> None:
    assert_serves_every_size(network(name), AUTOMATIC)


def test_a_strict_export_serves_every_size_too() -> None:
    model, images = network("gsa_tiny"), torch.randn(2, 3, 37, 59)
    program = torch.export.export(model, (images,), dynamic_shapes=(NAMED,), strict=True).module()
    images = torch.randn(3, 3, 131, 20)
    with torch.no_grad():
        assert torch.equal(program(images), model(images))


def test_a_pyramid_of_features_is_one_program_too() -> None:
    assert_serves_every_size(create_model("gsa_tiny", features_only=True, stem="conv7").eval(), AUTOMATIC)


@pytest.mark.parametrize(
    "layer",
    [
        partial(GlobalSelfAttention, size=31, stride=2),
        partial(HaloAttention, block=24, halo=1, stride=2),
        partial(HaloAttention, block=4, halo=1, border="masked"),
    ],
)
def test_the_reference_of_a_layer_is_one_program_too(layer: Callable[..., nn.Module]) -> None:
    assert_serves_every_size(layer(6, heads=2, impl="reference").eval(), NAMED, channels=6)


def test_means_of_nine_pixels_are_one_program_too() -> None:
    # Not the same bits: eager sums are divided by 6 at some borders, those of the program by 9 and multiplied by 3/2.
    layer = GlobalSelfAttention(6, heads=2, size=31, stride=3).eval()
    assert_serves_every_size(layer, NAMED, channels=6, same=partial(assert_close, rtol=1e-5, atol=1e-5))


def test_one_image_at_a_time_and_less_than_a_block_is_served_too() -> None:
    layer = HaloAttention(6, heads=2, block=24, halo=1, impl="reference").eval()
    dimensions = {2: Dim("h", min=2, max=99), 3: Dim("w", min=2, max=99)}
    program = torch.export.export(layer, (torch.randn(1, 6, 31, 57),), dynamic_shapes=(dimensions,)).module()
    for size in ((5, 7), (24, 25), (99, 2)):
        images = torch.randn(1, 6, *size)
        assert torch.equal(program(images), layer(images))


@pytest.mark.parametrize("build", [accelerated_timm, accelerated_gsa])
def test_one_program_of_an_accelerated_model_serves_every_size(build: Callable[[], nn.Module]) -> None:
    assert_serves_every_size(build(), AUTOMATIC)


# ONNX


def onnx_outputs(model: nn.Module, images: Tensor, file: Path, **options: Any) -> Tensor:
    """What onnxruntime computes from an export of `model`."""
    pytest.importorskip("onnxscript", reason="needs onnxscript, which exports to ONNX")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs ONNX files")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(model, (images,), file, verbose=False, **options)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(output)


def assert_computes_the_same(actual: Tensor, model: nn.Module, images: Tensor) -> None:
    """Fail unless `actual`, computed by onnxruntime in float32, is as exact as float32 allows."""
    exact, images = parhelion.reference(model).double(), images.double()
    with torch.no_grad():
        (likely,) = simulated(lambda: [exact(images)], step_by_step(torch.float32), torch.float32)
        # onnxruntime interpolates tables at coordinates in float32: errors of up to 2.8 times the simulated were seen.
        assert_as_exact_as(actual, likely, exact(images), margin=4.0)


ONNX_MODELS = {
    **{name: lambda name=name: network(name) for name in ("gsa_tiny", "halonet_tiny", "hybrid", "resnet_tiny")},
    "accelerated network of timm": accelerated_timm,
    "accelerated GSA of gsa_pytorch": accelerated_gsa,
}


@pytest.mark.parametrize("name", few_of(ONNX_MODELS, ["gsa_tiny", "hybrid", "accelerated network of timm"]))
def test_an_onnx_file_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    model, images = ONNX_MODELS[name](), torch.randn(2, 3, 39, 53)
    assert_computes_the_same(onnx_outputs(model, images, tmp_path / "m.onnx", dynamo=True), model, images)


def test_an_onnx_file_of_a_layer_serves_every_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs ONNX files")
    pytest.importorskip("onnxscript", reason="needs onnxscript, which exports to ONNX")
    layers = nn.Sequential(
        HaloAttention(6, heads=2, block=24, halo=1, border="masked", scale=None),
        nn.BatchNorm2d(6),
        GlobalSelfAttention(6, heads=2, size=31, stride=2),
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            layers,
            (torch.randn(2, 6, 37, 59),),
            tmp_path / "m.onnx",
            dynamo=True,
            verbose=False,
            dynamic_shapes=(AUTOMATIC,),
        )
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    # Less than a block, several, and many lines; errors are simulated at each size, which takes seconds.
    for batch, h, w in ((1, 20, 50), (3, 33, 47), (2, 73, 20)):
        images = torch.randn(batch, 6, h, w)
        (actual,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        assert_computes_the_same(torch.from_numpy(actual), layers, images)


@pytest.mark.parametrize("name", ["gsa_tiny", "halonet_tiny"])
def test_the_older_exporter_works_too(name: str, tmp_path: Path) -> None:
    model, images = network(name), torch.randn(2, 3, 39, 53)
    assert_computes_the_same(onnx_outputs(model, images, tmp_path / "m.onnx", dynamo=False), model, images)


def test_a_named_implementation_refuses_onnx_in_words(tmp_path: Path) -> None:
    sentence = r"impl='cpu' cannot run: an ONNX file cannot hold the kernels of Parhelion, only its reference"
    with pytest.raises(ValueError, match=sentence):
        onnx_outputs(create_model("halonet_tiny", impl="cpu"), torch.randn(1, 3, 39, 53), tmp_path / "m", dynamo=False)


# torch.fx


@pytest.mark.parametrize("library", [timm.models, feature_extraction], ids=["timm", "torchvision"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["gsa_tiny", "halonet_tiny, patches"])
def test_features_are_extracted_by_name(name: str, training: bool, library: Any) -> None:
    model, images = network(name, drop_path=0.1).train(training), torch.randn(2, 3, 39, 53)
    extractor = library.create_feature_extractor(model, {"stages.1": "middle", "head": "logits"}).eval()
    found = extractor(images)
    model.eval()
    assert torch.equal(found["logits"], model(images))
    assert torch.equal(found["middle"], model.forward_intermediates(images, indices=[1], intermediates_only=True)[0])


@pytest.mark.parametrize("library", [timm.models, feature_extraction], ids=["timm", "torchvision"])
@pytest.mark.parametrize(("build", "node"), [(accelerated_timm, "head"), (accelerated_gsa, "mean")])
def test_features_of_accelerated_models_are_extracted(build: Callable[[], nn.Module], node: str, library: Any) -> None:
    model, images = build(), torch.randn(1, 3, 39, 53)
    extractor = library.create_feature_extractor(model, [node])
    assert torch.equal(extractor(images)[node], model(images))


def test_a_traced_graph_runs_at_other_sizes_and_can_be_copied() -> None:
    model = network("gsa_tiny")
    graph = copy.deepcopy(torch.fx.symbolic_trace(model))
    for size in ((39, 53), (90, 20)):
        images = torch.randn(2, 3, *size)
        assert torch.equal(graph(images), model(images))
    with pytest.raises(ValueError, match="7x20 pixels is too small"):
        graph(torch.randn(1, 3, 7, 20))
