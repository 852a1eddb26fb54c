"""The optimiser and its learning-rate schedule, both timm's."""

from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn

OptimizerName = Literal["sgd", "adamw", "lamb", "lion"]


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights move: `schedule` sets the learning rate of `optimizer` for each update."""

    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    clip_norm: float = 0.0


def build_optimizer(
    model: nn.Module, name: OptimizerName, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """timm's optimiser `name`; biases, norms and the model's `no_weight_decay` names are not decayed.

    momentum: that of SGD (Nesterov), and the first beta of the others, whose second stays at its default.
    """
    if name == "sgd":
        return create_optimizer_v2(model, name, lr=lr, weight_decay=weight_decay, momentum=momentum)
    second = {"adamw": 0.999, "lamb": 0.999, "lion": 0.99}[name]
    # One pass over all weights; on a CPU the default is a loop over tensors.
    fused = {"fused": True} if name == "adamw" else {}
    return create_optimizer_v2(model, name, lr=lr, weight_decay=weight_decay, betas=(momentum, second), **fused)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, lr: float, updates: int, warmup_updates: int, lr_end_ratio: float
) -> CosineLRScheduler:
    """A linear rise to `lr` over `warmup_updates`, then half a cosine down to `lr * lr_end_ratio`.

    Call `step_update(n)` after the n-th update (from 1); the first update already has its rate.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, updates - warmup_updates),
        lr_min=lr * lr_end_ratio,
        warmup_t=warmup_updates,
        # Not zero, which would waste the first update.
        warmup_lr_init=lr / (warmup_updates + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
