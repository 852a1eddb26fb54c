from itertools import pairwise

import pytest
import torch
from torch import nn

from parhelion.train.optimization import build_optimizer, cosine_schedule

UPDATES, WARMUP, PEAK = 23, 5, 0.4


def rates(**changes):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=PEAK)
    given = {"lr": PEAK, "updates": UPDATES, "warmup_updates": WARMUP, "lr_end_ratio": 0.05} | changes
    schedule = cosine_schedule(optimizer, **given)
    found = []
    for update in range(given["updates"]):
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


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion"])
def test_momentum_and_decay_reach_every_optimiser(name):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    optimizer = build_optimizer(model, name, lr=0.1, momentum=0.7, weight_decay=0.03)
    group = optimizer.param_groups[0]
    assert 0.7 in (group.get("momentum"), *group.get("betas", ()))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model[0].weight)] == 0.03
    assert {decays[id(p)] for p in (model[0].bias, model[1].weight, model[1].bias)} == {0.0}
