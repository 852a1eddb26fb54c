"""The networks at work: shapes, sizes, gradients, timm's methods."""

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import parhelion
from parhelion.errors import UserError
from parhelion.layers import GlobalSelfAttention, HaloAttention
from parhelion.models import create_model
from parhelion.models.catalog import MODELS
from parhelion.models.rows import STRIDES

SIZES = [(224, 224), (256, 320), (97, 131)]
TINY = ["gsa_tiny", "halonet_tiny", "resnet_tiny"]
# One of each layout of stages, stem and blocks; the others differ by their numbers.
FEW = (
    *("gsa_resnet26", "gsa_resnet50_groups234", "halonet_h0", "halonet_h4_base128_patch", "halonet_h4_base128_conv12"),
    *("halonet_50", "halo_resnet50_se", "resnet26", "resnet50_se", *TINY),
)


def shallow(name: str) -> dict[str, tuple[int, ...]]:
    """Arguments that leave two blocks at most in each stage: the strided one and one that repeats."""
    return {"blocks": tuple(min(blocks, 2) for blocks in MODELS[name].blocks)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # One model of each layout at one of the sizes, in turns.
        pytest.param(
            name, size, marks=[] if name in FEW and (number + turn) % len(SIZES) == 0 else [pytest.mark.thorough]
        )
        for number, name in enumerate(MODELS)
        for turn, size in enumerate(SIZES)
    ],
)
def test_every_model_runs_forward_and_backward_at_any_size_without_memory(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=7, **shallow(name))
        images = torch.empty(2, 3, *size, requires_grad=True)
    features = model.forward_features(images)
    assert features.shape[2:] == tuple(math.ceil(side / model.min_px) for side in size)
    logits = model.forward_head(features)
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else [pytest.mark.thorough]) for name in MODELS]
)
def test_every_model_computes_finite_logits_and_gradients_on_odd_sizes(name: str) -> None:
    model = create_model(name, num_classes=7, **shallow(name))
    logits = model(torch.randn(2, 3, 97, 131))
    logits.logsumexp(dim=1).sum().backward()
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gsa_resnet26", "halonet_h0", "resnet26", *TINY])
def test_channels_last_memory_changes_nothing(name: str) -> None:
    model = create_model(name, num_classes=5, **shallow(name)).eval()
    images = torch.randn(2, 3, 65, 43)
    plain = model(images)
    last = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gsa_resnet50", "halonet_h4", "halonet_h4_base128_patch", "resnet50_se", "gsa_tiny"])
def test_features_only_returns_the_maps_it_announces(name: str) -> None:
    pyramid = create_model(name, features_only=True, **shallow(name)).eval()
    maps = pyramid(torch.randn(2, 3, 96, 64))
    assert [feature.shape[1] for feature in maps] == pyramid.feature_info.channels()
    for feature, reduction in zip(maps, pyramid.feature_info.reduction(), strict=True):
        assert feature.shape[2:] == (96 // reduction, 64 // reduction)


def test_out_indices_choose_maps_and_leave_out_what_comes_after() -> None:
    pyramid = create_model("halonet_h0", features_only=True, out_indices=(1, 2))
    assert pyramid.feature_info.reduction() == [4, 8]
    whole = create_model("halonet_h0")
    assert sum(p.numel() for p in pyramid.parameters()) < sum(p.numel() for p in whole.parameters()) / 4
    assert [feature.shape[1] for feature in pyramid(torch.randn(1, 3, 64, 96))] == [32, 64]


def test_intermediates_and_the_last_map_agree_with_forward_features() -> None:
    model = create_model("halonet_h3", **shallow("halonet_h3")).eval()
    images = torch.randn(1, 3, 64, 96)
    last, maps = model.forward_intermediates(images, indices=[0, 4])
    torch.testing.assert_close(last, model.forward_features(images))
    assert [feature.shape[1] for feature in maps] == [64, 768]


def test_without_classes_the_pooled_features_come_out() -> None:
    model = create_model("gsa_tiny", num_classes=0)
    assert model(torch.randn(3, 3, 32, 40)).shape == (3, model.num_features)
    assert isinstance(model.get_classifier(), nn.Identity)


def test_a_classifier_can_be_replaced() -> None:
    model = create_model("resnet_tiny")
    model.reset_classifier(13)
    assert model.num_classes == 13
    assert model(torch.randn(2, 3, 32, 40)).shape == (2, 13)
    features = model.forward_head(model.forward_features(torch.randn(2, 3, 32, 40)), pre_logits=True)
    assert features.shape == (2, model.num_features)


def test_five_channels_and_one_are_taken_in() -> None:
    for channels in (1, 5):
        assert create_model("halonet_tiny", in_chans=channels)(torch.randn(2, channels, 32, 40)).shape == (2, 1000)


@pytest.mark.parametrize("name", TINY)
def test_checkpointed_activations_give_the_same_gradients(name: str) -> None:
    torch.manual_seed(5)
    model = create_model(name, num_classes=5)
    images = torch.randn(4, 3, 24, 40)
    model(images).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(images).square().sum().backward()
    for grad, parameter in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_drop_path_rises_linearly_and_acts_in_training_only() -> None:
    model = create_model("halonet_tiny", drop_path=0.5, num_classes=5)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.bottlenecks]
    assert rates == pytest.approx([0.0, 0.25, 0.5])
    for block in model.bottlenecks:
        nn.init.ones_(block.norm3.weight)
    images = torch.randn(8, 3, 24, 40)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_dropout_before_the_classifier_acts() -> None:
    model = create_model("resnet_tiny", drop_rate=0.5, num_classes=5)
    images = torch.randn(8, 3, 24, 40)
    assert not torch.equal(model(images), model(images))


