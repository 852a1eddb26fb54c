import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from parhelion.errors import UserError
from parhelion.train.loop import STEPS_PER_CHECK, train
from parhelion.train.optimization import Optimization, build_optimizer, cosine_schedule
from parhelion.train.progress import Progress

STEPS, B, FEATURES, CLASSES = 5, 3, 7, 2


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(11)
    for _ in range(steps):
        images = torch.randn(B, FEATURES, generator=generator)
        yield {"image": images, "target": (images.sum(1) > 0).long(), "bad": []}


class Loader(list):
    """A loader as far as the loop and Accelerate can tell."""


def cross_entropy(model, batch):
    return {"cross_entropy": nn.functional.cross_entropy(model(batch["image"]), batch["target"])}


def run(loader, *, model=None, losses=cross_entropy, epochs=2, lr=0.5, clip_norm=0.0, precision="no"):
    """Train; returns the epochs that ended well."""
    torch.manual_seed(5)
    model = model or nn.Linear(FEATURES, CLASSES)
    optimizer = build_optimizer(model, "sgd", lr=lr, momentum=0.9, weight_decay=0.0)
    schedule = cosine_schedule(optimizer, lr=lr, updates=epochs * len(loader), warmup_updates=0, lr_end_ratio=0)
    ended = []
    AcceleratorState._reset_state()
    train(
        Accelerator(mixed_precision=precision),
        model,
        losses,
        loader,
        Optimization(optimizer=optimizer, schedule=schedule, clip_norm=clip_norm),
        epochs=epochs,
        end_epoch=ended.append,
        progress=Progress(1, quiet=True),
    )
    return ended


def test_the_loss_falls_and_every_epoch_is_reported():
    ended = run(Loader(batches()), epochs=3)
    assert [epoch.epoch for epoch in ended] == [1, 2, 3]
    assert ended[-1].train_loss < ended[0].train_loss
    assert all(0 <= epoch.data_wait_seconds <= epoch.seconds for epoch in ended)


def test_the_reported_loss_is_the_mean_over_images_not_over_batches():
    big, small = list(batches(2))
    small = {name: value[:1] for name, value in small.items()}
    model = nn.Linear(FEATURES, CLASSES)
    expected = sum(cross_entropy(model, batch)["cross_entropy"].item() * len(batch["image"]) for batch in (big, small))
    (epoch,) = run(Loader([big, small]), model=model, lr=1e-12, epochs=1)
    assert epoch.train_loss == pytest.approx(expected / (B + 1), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_epoch(value):
    seen = []

    def spoiled(model, batch):
        seen.append(batch)
        loss = cross_entropy(model, batch)["cross_entropy"]
        return {"cross_entropy": loss * value if len(seen) == STEPS + 3 else loss}

    with pytest.raises(UserError, match=f"became {value} at step 3 of epoch 2"):
        run(Loader(batches()), losses=spoiled)


def test_a_loss_that_is_not_finite_stops_within_a_few_steps():
    seen = []

    def spoiled(model, batch):
        seen.append(batch)
        return {"cross_entropy": cross_entropy(model, batch)["cross_entropy"] * math.nan}

    with pytest.raises(UserError, match="at step 1 of epoch 1"):
        run(Loader(batches(5 * STEPS_PER_CHECK)), losses=spoiled)
    assert len(seen) == STEPS_PER_CHECK


def test_weights_spoiled_by_the_last_step_do_not_end_the_epoch_well():
    class Spoiling(torch.autograd.Function):
        @staticmethod
        def forward(context, loss):
            return loss.clone()

        @staticmethod
        def backward(context, grad):
            return grad * math.nan

    ended = []

    def spoiled(model, batch):
        loss = cross_entropy(model, batch)["cross_entropy"]
        ended.append(loss)
        return {"cross_entropy": Spoiling.apply(loss) if len(ended) == STEPS else loss}

    with pytest.raises(UserError, match="weight is no longer finite after the last step of epoch 1"):
        run(Loader(batches()), losses=spoiled)


def test_empty_batches_are_passed_over_and_their_images_counted():
    empty = {"image": torch.empty(0, 0), "target": torch.empty(0), "bad": ["a.jpg is cut short", "b.jpg is empty"]}
    first, *rest = batches()
    (epoch,) = run(Loader([first, empty, *rest]), epochs=1)
    assert epoch.skipped == ("a.jpg is cut short", "b.jpg is empty")


def test_an_epoch_without_images_is_one_sentence():
    empty = {"image": torch.empty(0, 0), "target": torch.empty(0), "bad": ["a.jpg is empty"]}
    with pytest.raises(UserError, match="epoch 1 had no batch"):
        run(Loader([empty]))


def test_mixed_precision_reaches_every_epoch_but_never_the_bare_model():
    dtypes = []

    def watched(model, batch):
        logits = model(batch["image"])
        dtypes.append(logits.dtype)
        return {"cross_entropy": nn.functional.cross_entropy(logits, batch["target"])}

    model = nn.Linear(FEATURES, CLASSES)
    run(Loader(batches()), model=model, losses=watched, precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert model(torch.randn(B, FEATURES)).dtype == torch.float32


def test_clipping_bounds_the_step():
    steps = {}
    for clip_norm in (0.0, 1e-3):
        model = nn.Linear(FEATURES, CLASSES)
        before = model.weight.detach().clone()
        run(Loader(batches(1)), model=model, epochs=1, lr=1.0, clip_norm=clip_norm)
        steps[clip_norm] = (model.weight - before).norm().item()
    assert steps[1e-3] < 2.5e-3 < steps[0.0]
