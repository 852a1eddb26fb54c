"""Models of timm and modules of gsa_pytorch, before and after `parhelion.accelerate`."""

import copy
import io
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from error_budget import assert_as_exact_as
from simulated_rounding import fused, simulated
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.layers.halo_attn import HaloAttn
from torch import Tensor, nn
from torch.testing import assert_close

import parhelion
from parhelion.errors import UserError

# How many layers each network has of timm's halo attention, its image in pixels, and what must be left.
NETWORKS = {
    "halonet26t": (3, 256, ()),
    "halonet50ts": (5, 256, ()),
    "sehalonet33ts": (4, 256, ()),
    "eca_halonext26ts": (3, 256, ()),
    "haloregnetz_b": (5, 224, ()),
    "halo2botnet50ts_256": (5, 256, ("1 BottleneckAttn",)),
    "lamhalobotnet50ts_256": (3, 256, ("1 BottleneckAttn", "2 LambdaLayer")),
    "halonet_h1": (19, 256, ()),
}

FEW_NETWORKS = ("halonet26t", "lamhalobotnet50ts_256")

# A map of timm's layer in blocks, and its choices beside block, halo, heads and channels.
LAYERS = [
    ((1, 2), {}),
    ((3, 2), {"scale_pos_embed": True}),
    ((2, 1), {"stride": 2}),
    ((2, 3), {"stride": 2, "scale_pos_embed": True, "qkv_bias": True}),
    ((1, 2), {"stride": 2, "avg_down": True}),
    ((2, 1), {"stride": 1, "halo_size": 0, "dim_head": 3}),
    ((1, 3), {"stride": 2, "block_size": 5}),  # an odd map, of which timm's pooling drops the last row and column
    ((1, 1), {"block_size": 2, "halo_size": 3}),
]

# Rows and columns of the map, and the choices of gsa_pytorch's module beside channels and heads.
GSAS = [
    ((6, 10), {}),
    ((6, 10), {"rel_pos_length": 10}),
    ((10, 6), {"rel_pos_length": 13, "norm_queries": True}),
    ((6, 10), {"rel_pos_length": 4}),  # farther pixels have embeddings of zero
    ((9, 4), {"rel_pos_length": 9, "batch_norm": False}),
    ((1, 1), {"rel_pos_length": 1, "dim_out": 11}),
]


def network(name: str) -> nn.Module:
    """A network of timm in which attention matters from the start, unlike with its usual last norms of zero."""
    return timm.create_model(name, num_classes=7, zero_init_last=False)


def halo_layer(**choices: Any) -> HaloAttn:
    return HaloAttn(10, **{"dim_out": 21, "num_heads": 3, "dim_head": 5, "block_size": 4, "halo_size": 1, **choices})


def gsa_module(**choices: Any) -> nn.Module:
    gsa_pytorch = pytest.importorskip("gsa_pytorch", reason="needs gsa_pytorch, whose module is accelerated")
    return gsa_pytorch.GSA(10, **{"heads": 3, "dim_key": 5, **choices})


@pytest.fixture(autouse=True)
def float64_in_gsa_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let gsa_pytorch compute in float64: the mask that picks its embeddings is of float32, whatever they are."""
    if find_spec("gsa_pytorch") is not None:
        inside = import_module("gsa_pytorch.gsa_pytorch")
        monkeypatch.setattr(inside, "einsum", lambda equation, a, b: torch.einsum(equation, a.to(b.dtype), b))


def accelerated(model: nn.Module) -> nn.Module:
    return parhelion.accelerate(copy.deepcopy(model), report=None)


def sentences_about(model: nn.Module) -> list[str]:
    heard: list[str] = []
    assert parhelion.accelerate(model, report=heard.append) is model
    return heard


def results(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output, every gradient, and what the model remembers afterwards."""
    model.zero_grad()
    images = images.clone().requires_grad_()
    output = model(images)
    output.backward(torch.arange(output.numel(), dtype=output.dtype).sin().view_as(output))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"output": output.detach(), "images": images.grad, **gradients, **dict(model.named_buffers())}


