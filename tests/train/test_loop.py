import math
import os
import signal
import time

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.train import stopping
from parhelion.train.loop import UPDATES_PER_READ, Plan, State, Step, Training, train
from parhelion.train.optimization import Optimization, build_optimizer, cosine_schedule
from parhelion.train.stopping import Stopped, StopRequest

STEPS, B, FEATURES, CLASSES = 5, 3, 7, 2


def batches(steps=STEPS):
    generator = torch.Generator().manual_seed(11)
    for _ in range(steps):
        images = torch.randn(B, FEATURES, generator=generator)
        yield {"image": images, "target": (images.sum(1) > 0).long(), "bad": []}


def cross_entropy(model, batch):
    return {"cross_entropy": nn.functional.cross_entropy(model(batch["image"]), batch["target"])}


class Notes:
    """A keeper that remembers everything."""

    def __init__(self):
        self.ended, self.losses, self.states, self.order = [], [], [], []

    def add_losses(self, rows):
        self.losses += rows

    def checkpoint(self, state):
        self.states.append(State(**state.as_dict()))
        self.order.append(("checkpoint", state.update))

    def end_epoch(self, epoch):
        self.ended.append(epoch)
        self.order.append(("end", epoch.epoch))


def run(  # noqa: PLR0913  a run has many sides
    loader,
    *,
    model=None,
    losses=cross_entropy,
    epochs=2,
    lr=0.5,
    clip_norm=0.0,
    precision="no",
    notes=None,
    state=None,
    stop=None,
    frozen=(),
    momentum=0.9,
    **plan,
):
    """Train; returns the epochs that ended well."""
    torch.manual_seed(5)
    model = model or nn.Linear(FEATURES, CLASSES)
    optimizer = build_optimizer(model, "sgd" if momentum else "momentum", lr=lr, momentum=momentum, weight_decay=0.0)
    plan = {"updates_per_epoch": len(loader), "updates": epochs * len(loader), **plan}
    schedule = cosine_schedule(optimizer, lr=lr, updates=plan["updates"], warmup_updates=0, lr_end_ratio=0)
    notes = notes or Notes()
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=precision)
    train(
        Training(
            accelerator=accelerator,
            step=accelerator.prepare_model(Step(model, losses, frozen=frozen)),
            optimization=Optimization(optimizer=optimizer, schedule=schedule, clip_norm=clip_norm),
            batches=lambda epoch, done: loader[done:],
            plan=Plan(**plan),
            state=state or State(),
            keeper=notes,
            progress=Progress(1, quiet=True),
            stop=stop or StopRequest(),
        )
    )
    return notes.ended


def test_the_loss_falls_and_every_epoch_is_reported():
    ended = run(list(batches()), epochs=3)
    assert [epoch.epoch for epoch in ended] == [1, 2, 3]
    assert ended[-1].train_loss < ended[0].train_loss
    assert all(0 <= epoch.data_wait_seconds <= epoch.seconds for epoch in ended)