def test_resizing_a_halonet_interpolates_its_tables_and_keeps_the_rest() -> None:
    model = create_model("halonet_h4_base128", **shallow("halonet_h4_base128"))
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.resize(block=12, halo=2)
    changed = {name for name, parameter in model.named_parameters() if parameter.shape != before[name]}
    assert changed == {name for name in before if "table" in name}
    assert {block.operator.block for block in model.bottlenecks} == {12}
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 1000)


def test_resizing_a_gsa_network_makes_the_tables_that_a_new_one_of_that_size_has() -> None:
    model, fresh = (create_model("gsa_resnet26", image_size=size) for size in (128, (160, 96)))
    model.resize(image_size=(160, 96))
    assert [p.shape for p in model.parameters()] == [p.shape for p in fresh.parameters()]


def test_an_image_smaller_than_the_network_allows_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"31x64 pixels is too small.*at least 32 pixels"):
        create_model("resnet26")(torch.randn(1, 3, 31, 64))


def test_attention_stands_in_the_stages_it_should() -> None:
    def attending(name: str, **choices: object) -> list[int]:
        model = create_model(name, **choices)
        kinds = (HaloAttention, GlobalSelfAttention)
        return [
            stage
            for stage, blocks in enumerate(model.stages, start=1)
            if all(isinstance(block.operator, kinds) for block in blocks)
        ]

    assert attending("halonet_h1") == [1, 2, 3, 4]
    assert attending("halonet_h4_base128_conv12", blocks=(1, 1, 1, 1)) == [3, 4]
    assert attending("halonet_h7_conv1", blocks=(1, 1, 1, 1)) == [2, 3, 4]
    assert attending("halo_resnet50_se", block=32) == [4]
    assert attending("gsa_resnet50_groups234") == [2, 3, 4]
    assert attending("resnet50") == []
    assert STRIDES == (1, 2, 2, 2)


def test_heads_of_the_h_family_are_4_8_8_8() -> None:
    model = create_model("halonet_h1")
    assert [stage[0].operator.heads for stage in model.stages] == [4, 8, 8, 8]
    assert [stage[0].operator.head_dim for stage in model.stages] == [16, 16, 32, 64]


def test_qk_ratio_widens_queries_and_keys_only() -> None:
    plain, wide = (create_model("halonet_tiny", qk_ratio=ratio).stages[1][0].operator for ratio in (1.0, 2.5))
    width = plain.q.out_channels
    assert (wide.q.out_channels, wide.kv.out_channels) == (2.5 * width, 3.5 * width)
    assert (plain.kv.out_channels, wide.dim_out, wide.heads) == (2 * width, plain.dim_out, plain.heads)
    assert wide(torch.randn(2, width, 6, 10)).shape == (2, width, 3, 5)


def test_timm_builds_every_model_under_a_prefix_and_its_own_names_are_untouched() -> None:
    assert set(timm.list_models("parhelion_*")) == {f"parhelion_{name}" for name in MODELS}
    ours = timm.create_model("parhelion_halonet_tiny", num_classes=9, img_size=48, drop_path_rate=0.1)
    assert ours(torch.randn(2, 3, 32, 40)).shape == (2, 9)
    assert type(timm.create_model("halonet_h1")).__module__.startswith("timm.")
    assert type(timm.create_model("resnet50")).__module__.startswith("timm.")


def test_timm_reads_transforms_and_features_off_the_models() -> None:
    model = timm.create_model("parhelion_gsa_tiny", features_only=True, out_indices=(0, 2))
    assert [feature.shape[1] for feature in model(torch.randn(1, 3, 32, 40))] == model.feature_info.channels()
    config = timm.data.resolve_model_data_config(create_model("halonet_h4"))
    assert config["input_size"] == (3, 384, 384)
    assert config["mean"] == (0.485, 0.456, 0.406)


def test_unknown_names_and_choices_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no model 'halonet_h9'; did you mean halonet_h"):
        parhelion.create_model("halonet_h9")
    with pytest.raises(UserError, match="halonet_h1 has no choice 'blok'; did you mean block"):
        parhelion.create_model("halonet_h1", blok=4)
    with pytest.raises(
        UserError, match=r"every stage needs one number of each.*blocks has 2, widths has 4, heads has 4"
    ):
        parhelion.create_model("halonet_h1", blocks=(1, 2))
    with pytest.raises(UserError, match="no pretrained weights of resnet26"):
        parhelion.create_model("resnet26", pretrained=True)


def test_weights_of_another_architecture_are_refused_and_the_right_ones_loaded(tmp_path: Path) -> None:
    saved = create_model("halonet_tiny", num_classes=5).eval()
    save_file({name: tensor.contiguous() for name, tensor in saved.state_dict().items()}, tmp_path / "w.safetensors")
    loaded = create_model("halonet_tiny", num_classes=5, checkpoint_path=tmp_path / "w.safetensors").eval()
    images = torch.randn(2, 3, 24, 40)
    assert torch.equal(saved(images), loaded(images))
    for name, arguments in (("gsa_tiny", {"num_classes": 5}), ("halonet_tiny", {"num_classes": 6})):
        with pytest.raises(UserError, match="of another architecture"):
            create_model(name, checkpoint_path=tmp_path / "w.safetensors", **arguments)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        create_model("halonet_tiny", num_classes=5, checkpoint_path=tmp_path / "cut.safetensors")


def test_info_tells_counts_source_and_choices() -> None:
    info = parhelion.model_info("halonet_h4")
    assert (info.params, info.image_px, info.published_params) == (19_082_632, 384, 19.1e6)
    assert info.choices["block"] == 12
    assert "2103.12731" in info.source
    assert parhelion.list_models("halonet_h?") == [f"halonet_h{number}" for number in range(8)]