def assert_within_budget(model: nn.Module, *draws: Tensor) -> None:
    """Fail unless the float32 model, accelerated, errs as rounding in float32 is likely to; over several draws."""

    def drawn(compared: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        each = [results(copy.deepcopy(compared).to(dtype), images.to(dtype)) for images in draws]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    ours, truth = drawn(accelerated(model), torch.float32), drawn(model, torch.float64)
    likely = simulated(lambda: list(drawn(model, torch.float64).values()), fused(torch.float32), torch.float32)
    for (name, exact), simulation in zip(truth.items(), likely, strict=True):
        if exact.is_floating_point():
            assert_as_exact_as(ours[name], simulation, exact)


networks = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FEW_NETWORKS else [pytest.mark.thorough]) for name in NETWORKS],
)


@networks
def test_timms_networks_keep_outputs_gradients_and_statistics(name: str) -> None:
    _, px, _ = NETWORKS[name]
    model, images = network(name).double(), torch.randn(1, 3, px, px).double()
    ours = accelerated(model)
    assert_close(results(ours, images), results(model, images))


@networks
def test_every_kind_of_layer_of_timms_networks_stays_within_the_error_budget(name: str) -> None:
    layers = [module for module in network(name).modules() if isinstance(module, HaloAttn)]
    for layer in {(str(layer), layer.block_size, layer.halo_size): layer for layer in layers}.values():
        block = layer.block_size
        assert_within_budget(layer, torch.randn(1, layer.q.in_channels, block, 2 * block))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_counts_what_was_changed_and_what_was_left(name: str) -> None:
    count, _, left = NETWORKS[name]
    changed, *others = sentences_about(network(name))
    assert changed.startswith(f"Accelerated {count} HaloAttn: stages.")
    assert changed.count("self_attn") == count
    assert [sentence.split(",")[0] for sentence in others] == [f"Left as it was: {kind}" for kind in left]


@pytest.mark.parametrize(("blocks", "choices"), LAYERS)
def test_timms_layer_keeps_outputs_and_gradients(blocks: tuple[int, int], choices: dict[str, Any]) -> None:
    layer = halo_layer(**choices).double()
    images = torch.randn(2, 10, *(count * layer.block_size for count in blocks)).double()
    assert_close(results(accelerated(layer), images), results(layer, images))


@pytest.mark.parametrize(("blocks", "choices"), LAYERS)
def test_timms_layer_stays_within_the_error_budget(blocks: tuple[int, int], choices: dict[str, Any]) -> None:
    layer = halo_layer(**choices)
    assert_within_budget(layer, torch.randn(2, 10, *(count * layer.block_size for count in blocks)))


