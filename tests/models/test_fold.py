"""Folding a network for inference: the same logits with fewer operations, and the original left alone."""

import pytest
import timm
import torch
from error_budget import assert_as_exact_as
from simulated_rounding import fused, simulated
from torch import nn
from torch.testing import assert_close

import parhelion
from parhelion.errors import UserError

FOLDED_NORMS = {"halonet_tiny": 3, "gsa_tiny": 6, "resnet_tiny": 0, "halonet_h0": 16}  # left: those after attention


def trained(name: str, **choices: object) -> nn.Module:
    """A small network whose normalisations have something to say."""
    model = parhelion.create_model(name, num_classes=7, **choices).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("name", FOLDED_NORMS)
def test_folding_changes_no_logits(name: str):
    model, images = trained(name).double(), torch.randn(2, 3, 64, 96).double()
    with torch.no_grad():
        assert_close(parhelion.fold(model)(images), model(images))


def test_folding_is_as_exact_as_the_network_in_float32():
    model, images = trained("halonet_tiny"), torch.randn(2, 3, 37, 50)
    folded = parhelion.fold(model)
    with torch.no_grad():
        actual = folded(images)
        model, images = model.double(), images.double()
        (likely,) = simulated(lambda: [model(images)], fused(torch.float32), torch.float32)
        assert_as_exact_as(actual, likely, model(images))


@pytest.mark.parametrize("name", FOLDED_NORMS)
def test_only_normalisations_after_attention_stay(name: str):
    folded = parhelion.fold(parhelion.create_model(name))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == FOLDED_NORMS[name]


def test_the_scale_goes_into_the_queries():
    model = trained("halonet_tiny", scale=None).double()
    folded, images = parhelion.fold(model), torch.randn(2, 3, 32, 44).double()
    layers = [module for module in folded.modules() if isinstance(module, parhelion.layers.HaloAttention)]
    assert [layer.scale for layer in layers] == [1.0] * len(layers) != []
    with torch.no_grad():
        assert_close(folded(images), model(images))


def test_the_original_stays_as_it_was():
    model = parhelion.create_model("halonet_tiny", scale=None).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = parhelion.fold(model)
    assert model.training
    assert not folded.training
    assert model.state_dict().keys() == before.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_feature_pyramid_can_be_folded():
    model = parhelion.create_model("gsa_tiny", features_only=True).eval()
    images = torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        for actual, expected in zip(parhelion.fold(model)(images), model(images), strict=True):
            assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [nn.Linear(3, 5), parhelion.fold(parhelion.create_model("resnet_tiny"))])
def test_a_network_with_nothing_to_fold_is_refused(model: nn.Module):
    with pytest.raises(UserError, match=r"^there is nothing to fold in this (Linear|ResNet): fold takes"):
        parhelion.fold(model)


def test_a_residual_network_of_timm_is_not_half_folded():
    with pytest.raises(UserError, match="nothing to fold"):
        parhelion.fold(timm.create_model("resnet10t"))
