"""Backbones under a feature pyramid: their maps, what can be frozen or computed again, and what is refused."""

from typing import Any

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.ops import FrozenBatchNorm2d

from parhelion.detection.pyramid import Pyramid, at_least_float32, freeze_norms, named_backbone
from parhelion.errors import UserError
from parhelion.models import create, create_model
from parhelion.models.resnet import ResNet
from parhelion.runs.setup import frozen_parts

B, CHANNELS, H, W = 2, 5, 64, 96
CONV7 = {"stem": "conv7"}
OURS = ["resnet_tiny", "halonet_tiny", "gsa_tiny"]
# FeatureListNet of residual stages, channels-last maps, FeatureHookNet, FeatureGetterNet of a timm model.
TIMMS = ["timm:test_resnet", "timm:mambaout_femto", "timm:test_efficientnet", "timm:test_vit"]


def backbone(name: str, *, in_chans: int = 3, image_px: int = 64, drop_path: float = 0.0, **choices: Any) -> nn.Module:
    choices = choices or ({} if name.startswith("timm:") else CONV7)
    return named_backbone(name, in_chans=in_chans, image_px=image_px, drop_path=drop_path, choices=choices)


def pyramid(name: str, **arguments: Any) -> Pyramid:
    return Pyramid(backbone(name, **arguments), channels=CHANNELS)


