"""What explain says that layers attend to is what their kernels computed."""

from dataclasses import replace

import gsa_pytorch
import pytest
import timm
import torch
from explain.attentive import CHANNELS, LAYERS, MAP, far_layer, neighbour_layer, one_map
from small_layers import small_layer
from small_rcnns import small
from torch import nn

import parhelion
from parhelion.errors import UserError
from parhelion.explain import MismatchError, attention
from parhelion.explain.recorded import recorded

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_weights_times_values_are_the_output_of_every_kind_of_layer(name, impl):
    model = parhelion.models.reference.run_on(impl, LAYERS[name]())
    image = one_map()
    (layer,) = attention(model, image).layers
    with torch.no_grad():
        expected = model.eval()(image)
    (qh, qw), heads = layer.query_size, layer.heads
    if layer.kind == "halo":
        rows = [[layer.window_weights(row, col) for col in range(qw)] for row in range(qh)]
        sums = torch.stack([torch.stack(line) for line in rows]).sum(dim=(-1, -2))
        torch.testing.assert_close(sums, torch.ones(qh, qw, heads))
        weights = torch.stack([torch.stack([layer.weights(row, col) for col in range(qw)]) for row in range(qh)])
        out = torch.einsum("ijnyx,yxne->ijne", weights, layer.v)
        torch.testing.assert_close(out.flatten(-2).permute(2, 0, 1)[None], expected)
    else:
        assert layer.query_size == MAP
        assert layer.check() <= 1


