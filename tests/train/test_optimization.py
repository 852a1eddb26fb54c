from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from parhelion.train.optimization import build_optimizer, cosine_schedule, drop_schedule, step_schedule

UPDATES, WARMUP, PEAK = 23, 5, 0.4


def rates(**changes):
    given = {"updates": UPDATES, "warmup_updates": WARMUP, "lr_end_ratio": 0.05} | changes
    return rates_of(partial(cosine_schedule, updates=given["updates"]), **given)


def rates_of(schedule_of, *, updates=UPDATES, **given):
    """The rate of each update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=PEAK)
    schedule = schedule_of(optimizer, lr=PEAK, **given)
    found = []
    for update in range(updates):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    found = rates()
    rises = [later - earlier for earlier, later in pairwise(found[: WARMUP + 1])]
    assert found[0] > 0
    assert rises == pytest.approx([rises[0]] * WARMUP)
    assert max(found) == found[WARMUP] == pytest.approx(PEAK)
    assert found[WARMUP:] == sorted(found[WARMUP:], reverse=True)
    assert found[-1] == pytest.approx(0.05 * PEAK, rel=0.2)


def test_without_warmup_the_first_update_has_the_peak_rate():
    assert rates(warmup_updates=0)[0] == pytest.approx(PEAK)


def test_one_update_trains_at_the_peak():
    assert rates(updates=1, warmup_updates=0) == pytest.approx([PEAK])


@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
def test_the_rate_falls_to_a_tenth_exactly_after_each_update_named(warmup):
    first, second = 11, 19
    found = rates_of(drop_schedule, drop_updates=(first, second), warmup_updates=warmup)
    assert found[warmup:] == pytest.approx(
        [PEAK] * (first - warmup) + [PEAK / 10] * (second - first) + [PEAK / 100] * (UPDATES - second)
    )
    assert found[:warmup] == pytest.approx([PEAK * (update + 1) / (warmup + 1) for update in range(warmup)])


def test_an_update_named_within_the_warmup_lowers_what_comes_after_it():
    found = rates_of(drop_schedule, drop_updates=(WARMUP - 2,), warmup_updates=WARMUP)
    assert found[WARMUP:] == pytest.approx([PEAK / 10] * (UPDATES - WARMUP))


def test_named_updates_fall_where_equal_steps_do():
    every = rates_of(step_schedule, step_updates=7, warmup_updates=0)
    assert rates_of(drop_schedule, drop_updates=(7, 14, 21), warmup_updates=0) == pytest.approx(every)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion"])
def test_momentum_and_decay_reach_every_optimiser(name):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    optimizer = build_optimizer(model, name, lr=0.1, momentum=0.7, weight_decay=0.03)
    group = optimizer.param_groups[0]
    assert 0.7 in (group.get("momentum"), *group.get("betas", ()))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model[0].weight)] == 0.03
    assert {decays[id(p)] for p in (model[0].bias, model[1].weight, model[1].bias)} == {0.0}
