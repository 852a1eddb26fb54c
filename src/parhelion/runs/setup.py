"""From a model and a recipe to what the loop trains: frozen parts, processes, optimiser, running average."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from parhelion.errors import UserError
from parhelion.runs.recipe import EMA_WARMUP_POWER, Recipe
from parhelion.train import loop, parallel
from parhelion.train.state import Moving
from parhelion.train.optimization import (
    Optimization,
    build_optimizer,
    cosine_schedule,
    drop_schedule,
    step_schedule,
)


class Trainee(Protocol):
    """What a network offers besides being an nn.Module, so that a recipe can train it."""

    @property
    def parts(self) -> Sequence[nn.Module]:
        """What can be frozen, from the image on: the stem, then each stage."""

    @property
    def bottlenecks(self) -> Sequence[nn.Module]:
        """What processes hold parts of, and gather when needed, one after the other."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep less for the backward pass, and compute it again there."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model ready to be trained, and the plain one that is evaluated and saved."""

    step: nn.Module
    moving: Moving
    # The model that was handed in, or its running average: whole, float32, on this process's device.
    evaluated: nn.Module
    sharded: bool

    def gather(self) -> None:
        """Bring `evaluated` up to date where the parts of the weights lie in several processes; all must call it."""
        if self.sharded:
            ema = self.moving.optimization.ema
            self.evaluated.load_state_dict(parallel.whole_state(self.moving.model if ema is None else ema.module))


def prepared(
    recipe: Recipe, accelerator: Accelerator, model: nn.Module, losses: loop.Losses, plan: loop.Plan
) -> Prepared:
    """`model`, a `Trainee`, as `recipe` wants it trained; UserError for parts to freeze that it does not have."""
    sharded = recipe.sharding == "fsdp" and accelerator.num_processes > 1
    model.to(accelerator.device)
    # The whole model stays beside the sharded one, to be evaluated.
    trained = copy.deepcopy(model) if sharded else model
    trainee = cast("Trainee", trained)
    trainee.set_grad_checkpointing(recipe.recompute)
    frozen = frozen_parts(trainee, recipe.freeze)
    if recipe.sync_bn and accelerator.num_processes > 1:
        parallel.synchronise_batch_norms(trained)
    # One pass over all tensors cannot take whole buffers and parts of weights together.
    ema = running_average(trained, recipe.ema_decay, foreach=not sharded) if recipe.ema_decay else None
    if sharded:
        for whole in (trained, *([ema.module] if ema else [])):
            parallel.shard(accelerator, whole, cast("Trainee", whole).bottlenecks)
    step = loop.Step(trained, losses, frozen=frozen, compiled=recipe.compiled)
    # What is sharded needs autocast only.
    step = accelerator.prepare_model(step, evaluation_mode=sharded)
    optimization = _optimization(recipe, accelerator, trained, plan, ema)
    return Prepared(
        step=step,
        moving=Moving(accelerator=accelerator, model=trained, optimization=optimization),
        evaluated=ema.module if ema is not None and not sharded else model,
        sharded=sharded,
    )


def running_average(model: nn.Module, decay: float, *, foreach: bool = True) -> ModelEmaV3:
    """timm's running average of `model`, warmed up: a short run does not keep the weights that it began with."""
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_power=EMA_WARMUP_POWER, foreach=foreach)


def frozen_parts(model: Trainee, count: int) -> Sequence[nn.Module]:
    """The first `count` parts of `model`, the stem and then its stages, with parameters that need no gradient."""
    parts = model.parts
    if count and not parts:
        raise UserError(f"freeze is {count}, but the order of this backbone's layers is not known; give 0")
    if count > len(parts):
        raise UserError(
            f"freeze is {count}, but the model has {len(parts)} parts: the stem and {len(parts) - 1} stages"
        )
    for part in parts[:count]:
        part.requires_grad_(False)
    return parts[:count]


def _optimization(
    recipe: Recipe, accelerator: Accelerator, model: nn.Module, plan: loop.Plan, ema: ModelEmaV3 | None
) -> Optimization:
    lr = recipe.lr_per_256 * recipe.batch / 256
    optimizer: torch.optim.Optimizer = build_optimizer(
        model,
        recipe.optimizer,
        lr=lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
    )
    warmup = round(recipe.warmup_epochs * plan.updates_per_epoch)
    schedule: Scheduler
    if recipe.drop_updates:
        schedule = drop_schedule(optimizer, lr=lr, drop_updates=recipe.drop_updates, warmup_updates=warmup)
    elif recipe.schedule == "step":
        schedule = step_schedule(optimizer, lr=lr, step_updates=recipe.step_updates, warmup_updates=warmup)
    else:
        schedule = cosine_schedule(
            optimizer, lr=lr, updates=plan.updates, warmup_updates=warmup, lr_end_ratio=recipe.lr_end_ratio
        )
    return Optimization(
        optimizer=accelerator.prepare_optimizer(optimizer),
        schedule=schedule,
        clip_norm=recipe.clip_norm,
        ema=ema,
        ema_source=model if ema is not None else None,
    )
