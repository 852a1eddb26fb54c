"""R-CNNs in training: what is frozen, what moves, and blocks that are computed again."""

import pytest
import torch
from small_rcnns import SIZES, images_of, small, targets_of
from torch.nn.modules.batchnorm import _NormBase

from parhelion.errors import UserError
from parhelion.runs.setup import frozen_parts
from parhelion.train.loop import Step


def test_frozen_norms_stay_while_everything_else_learns() -> None:
    model = small("halonet_tiny", norm="frozen")
    assert not any(isinstance(module, _NormBase) for module in model.modules())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = {
        f"{path}.{name}"
        for path, m in model.named_modules()
        if "Frozen" in type(m).__name__
        for name in dict(m.named_buffers())
    }
    assert norms
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model(images_of(SIZES), targets_of(SIZES)).values()).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not changed & norms
    assert changed == {name for name, _ in model.named_parameters()}


def test_norms_of_the_batch_move() -> None:
    model = small("halonet_tiny")
    model(images_of(SIZES), targets_of(SIZES))
    counts = {int(tensor) for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


@pytest.mark.parametrize("name", ["gsa_tiny", "timm:resnet18"])
def test_frozen_parts_neither_learn_nor_move(name: str) -> None:
    model = small(name)
    frozen = frozen_parts(model, 2)
    before = [{key: tensor.clone() for key, tensor in part.state_dict().items()} for part in frozen]
    step = Step(model, lambda model, batch: model(*batch), frozen=frozen)
    step.train()
    sum(model(images_of(SIZES), targets_of(SIZES)).values()).backward()
    frozen_parameters = {id(parameter) for part in frozen for parameter in part.parameters()}
    assert frozen_parameters
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen_parameters), key
    for part, state in zip(frozen, before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())
    with pytest.raises(UserError, match=f"freeze is 9, but the model has {len(model.parts)} parts"):
        frozen_parts(model, 9)


@pytest.mark.parametrize("name", ["halonet_tiny", "timm:resnet18"])
def test_computing_blocks_again_gives_the_same_losses_and_gradients(name: str) -> None:
    model, images = small(name, norm="frozen"), images_of(SIZES)
    kept = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        torch.manual_seed(13)
        losses = model(images, targets_of(SIZES))
        sum(losses.values()).backward()
        gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
        kept.append({**{key: loss.detach() for key, loss in losses.items()}, **gradients})
    for key, tensor in kept[0].items():
        torch.testing.assert_close(kept[1][key], tensor, rtol=1e-4, atol=1e-6, msg=key)


def test_bottlenecks_are_those_of_the_backbone() -> None:
    model = small("halonet_tiny")
    assert model.bottlenecks == model.backbone.body.model.bottlenecks