@pytest.mark.parametrize(("h", "w"), [(7, 9), (1, 2), (8, 5), (3, 11)])
@pytest.mark.parametrize("choices", [{}, {"stride": 2}, {"stride": 2, "avg_down": True}])
def test_a_map_that_timm_refuses_is_read_as_if_zeros_lay_round_it(h: int, w: int, choices: dict[str, Any]) -> None:
    layer, images = halo_layer(**choices).double(), torch.randn(2, 10, h, w).double()
    with pytest.raises(AssertionError):
        layer(images)
    ours = accelerated(layer)(images)

    pools, layer.pool = isinstance(layer.pool, nn.AvgPool2d), nn.Identity()
    whole_blocks = layer(F.pad(images, (0, -w % 4, 0, -h % 4)))
    if pools:
        theirs = F.avg_pool2d(whole_blocks[..., :h, :w], 2, ceil_mode=True, count_include_pad=False)
    else:
        theirs = whole_blocks[..., : -(-h // layer.block_stride), : -(-w // layer.block_stride)]
    assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["halonet_h1", "haloregnetz_b"])
def test_networks_take_images_that_timm_refuses(name: str) -> None:
    model, images = network(name), torch.randn(2, 3, 97, 131)
    with pytest.raises(AssertionError):
        model(images)
    parhelion.accelerate(model, report=None)
    assert model.forward_features(images).shape[2:] == (4, 5)
    assert all(torch.isfinite(value).all() for value in results(model, images).values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("size", "choices"), GSAS)
def test_gsa_modules_keep_outputs_gradients_and_statistics(
    size: tuple[int, int], choices: dict[str, Any], training: bool
) -> None:
    module, images = gsa_module(**choices).double().train(training), torch.randn(2, 10, *size).double()
    for buffer in module.buffers():
        buffer.add_(1)
    assert_close(results(accelerated(module), images), results(module, images))


@pytest.mark.parametrize(("size", "choices"), GSAS)
def test_gsa_modules_stay_within_the_error_budget(size: tuple[int, int], choices: dict[str, Any]) -> None:
    assert_within_budget(gsa_module(**choices), *torch.randn(4, 2, 10, *size))


def test_a_gsa_module_keeps_the_norm_that_a_user_gave_it() -> None:
    module, images = gsa_module(rel_pos_length=8).double(), torch.randn(2, 10, 4, 7).double()
    module.norm = nn.GroupNorm(1, 5).double()
    assert_close(results(accelerated(module), images), results(module, images))


def test_channels_last_data_stays_so_and_changes_nothing() -> None:
    images = torch.randn(2, 10, 8, 12).double()
    layer = accelerated(halo_layer(stride=2).double())
    last = layer(images.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert_close(last, layer(images))


def test_autocast_gives_timms_dtype_within_the_error_budget() -> None:
    layer, images = halo_layer(), torch.randn(2, 10, 8, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = accelerated(layer)(images), layer(images)
        layer, images = layer.double(), images.double()
        (likely,) = simulated(lambda: [layer(images)], fused(torch.bfloat16), torch.bfloat16)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert_as_exact_as(ours, likely, layer(images).detach())


def test_parameters_hooks_and_optimisers_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 3), halo_layer())
    layer, before, calls = model[1], dict(model.named_parameters()), []
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.kv.register_forward_hook(lambda *_: calls.append("kv"))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)

    assert parhelion.accelerate(model, report=None) is model
    assert model[1] is layer
    assert isinstance(layer, HaloAttn)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == {
        name: id(parameter) for name, parameter in before.items()
    }
    old = layer.pos_embed.height_rel.detach().clone()
    model(torch.randn(2, 3, 7, 9)).square().sum().backward()
    optimiser.step()
    assert calls == ["kv", "forward"]
    assert not torch.equal(layer.pos_embed.height_rel, old)


@pytest.mark.parametrize("build", [lambda: halo_layer(stride=2), lambda: gsa_module(rel_pos_length=5)])
def test_checkpoints_load_both_ways(build: Callable[[], nn.Module]) -> None:
    theirs, other = build(), build()
    ours = accelerated(other)
    images = torch.randn(2, 10, 4, 8)
    assert list(ours.state_dict()) == list(theirs.state_dict())

    ours.load_state_dict(theirs.state_dict())
    assert_close(accelerated(theirs).eval()(images), ours.eval()(images), rtol=0, atol=0)
    theirs.load_state_dict(accelerated(other).state_dict())
    assert_close(theirs.eval()(images), other.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("build", [halo_layer, lambda: gsa_module(rel_pos_length=5)])
def test_an_accelerated_model_can_be_copied_and_saved_whole(build: Callable[[], nn.Module]) -> None:
    model = accelerated(build())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    images = torch.randn(2, 10, 7, 9)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(twin) is type(model)
        assert_close(twin.train(False)(images), model.train(False)(images), rtol=0, atol=0)


@pytest.mark.compile
def test_a_model_compiled_before_is_compiled_anew() -> None:
    layer, odd = halo_layer(), torch.randn(2, 10, 7, 9)
    compiled = torch.compile(layer, backend="eager")
    compiled(torch.randn(2, 10, 8, 12))
    assert sentences_about(compiled) == ["Accelerated 1 HaloAttn: _orig_mod."]
    assert_close(compiled(odd), layer(odd))


@pytest.mark.compile
def test_an_accelerated_network_compiles_whole() -> None:
    model, images = accelerated(network("eca_halonext26ts")).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))