def refused(name: str, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        pyramid(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


REDUCTIONS = {
    **dict.fromkeys(OURS, (4, 8, 16)),
    "timm:test_resnet": (4, 8, 16, 32),
    "timm:mambaout_femto": (4, 8, 16, 32),
    "timm:test_efficientnet": (4, 8, 16, 32),
    "timm:test_vit": (16,),
}


@pytest.mark.parametrize("name", OURS + TIMMS)
def test_each_map_is_half_as_fine_as_the_one_before(name: str) -> None:
    made = pyramid(name)
    assert made.reductions == REDUCTIONS[name]
    maps = made(torch.rand(B, 3, H, W))
    assert list(maps) == [*map(str, range(len(made.reductions))), "pool"]
    for features, reduction in zip(maps.values(), [*made.reductions, 2 * made.reductions[-1]], strict=True):
        assert features.shape == (B, CHANNELS, -(-H // reduction), -(-W // reduction))


def test_of_maps_of_one_size_the_last_is_taken() -> None:
    made = backbone("timm:test_vit").eval()
    images = torch.rand(B, 3, H, W)
    last = made.model.forward_intermediates(images, intermediates_only=True, norm=False)[-1]
    assert torch.equal(made(images)[0], last)


def test_maps_finer_than_a_quarter_of_the_image_are_left_out() -> None:
    assert create_model("resnet_tiny", features_only=True).feature_info.reduction() == [2, 4, 8]
    made = backbone("resnet_tiny", stem="conv3")
    assert made.feature_info.reduction() == [4, 8]
    assert made.feature_info.channels() == [128, 256]


@pytest.mark.parametrize("name", ["halonet_tiny", "timm:test_resnet"])
def test_images_may_have_other_channels(name: str) -> None:
    assert pyramid(name, in_chans=2)(torch.rand(B, 2, H, W))["0"].shape == (B, CHANNELS, H // 4, W // 4)


def test_stochastic_depth_reaches_the_backbone() -> None:
    ours = backbone("halonet_tiny", drop_path=0.25)
    assert ours.model.bottlenecks[-1].drop_path.drop_prob == 0.25
    theirs = backbone("timm:resnet18", drop_path=0.25)
    assert theirs["layer4"][-1].drop_path.drop_prob == 0.25


def test_global_attention_makes_its_tables_for_the_image_size() -> None:
    small, large = (backbone("gsa_tiny", image_px=px).model for px in (64, 96))
    large.resize(image_size=(64, 64))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (small, large)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_float32_and_the_rest_stays(dtype: torch.dtype) -> None:
    tensor = torch.rand(3, 5).to(dtype)
    assert at_least_float32(tensor).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(at_least_float32(tensor).double(), tensor.double())


@pytest.mark.parametrize("name", OURS)
def test_freezing_all_parts_leaves_the_pyramid_alone(name: str) -> None:
    made = pyramid(name)
    frozen_parts(made, len(made.parts))
    learning = [parameter_name for parameter_name, parameter in made.named_parameters() if parameter.requires_grad]
    assert learning
    assert all(parameter_name.startswith("fpn.") for parameter_name in learning)


@pytest.mark.parametrize("name", ["resnet_tiny", "timm:test_resnet"])
def test_the_first_parts_are_stem_and_first_stage(name: str) -> None:
    made = pyramid(name)
    assert len(made.parts) == 1 + len(made.reductions)
    frozen_parts(made, 2)
    stage = "body.layer1." if name.startswith("timm:") else "body.model.stages.0."
    stem = ("body.conv1.", "body.bn1.") if name.startswith("timm:") else ("body.model.stem.",)
    for parameter_name, parameter in made.named_parameters():
        assert parameter.requires_grad == (not parameter_name.startswith((stage, *stem))), parameter_name


@pytest.mark.parametrize("name", ["timm:test_efficientnet", "timm:test_vit"])
def test_a_backbone_whose_layers_have_no_known_order_has_no_parts(name: str) -> None:
    made = pyramid(name)
    assert made.parts == []
    assert frozen_parts(made, 0) == []
    with pytest.raises(UserError, match="freeze is 1"):
        frozen_parts(made, 1)


@pytest.mark.parametrize("name", OURS + TIMMS)
def test_bottlenecks_are_separate_and_hold_weights(name: str) -> None:
    bottlenecks = pyramid(name).bottlenecks
    held = [id(parameter) for block in bottlenecks for parameter in block.parameters()]
    assert held
    assert len(held) == len(set(held))
    if name in OURS:
        assert len(bottlenecks) == 3


def has_moving_norm(module: nn.Module) -> bool:
    return any(isinstance(child, _NormBase) for child in module.modules())


@pytest.mark.parametrize("name", [*OURS, "timm:test_resnet", "timm:test_efficientnet"])
def test_frozen_norms_compute_what_they_did_in_evaluation_and_never_learn(name: str) -> None:
    body = backbone(name).double().eval()
    for tensor in body.state_dict().values():
        if tensor.ndim == 1:
            tensor += 0.5 * torch.rand_like(tensor)
    images = torch.rand(B, 3, H, W, dtype=torch.float64)
    with torch.no_grad():
        before = body(images)
        assert has_moving_norm(body)
        freeze_norms(body)
        assert not has_moving_norm(body)
        for features, same in zip(body.train()(images), before, strict=True):
            torch.testing.assert_close(features, same)
    norms = [module for module in body.modules() if isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d))]
    assert norms
    assert not any(True for norm in norms for _ in norm.parameters())


def gradients(made: Pyramid, images: Tensor, *, recompute: bool) -> dict[str, Tensor]:
    made.zero_grad()
    made.set_grad_checkpointing(recompute)
    sum(features.square().mean() for features in made(images).values()).backward()
    return {name: parameter.grad.clone() for name, parameter in made.named_parameters()}


@pytest.mark.parametrize("name", [*OURS, "timm:test_resnet"])
def test_computing_blocks_again_gives_the_same_gradients(name: str) -> None:
    made, images = pyramid(name), torch.rand(B, 3, H, W)
    plain, again = (gradients(made, images, recompute=recompute) for recompute in (False, True))
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-4, atol=1e-6)


def test_computing_blocks_again_can_be_turned_off() -> None:
    made = pyramid("resnet_tiny")
    made.set_grad_checkpointing()
    assert made.body.model.grad_checkpointing
    made.set_grad_checkpointing(False)
    assert not made.body.model.grad_checkpointing


class Plain(nn.Module):
    """A backbone of somebody's own."""

    def __init__(self, *reductions: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 7, 1, stride=reduction) for reduction in reductions)
        self.feature_info = self
        self.reductions = reductions

    def reduction(self) -> list[int]:
        return list(self.reductions)

    def channels(self) -> list[int]:
        return [7] * len(self.reductions)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [convolution(images) for convolution in self.convolutions]


def test_a_module_of_somebodys_own_serves_as_backbone() -> None:
    made = Pyramid(Plain(8, 16), channels=CHANNELS)
    assert [tuple(features.shape[-2:]) for features in made(torch.rand(B, 3, H, W)).values()] == [
        (8, 12),
        (4, 6),
        (2, 3),
    ]
    assert made.parts == []
    made.set_grad_checkpointing(False)
    with pytest.raises(UserError, match="recompute is set, but Plain cannot compute its blocks again"):
        made.set_grad_checkpointing()


@pytest.mark.parametrize(("reductions", "written"), [((4, 16), "1/4, 1/16"), ((8, 8), "1/8, 1/8"), ((), r"1/\?")])
def test_maps_that_do_not_halve_are_refused(reductions: tuple[int, ...], written: str) -> None:
    with pytest.raises(UserError, match=f"the backbone's maps are {written} of the image, but those of a pyramid"):
        Pyramid(Plain(*reductions))


@pytest.mark.parametrize(
    ("name", "choices", "sentence"),
    [
        ("halonet_tinny", {}, "there is no model 'halonet_tinny'; did you mean halonet_tiny"),
        ("zzz", {}, "there is no model 'zzz'; `parhelion models` lists them all"),
        ("timm:resnet19", {}, "timm has no model 'resnet19'; did you mean resnet1"),
        ("timm:zzzzzzzz", {}, "timm has no model 'zzzzzzzz'; timm.list_models() lists them all"),
        ("timm:", {}, "timm has no model ''; timm.list_models() lists them all"),
        ("halonet_tiny", {"blok": 4}, "halonet_tiny has no choice 'blok'; did you mean block"),
        ("timm:test_resnet", {"blok": 4}, "timm:test_resnet cannot serve as a backbone: "),
        ("timm:coat_lite_tiny", {}, "timm:coat_lite_tiny does not take images of all sizes, such as 160 x 224 pixels"),
        ("timm:botnet26t_256", {}, "does not take images of all sizes, such as 160 x 224 pixels: AssertionError"),
        (
            "gsa_tiny",
            {"blocks": (1,), "widths": (32,), "groups": (1,)},
            "gsa_tiny has maps of 1/2 of the image, but a pyramid needs one of 1/4 to 1/32",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(name: str, choices: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(name, **choices)


def test_a_model_of_ours_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Counted(ResNet):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            built.append(self)
            super().__init__(*arguments, **named)

    monkeypatch.setattr(create, "ResNet", Counted)
    assert pyramid("halonet_tiny", stem="conv7").reductions == (4, 8, 16)
    assert len(built) == 1


def test_a_model_of_timm_without_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, **_arguments: Any) -> nn.Module:
        raise RuntimeError(f"features_only not implemented for {name}.\nSorry.")

    monkeypatch.setattr(timm, "create_model", without)
    expected = "timm:test_vit cannot serve as a backbone: features_only not implemented for test_vit. Sorry."
    assert refused("timm:test_vit") == expected


def test_stochastic_depth_that_a_model_of_timm_lacks_is_refused() -> None:
    assert "timm:vgg11 cannot serve as a backbone: " in refused("timm:vgg11", drop_path=0.25)


def test_a_choice_can_lift_what_is_refused() -> None:
    assert "Input height (160) doesn't match model (224)" in refused("timm:deit_tiny_patch16_224")
    assert pyramid("timm:deit_tiny_patch16_224", dynamic_img_size=True).reductions == (16,)