def test_the_reported_loss_is_the_mean_over_images_not_over_batches():
    big, small = list(batches(2))
    small = {name: value[:1] for name, value in small.items()}
    model = nn.Linear(FEATURES, CLASSES)
    expected = sum(cross_entropy(model, batch)["cross_entropy"].item() * len(batch["image"]) for batch in (big, small))
    (epoch,) = run(([big, small]), model=model, lr=1e-12, epochs=1)
    assert epoch.train_loss == pytest.approx(expected / (B + 1), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_update_and_epoch(value):
    seen = []

    def spoiled(model, batch):
        seen.append(batch)
        loss = cross_entropy(model, batch)["cross_entropy"]
        return {"cross_entropy": loss * value if len(seen) == STEPS + 3 else loss}

    with pytest.raises(UserError, match=f"became {value} at update 3 of epoch 2"):
        run(list(batches()), losses=spoiled)


def test_a_loss_that_is_not_finite_stops_within_a_few_steps():
    seen = []

    def spoiled(model, batch):
        seen.append(batch)
        return {"cross_entropy": cross_entropy(model, batch)["cross_entropy"] * math.nan}

    with pytest.raises(UserError, match="at update 1 of epoch 1"):
        run(list(batches(5 * UPDATES_PER_READ)), losses=spoiled)
    assert len(seen) == UPDATES_PER_READ


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

    with pytest.raises(UserError, match="weight is no longer finite after an update of epoch 1"):
        run(list(batches()), losses=spoiled)


def test_empty_batches_are_passed_over_and_their_images_counted():
    empty = {"image": torch.empty(0, 0), "target": torch.empty(0), "bad": ["a.jpg is cut short", "b.jpg is empty"]}
    first, *rest = batches()
    (epoch,) = run(([first, empty, *rest]), epochs=1)
    assert epoch.skipped == ("a.jpg is cut short", "b.jpg is empty")


def test_an_epoch_without_images_is_one_sentence():
    empty = {"image": torch.empty(0, 0), "target": torch.empty(0), "bad": ["a.jpg is empty"]}
    with pytest.raises(UserError, match=r"no image to train on: all 1 were left out; the first: a\.jpg is empty"):
        run([empty])


def test_mixed_precision_reaches_every_epoch_but_never_the_bare_model():
    dtypes = []

    def watched(model, batch):
        logits = model(batch["image"])
        dtypes.append(logits.dtype)
        return {"cross_entropy": nn.functional.cross_entropy(logits, batch["target"])}

    model = nn.Linear(FEATURES, CLASSES)
    run(list(batches()), model=model, losses=watched, precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert model(torch.randn(B, FEATURES)).dtype == torch.float32


def test_clipping_bounds_the_step():
    steps = {}
    for clip_norm in (0.0, 1e-3):
        model = nn.Linear(FEATURES, CLASSES)
        before = model.weight.detach().clone()
        run(list(batches(1)), model=model, epochs=1, lr=1.0, clip_norm=clip_norm)
        steps[clip_norm] = (model.weight - before).norm().item()
    assert steps[1e-3] < 2.5e-3 < steps[0.0]


def test_every_update_is_noted_once_with_its_loss_and_rate():
    notes = Notes()
    run(list(batches(UPDATES_PER_READ + 2)), epochs=2, notes=notes)
    assert [row["update"] for row in notes.losses] == list(range(1, 2 * UPDATES_PER_READ + 5))
    assert [row["epoch"] for row in notes.losses] == [1] * (UPDATES_PER_READ + 2) + [2] * (UPDATES_PER_READ + 2)
    assert notes.losses[0]["lr"] == pytest.approx(0.5)
    for epoch in notes.ended:
        losses = [row["loss"] for row in notes.losses if row["epoch"] == epoch.epoch]
        assert epoch.train_loss == pytest.approx(sum(losses) / len(losses))


def test_a_checkpoint_comes_before_the_end_of_an_epoch_and_where_the_plan_wants_one():
    notes = Notes()
    run(list(batches()), notes=notes, checkpoint_updates=2)
    between = [("checkpoint", 2), ("checkpoint", 4), ("checkpoint", 5), ("end", 1)]
    assert notes.order == [*between, ("checkpoint", 6), ("checkpoint", 8), ("checkpoint", 10), ("end", 2)]


def test_training_may_end_in_the_middle_of_an_epoch():
    notes = Notes()
    run(list(batches()), notes=notes, updates=7)
    assert notes.order == [("checkpoint", 5), ("end", 1), ("checkpoint", 7), ("end", 2)]


@pytest.mark.parametrize("update", [2, 5, 8])
def test_a_run_goes_on_from_any_state_as_if_nothing_had_happened(update):
    def dropping(model, batch):
        return cross_entropy(model, {**batch, "image": nn.functional.dropout(batch["image"], 0.5)})

    whole, rest, model, weights = Notes(), Notes(), nn.Linear(FEATURES, CLASSES), {}

    def remember(state):
        Notes.checkpoint(whole, state)
        weights[state.update] = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    whole.checkpoint = remember
    # Without momentum the weights are all that moves.
    options = {"model": model, "losses": dropping, "checkpoint_updates": 1, "momentum": 0.0}
    run(list(batches()), notes=whole, **options)
    model.load_state_dict(weights[update])
    state = next(state for state in whole.states if state.update == update)
    run(list(batches()), notes=rest, state=state, **options)
    assert rest.losses == whole.losses[update:]
    assert [epoch.epoch for epoch in rest.ended] == [epoch.epoch for epoch in whole.ended if 5 * epoch.epoch >= update]
    assert [epoch.train_loss for epoch in rest.ended] == [epoch.train_loss for epoch in whole.ended][-len(rest.ended) :]
    assert all(torch.equal(tensor, weights[10][name]) for name, tensor in model.state_dict().items())


def test_a_request_to_stop_is_obeyed_after_the_update_with_a_checkpoint():
    notes, stop, seen = Notes(), StopRequest(), []

    def asking(model, batch):
        seen.append(batch)
        if len(seen) == 3:
            stop._hear(signal.SIGTERM, None)
        return cross_entropy(model, batch)

    with pytest.raises(Stopped) as stopped:
        run(list(batches()), losses=asking, notes=notes, stop=stop)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert notes.order == [("checkpoint", 3)]
    assert (notes.states[0].update, notes.states[0].images) == (3, 3 * B)


class Stuck:
    """A loader that is asked to stop after three batches, and gives no other."""

    def __len__(self):
        return STEPS

    def __getitem__(self, _):
        yield from batches(3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


@pytest.mark.parametrize(("parts", "saved"), [(1, [("checkpoint", 3)]), (2, [])])
def test_a_request_is_obeyed_where_no_batch_comes_and_whole_updates_are_saved(monkeypatch, parts, saved):
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.05)
    notes = Notes()
    with StopRequest() as stop, pytest.raises(Stopped, match="stopped while waiting for images") as stopped:
        run(Stuck(), notes=notes, stop=stop, accumulate=parts, updates_per_epoch=STEPS // parts)
    assert stopped.value.code == 143
    # With two parts it is stuck within an update, of which half is done.
    assert notes.order == saved
    assert [(state.update, state.images) for state in notes.states] == [(3, 3 * B)] * len(saved)
    assert [row["update"] for row in notes.losses] == [1, 2, 3][: 3 * len(saved)]


def test_a_request_in_the_last_update_lets_the_run_end():
    notes, stop = Notes(), StopRequest()
    notes.end_epoch = lambda epoch: stop._hear(signal.SIGINT, None)
    run(list(batches()), notes=notes, stop=stop, epochs=1)
    assert notes.order == [("checkpoint", STEPS)]


def test_a_batch_in_parts_moves_the_weights_as_the_whole_does():
    whole, parts = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)
    parts.load_state_dict(whole.state_dict())
    given = list(batches(4))
    joined = [
        {name: torch.cat([one[name], two[name]]) for name in ("image", "target")} for one, two in (given[:2], given[2:])
    ]
    run(joined, model=whole, epochs=1)
    run(given, model=parts, epochs=1, accumulate=2, updates_per_epoch=2, updates=2)
    torch.testing.assert_close(parts.weight, whole.weight)


def test_data_that_end_too_early_are_one_sentence():
    with pytest.raises(UserError, match="the data ended after 3 updates"):
        run(list(batches(3)), updates_per_epoch=4, updates=4)


def test_frozen_parts_keep_weights_and_statistics():
    model = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Linear(FEATURES, CLASSES))
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(list(batches()), model=model, frozen=[model[0]])
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("0."))
    assert not torch.equal(after["1.weight"], before["1.weight"])
