"""Which implementation the attention of a model runs on: `impl`, `reference` and `decelerate`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers.halo_attn import HaloAttn
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import parhelion
from parhelion import native
from parhelion.errors import UserError
from parhelion.models.accelerate import accelerate, decelerate
from parhelion.models.accelerate.halo import AcceleratedHaloAttn
from parhelion.models.catalog import create_model
from parhelion.models.count import multiply_adds
from parhelion.models.fold import fold
from parhelion.models.reference import reference

kernels = pytest.mark.skipif(native.why_not_native() is not None, reason=str(native.why_not_native()))


class Called(TorchDispatchMode):
    """Notes the operators of ours that run in it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "parhelion":
            self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def kernels_of(model: nn.Module, size: tuple[int, int] = (40, 48)) -> set[str]:
    """The kernels that a forward pass of `model` calls."""
    with torch.no_grad(), Called() as called:
        model(torch.randn(2, 3, *size))
    return called.names


def timm_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 10, 1), HaloAttn(10, dim_out=21, num_heads=3, dim_head=5, block_size=4, halo_size=1)
    )


def gsa_network() -> nn.Module:
    gsa_pytorch = pytest.importorskip("gsa_pytorch", reason="needs gsa_pytorch, whose module is accelerated")
    return nn.Sequential(nn.Conv2d(3, 10, 1), gsa_pytorch.GSA(10, heads=3, dim_key=5, rel_pos_length=13))


@kernels
@pytest.mark.parametrize("name", ["gsa_tiny", "halonet_tiny"])
def test_a_model_runs_on_the_implementation_that_it_is_built_with(name: str) -> None:
    assert kernels_of(create_model(name, impl="reference")) == set()
    assert kernels_of(create_model(name, impl="cpu")) == kernels_of(create_model(name)) != set()
    pyramid = timm.create_model(f"parhelion_{name}", impl="reference", features_only=True)
    assert kernels_of(pyramid) == set()


def test_a_named_implementation_of_a_model_runs_or_says_why_not() -> None:
    model = create_model("halonet_tiny", impl="triton")
    with pytest.raises(ValueError, match="impl='triton' cannot run: q is on cpu"):
        model(torch.randn(1, 3, 40, 48))


@pytest.mark.usefixtures("shapes_unchecked")
def test_an_unknown_implementation_is_refused_when_a_model_is_built() -> None:
    with pytest.raises(UserError, match="impl must be one of 'auto', 'reference', 'cpu', 'triton', not 'fast'"):
        create_model("resnet_tiny", impl="fast")


def test_the_implementation_is_no_choice_of_the_architecture() -> None:
    assert "impl" not in parhelion.model_info("halonet_tiny").choices
    with pytest.raises(UserError, match="halonet_tiny has no choice 'impl'"):
        parhelion.detection.mask_rcnn("halonet_tiny", num_classes=3, choices={"impl": "cpu"})


def test_costs_are_counted_whatever_the_model_runs_on() -> None:
    counts = {multiply_adds(create_model("gsa_tiny", impl=impl), (24, 40)) for impl in ("auto", "cpu", "triton")}
    assert len(counts) == 1


@kernels
@pytest.mark.parametrize("name", ["gsa_tiny", "halonet_tiny"])
def test_the_reference_of_a_model_is_a_copy_without_kernels(name: str) -> None:
    model = create_model(name, num_classes=7).eval()
    plain = reference(model)
    images = torch.randn(2, 3, 40, 48)
    assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)
    assert kernels_of(plain) == kernels_of(reference(fold(model))) == set()
    assert kernels_of(model) != set()
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert next(plain.parameters()) is not next(model.parameters())


@kernels
@pytest.mark.parametrize("build", [timm_network, gsa_network])
def test_the_reference_of_an_accelerated_model_takes_the_sizes_that_it_takes(build: Any) -> None:
    model = accelerate(build(), report=None).eval()
    images = torch.randn(2, 3, 7, 9)
    plain = reference(model)
    assert kernels_of(model, (7, 9)) != set()
    assert kernels_of(plain, (7, 9)) == set()
    assert_close(plain(images), model(images))


def test_the_reference_has_second_derivatives() -> None:
    model = reference(create_model("halonet_tiny", num_classes=3).double()).eval()
    images = torch.randn(1, 3, 9, 10, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), images)
    assert torch.isfinite(second).all()
    assert second.any()


@pytest.mark.parametrize("build", [timm_network, gsa_network])
def test_decelerate_gives_the_layers_their_own_code_back(build: Any) -> None:
    model = build().eval()
    before, weights = copy.deepcopy(model), dict(model.named_parameters())
    changed = reference(accelerate(model, report=None))
    for accelerated in (model, changed):
        assert decelerate(accelerated) is accelerated
        assert [type(module) for module in accelerated.modules()] == [type(module) for module in before.modules()]
        assert [vars(module).keys() for module in accelerated] == [vars(module).keys() for module in before]
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(model(images), before(images))
    assert all(weights[name] is parameter for name, parameter in model.named_parameters())
    accelerate(model, report=None)
    assert type(model[1]) is not type(before[1])


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize("change", [reference, decelerate])
def test_what_is_no_model_is_refused_in_a_sentence(change: Any) -> None:
    with pytest.raises(UserError, match=rf"^{change.__name__} takes a torch\.nn\.Module, not 'halonet26t' of type str"):
        change("halonet26t")


def test_a_model_saved_by_another_implementation_loads(tmp_path: Path) -> None:
    model = accelerate(timm_network(), report=None)
    torch.save(reference(model).state_dict(), tmp_path / "weights.pt")
    plain = timm_network()
    plain.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert isinstance(model[1], AcceleratedHaloAttn)
    assert torch.equal(plain[1].q.weight, model[1].q.weight)
