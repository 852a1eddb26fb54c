"""From a recipe and a request to all parts of a run: images, network, optimiser, and what the loop trains."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader

from parhelion.data.samples import Share
from parhelion.errors import UserError, printable
from parhelion.files.lock import RunLock
from parhelion.files.run_folder import check_out, holds_run
from parhelion.runs.lone_images import LoneImages
from parhelion.runs.recipe import EMA_WARMUP_POWER, Recipe
from parhelion.runs.request import Request
from parhelion.runs.resume import Begun, begin, check_images
from parhelion.runs.task import Network, Task
from parhelion.seeds import seed_everything
from parhelion.train import loop, parallel
from parhelion.train.optimization import Optimization, build_optimizer, cosine_schedule, drop_schedule, step_schedule
from parhelion.train.state import TrainState


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
    train_state: TrainState
    # The model that was handed in, or its running average: whole, float32, on this process's device.
    evaluated: nn.Module
    sharded: bool

    def gather(self) -> None:
        """Bring `evaluated` up to date where the parts of the weights lie in several processes; all must call it."""
        if self.sharded:
            ema = self.train_state.optimization.ema
            self.evaluated.load_state_dict(parallel.whole_state(self.train_state.model if ema is None else ema.module))


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All parts of a run before its first update."""

    recipe: Recipe
    accelerator: Accelerator
    # Whether this process prints nothing but errors.
    quiet: bool
    begun: Begun
    task: Task
    network: Network
    # Those of this process.
    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any]
    plan: loop.Plan
    ready: Prepared
    # Why the network cannot learn from a batch.
    why_not: loop.WhyNot


def set_up(recipe: Recipe, request: Request, accelerator: Accelerator, lock: RunLock) -> Setup:
    """Open the images and build everything that `recipe` needs. Nothing is written yet.

    A run that is resumed is locked before anything of it is read. Raises UserError, in all processes, for whatever
    keeps the run from starting.
    """
    quiet = request.quiet or not accelerator.is_main_process
    note = _silent if quiet else _warn
    with parallel.agreed(accelerator):
        if accelerator.is_main_process:
            lock.take() if request.resume and holds_run(request.out) else check_out(request.out)
    resolved = {**recipe.as_dict(), **request.as_dict()}
    process, processes = accelerator.process_index, accelerator.num_processes
    with parallel.agreed(accelerator):
        begun = begin(request.out, resolved, accelerator, resume=request.resume, recipe=recipe, note=note)
        task = recipe.open(request, processes=processes)
        check_images(begun, task.images, note)
        task.check_files(accelerator, note)
        # Equal weights in all processes.
        seed_everything("weights", recipe.seed)
        # A checkpoint has the weights already.
        network = task.network(None if begun.checkpoint else request.init_from)
        train_loader = task.loader("train", Share(process=process, processes=processes, parts=recipe.accumulate))
        val_loader = task.loader("val", Share(process=process, processes=processes))
    plan = _plan(recipe, batches=len(train_loader))
    _check_unfinished(begun, task, plan)
    for sentence in (*recipe.never_reached(plan.updates), *task.images.notes, *_sharded_alone(recipe, processes)):
        note(sentence)
    # Looks at the network before the processes share it.
    lone = _lone_images(recipe, network, processes)
    ready = prepared(recipe, accelerator, network.model, network.losses, plan)
    lone.check(task.images.facts["train_images"], note)
    return Setup(
        recipe=recipe,
        accelerator=accelerator,
        quiet=quiet,
        begun=begun,
        task=task,
        network=network,
        train_loader=train_loader,
        val_loader=val_loader,
        plan=plan,
        ready=ready,
        why_not=lone.why_not,
    )


def _warn(sentence: str) -> None:
    print(printable(f"parhelion: {sentence}"), file=sys.stderr, flush=True)


def _silent(_sentence: str) -> None:
    """Print nothing."""


def _plan(recipe: Recipe, *, batches: int) -> loop.Plan:
    per_epoch = batches // recipe.accumulate
    updates = recipe.epochs * per_epoch
    if recipe.updates > updates:
        raise UserError(
            f"updates is {recipe.updates}, but {recipe.epochs} epochs of {per_epoch} updates have only {updates}; "
            "give more epochs"
        )
    return loop.Plan(
        updates_per_epoch=per_epoch,
        updates=recipe.updates or updates,
        accumulate=recipe.accumulate,
        checkpoint_updates=recipe.checkpoint_updates,
        seed=recipe.seed,
    )


def _check_unfinished(begun: Begun, task: Task, plan: loop.Plan) -> None:
    out = begun.folder
    if begun.state().update >= plan.updates and (out / task.last_picture).exists():
        raise UserError(f"the run in {out} is finished; to train on, start another one with --init-from {out}")


def _sharded_alone(recipe: Recipe, processes: int) -> list[str]:
    if recipe.sharding == "none" or processes > 1:
        return []
    return [f"sharding is {recipe.sharding}, but one process alone holds all weights; torchrun starts several"]


def _lone_images(recipe: Recipe, network: Network, processes: int) -> LoneImages:
    return LoneImages(
        recipe,
        network.backbone,
        # `prepared` refuses a number of parts that the network does not have.
        frozen=list(cast("Trainee", network.model).parts[: recipe.freeze]),
        processes=processes,
        padded=network.padded,
    )


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
        train_state=TrainState(accelerator=accelerator, model=trained, optimization=optimization),
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