def test_position_and_content_of_a_global_layer_add_up_to_its_output():
    # Without a normalisation's shift all is weights times values, but for what it multiplies each channel with.
    model = LAYERS["gsa"]()
    nn.init.zeros_(model.norm.bias)
    model.norm.running_mean.zero_()
    nn.init.constant_(model.norm.weight, 0.7)
    model.norm.running_var.fill_(1.3)
    image = one_map()
    (layer,) = attention(model, image).layers
    v = layer.content.v
    weights = torch.stack([torch.stack([layer.weights(row, col) for col in range(MAP[1])]) for row in range(MAP[0])])
    out = torch.einsum("ijnyx,yxne->ijne", weights, v).flatten(-2).permute(2, 0, 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(out, model.eval()(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("down", "across"), [(0, 1), (-2, 0), (1, -1)])
def test_a_layer_that_attends_to_one_neighbour_by_its_tables_is_shown_doing_that(down, across):
    (layer,) = attention(neighbour_layer(down, across), one_map()).layers
    seen = 0
    for row in range(MAP[0]):
        for col in range(MAP[1]):
            top, left = layer.corner(row, col)
            at = row + down, col + across
            if all(0 <= place < size for place, size in zip(at, MAP, strict=True)):
                seen += 1
                expected = torch.zeros(2, *MAP)
                expected[:, at[0], at[1]] = 1
                torch.testing.assert_close(layer.weights(row, col), expected)
                assert layer.window_weights(row, col, "position")[0, at[0] - top, at[1] - left] > 0.999
                assert layer.window_weights(row, col, "content").max() < 0.1
    assert seen >= 48


@pytest.mark.parametrize(("down", "across"), [(0, 3), (-2, 0), (4, -5)])
def test_a_global_layer_that_reads_one_far_pixel_is_shown_doing_that(down, across):
    (layer,) = attention(far_layer(down, across), one_map()).layers
    for row, col in ((0, 0), (2, 6), (6, 9)):
        expected = torch.zeros(2, *MAP)
        at = row + down, col + across
        if 0 <= at[0] < MAP[0] and 0 <= at[1] < MAP[1]:
            expected[:, at[0], at[1]] = 1
        torch.testing.assert_close(layer.weights(row, col), expected)
        across_row = layer.weights(row, col, "rows")
        assert across_row.count_nonzero() == (2 if 0 <= at[1] < MAP[1] else 0)


def test_weights_that_do_not_give_the_output_are_refused():
    for name in ("halo", "gsa"):
        (layer,) = attention(LAYERS[name](), one_map()).layers
        if name == "halo":
            wrong = replace(layer, output=layer.output.roll(1, dims=0))
        else:
            wrong = replace(layer, rows=layer.rows._replace(output=layer.rows.output * 1.001))
        with pytest.raises(MismatchError, match="do not give what its kernel returned"):
            wrong.check()


def test_a_map_in_bfloat16_is_held_to_its_rounding():
    maps = attention(LAYERS["halo"]().bfloat16(), one_map())
    assert 0 < maps.exactness <= 1
    (layer,) = maps.layers
    assert layer.k.dtype == torch.bfloat16
    torch.testing.assert_close(layer.window_weights(1, 2).sum(dim=(-1, -2)), torch.ones(2))
    with pytest.raises(MismatchError):
        replace(layer, output=layer.output * 1.25).check()


MODELS = {
    "halo hybrid": lambda: parhelion.create_model("halonet_tiny", conv_stages=(1,), num_classes=3),
    "gsa hybrid": lambda: parhelion.create_model("gsa_tiny", groups=(2, 3), num_classes=3),
    "folded": lambda: parhelion.fold(parhelion.create_model("halonet_tiny", num_classes=3)),
    "pyramid": lambda: parhelion.create_model("gsa_tiny", features_only=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_networks_of_odd_sizes(name):
    maps = attention(MODELS[name](), torch.randn(3, 37, 51))
    assert maps.exactness <= 1
    assert maps.picture.size == (51, 37)
    assert len(maps.top) == (0 if name == "pyramid" else 3)
    for layer, summary in zip(maps.layers, maps.summaries, strict=True):
        assert all(value.min() >= 0 for value in summary if value is not None)
        assert summary.distance.max() < 63
        assert layer.weights(0, layer.query_size[1] - 1).shape == (layer.heads, *layer.size)


def test_timm_and_gsa_pytorch_once_accelerated():
    model = nn.Sequential(
        timm.layers.halo_attn.HaloAttn(CHANNELS, 16, num_heads=2, stride=2, block_size=4, halo_size=1),
        gsa_pytorch.GSA(16, heads=2, dim_key=5, rel_pos_length=3),
    )
    with pytest.raises(UserError, match=r"parhelion\.accelerate"):
        attention(model, one_map((8, 12)))
    maps = attention(parhelion.accelerate(model, report=None), one_map((8, 12)))
    assert [layer.name for layer in maps.layers] == ["0", "1"]
    assert [layer.kind for layer in maps.layers] == ["halo", "global"]
    assert maps.layer("1").weights(3, 5, "position").abs().max() > 0


@pytest.mark.slow
def test_a_detector_names_objects_and_shows_what_its_backbone_saw():
    maps = attention(small("halonet_tiny").eval(), torch.rand(3, 50, 70), class_names=("cup", "fork", "dish"))
    assert {layer.kind for layer in maps.layers} == {"halo"}
    assert {name for name, _ in maps.top} <= {"cup", "fork", "dish"}
    # Scaled to 96 x 69 pixels, and padded to whole pixels of the last map.
    assert maps.picture.size == (96, 80)


def test_a_layer_that_is_called_twice_is_two_layers():
    shared = LAYERS["halo"]()
    model = nn.Sequential(shared, nn.Conv2d(16, CHANNELS, 1), shared)
    assert [layer.name for layer in attention(model, one_map()).layers] == ["0", "0 (2)"]


def test_the_model_is_left_as_it_was():
    model = parhelion.create_model("gsa_tiny", num_classes=3).train()
    model.stem.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention(model, torch.randn(3, 32, 40), rollout=True, occlusion=True)
    assert model.training
    assert not model.stem.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.compile
def test_a_compiled_model_tells_as_well():
    model = torch.compile(LAYERS["halo"](), backend="eager", fullgraph=True)
    image = one_map()
    expected = model(image)
    answer, layers = recorded(model, lambda: model(image))
    torch.testing.assert_close(answer, expected)
    assert len(layers) == 1


@pytest.mark.parametrize(
    ("model", "image", "sentence"),
    [
        (lambda: parhelion.create_model("resnet_tiny"), torch.zeros(3, 32, 32), "has no attention that can be shown"),
        (LAYERS["halo"], "photo.png", "does not say how its images are scaled"),
        (LAYERS["halo"], torch.zeros(2, CHANNELS, 8, 8), "a tensor of one image is"),
        (LAYERS["halo"], torch.zeros(CHANNELS, 8, 8, dtype=torch.uint8), "in floating point"),
        (LAYERS["halo"], torch.full((CHANNELS, 8, 8), torch.nan), "returned infinity or NaN"),
        (lambda: "halonet_tiny", torch.zeros(3, 32, 32), "takes a torch.nn.Module"),
        (lambda: parhelion.create_model("halonet_tiny"), "nowhere.png", "cannot read the image nowhere.png"),
    ],
)
def test_mistakes_are_told_in_a_sentence(model, image, sentence):
    with pytest.raises(UserError, match=sentence):
        attention(model(), image)


def test_what_is_asked_for_must_be_there():
    model = LAYERS["halo"]()
    with pytest.raises(UserError, match="no attention layer is called 'stages'"):
        attention(model, one_map(), layers="stages")
    with pytest.raises(UserError, match="occlusion needs the probability of a class"):
        attention(model, one_map(), occlusion=True)
    with pytest.raises(UserError, match="has no attention layer 'first'; it has the model"):
        attention(model, one_map()).layer("first")
    with pytest.raises(IndexError, match="queries at rows 0 to 6"):
        attention(model, one_map()).layers[0].weights(7, 0)


def test_something_else_than_a_batch_norm_between_columns_and_rows_is_refused():
    layer = LAYERS["gsa"]()
    layer.norm = nn.GroupNorm(2, CHANNELS)
    with pytest.raises(UserError, match="something else than a batch norm"):
        attention(layer, one_map())


def test_all_layers_of_a_small_kind_tell_in_order():
    model = nn.Sequential(small_layer("global", "auto"), small_layer("halo", "auto"))
    assert [layer.kind for layer in attention(model, one_map()).layers] == ["global", "halo"]
