"""The optimiser, its learning-rate schedule and the running average of the weights, all timm's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

OptimizerName = Literal["sgd", "momentum", "adamw", "lamb", "lion"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights move: `schedule` sets the learning rate of `optimizer` for each update."""

    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    clip_norm: float = 0.0
    ema: ModelEmaV3 | None = None
    # The model that `ema` follows.
    ema_source: nn.Module | None = None


def build_optimizer(
    model: nn.Module,
    name: OptimizerName,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """timm's optimiser `name`; biases, norms and the model's `no_weight_decay` names are not decayed.

    momentum: that of SGD (`sgd`: Nesterov's), and the first beta of the others, whose second stays at its default.
    layer_decay: factor of the learning rate from each layer to the one before it, as the model's `group_matcher`
        cuts it into layers.
    """
    shared = {"lr": lr, "weight_decay": weight_decay, "layer_decay": layer_decay if layer_decay < 1 else None}
    if name in ("sgd", "momentum"):
        return create_optimizer_v2(model, name, momentum=momentum, **shared)
    second = {"adamw": 0.999, "lamb": 0.999, "lion": 0.99}[name]
    # One pass over all weights; on a CPU the default is a loop over tensors.
    fused = {"fused": True} if name == "adamw" else {}
    return create_optimizer_v2(model, name, betas=(momentum, second), **fused, **shared)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, lr: float, updates: int, warmup_updates: int, lr_end_ratio: float
) -> CosineLRScheduler:
    """A linear rise to `lr` over `warmup_updates`, then half a cosine down to `lr * lr_end_ratio`.

    Call `step_update(n)` after the n-th update (from 1); the first update already has its rate.
    """
    return CosineLRScheduler(
        optimizer,
        # timm complains of less; a run that ends in its warm-up does not get there.
        t_initial=max(2, updates - warmup_updates),
        lr_min=lr * lr_end_ratio,
        warmup_prefix=True,
        **_warmup(lr, warmup_updates),
    )


def step_schedule(
    optimizer: torch.optim.Optimizer, *, lr: float, step_updates: int, warmup_updates: int
) -> StepLRScheduler:
    """A linear rise to `lr` over `warmup_updates`, then a tenth of the rate after every `step_updates` updates.

    The steps are counted from the first update on. Call `step_update(n)` after the n-th update (from 1).
    """
    warmup = {"warmup_prefix": False, **_warmup(lr, warmup_updates)}
    return StepLRScheduler(optimizer, decay_t=step_updates, decay_rate=0.1, **warmup)


def drop_schedule(
    optimizer: torch.optim.Optimizer, *, lr: float, drop_updates: Sequence[int], warmup_updates: int
) -> MultiStepLRScheduler:
    """A linear rise to `lr` over `warmup_updates`, then a tenth of the rate after each of `drop_updates`.

    Those are counted from the first update on. Call `step_update(n)` after the n-th update (from 1).
    """
    # In timm a milestone acts one step before the one that it names.
    milestones = [update + 1 for update in drop_updates]
    return MultiStepLRScheduler(
        optimizer, decay_t=milestones, decay_rate=0.1, warmup_prefix=False, **_warmup(lr, warmup_updates)
    )


def _warmup(lr: float, updates: int) -> dict[str, float]:
    # Not zero, which would waste the first update.
    return {"warmup_t": updates, "warmup_lr_init": lr / (updates + 1), "t_in_epochs": False}