def test_timms_feature_extraction_works_on_an_accelerated_network() -> None:
    model, images = accelerated(network("halonet26t")).eval(), torch.randn(1, 3, 97, 131)
    features = timm.models.create_feature_extractor(model, {"stages.3": "last"})(images)["last"]
    assert_close(features, model.stages(model.stem(images)))


def test_a_second_call_says_that_nothing_is_left_to_do() -> None:
    model = nn.Sequential(halo_layer(), halo_layer(stride=2))
    assert sentences_about(model) == ["Accelerated 2 HaloAttn: 0, 1."]
    assert sentences_about(model) == [
        "Accelerated before: 2 HaloAttn: 0, 1.",
        "Nothing more to accelerate in Sequential.",
    ]


def test_a_layer_can_be_the_model_itself() -> None:
    assert sentences_about(halo_layer()) == ["Accelerated 1 HaloAttn: the model itself."]
    assert sentences_about(gsa_module()) == ["Accelerated 1 GSA: the model itself."]


def test_layers_that_may_compute_something_else_are_left() -> None:
    class Other(HaloAttn):
        def forward(self, x: Tensor) -> Tensor:
            return x

    replaced = halo_layer()
    replaced.forward = lambda x: x
    model = nn.Sequential(replaced, halo_layer(), BottleneckAttn(8, feat_size=(4, 6), num_heads=2))
    model.append(Other(8, num_heads=2)).append(parhelion.layers.HaloAttention(8, heads=2, block=4, halo=1))
    assert sentences_about(model) == [
        "Accelerated 1 HaloAttn: 1.",
        "Left as it was: 1 BottleneckAttn, which attends to the whole map, not to windows: 2.",
        "Left as it was: 1 HaloAttention, which is Parhelion's own: 4.",
        "Left as it was: 1 HaloAttn, whose forward was replaced on the object: 0.",
        "Left as it was: 1 Other, which is a subclass of HaloAttn and may compute something else: 3.",
    ]
    assert type(replaced) is HaloAttn


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_scripted_layer_is_left_with_advice() -> None:
    traced = torch.jit.trace(halo_layer(), torch.randn(2, 10, 4, 8))
    assert sentences_about(nn.Sequential(traced)) == [
        "Left as it was: 1 HaloAttn, which is scripted: accelerate the model before torch.jit.script: 0.",
        "Nothing to accelerate in Sequential: no HaloAttn of timm and no GSA of gsa_pytorch that can be swapped.",
    ]


def test_a_model_without_such_attention_comes_back_with_a_sentence() -> None:
    assert sentences_about(nn.Conv2d(3, 5, 1)) == [
        "Nothing to accelerate in Conv2d: no HaloAttn of timm and no GSA of gsa_pytorch that can be swapped."
    ]


def test_the_report_is_printed_unless_it_is_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    parhelion.accelerate(halo_layer(), report=None)
    assert capsys.readouterr().out == ""
    parhelion.accelerate(halo_layer())
    assert capsys.readouterr().out == "Accelerated 1 HaloAttn: the model itself.\n"


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("argument", "words"), [("halonet26t", "not 'halonet26t' of type str"), (None, "not None"), (HaloAttn, "type type")]
)
def test_what_is_no_model_is_refused_in_a_sentence(argument: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"^accelerate takes a torch\.nn\.Module, .*{words}"):
        parhelion.accelerate(argument)
