"""The training loop. It is handed a model, a task and batches, and knows nothing more of them."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.files.progress import Progress
from parhelion.seeds import seed_everything
from parhelion.train.optimization import Optimization
from parhelion.train.stopping import Stopped, StopRequest

Batch = dict[str, Any]
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]
WhyNot = Callable[[Batch], str | None]

# Reading a loss makes a GPU wait, so losses are read a few updates at a time.
UPDATES_PER_READ = 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is and what its random numbers follow from."""

    updates_per_epoch: int
    # Of the whole run; the last epoch may be cut short.
    updates: int
    # Batches of the loader that make one update.
    accumulate: int = 1
    # Updates between checkpoints within an epoch; 0: none.
    checkpoint_updates: int = 0
    seed: int = 0

    def epoch(self, update: int) -> int:
        """The epoch, counted from 1, that the update after `update` others belongs to."""
        return update // self.updates_per_epoch + 1

    def ends_epoch(self, update: int) -> bool:
        """Whether `update` updates complete an epoch or the run."""
        return update % self.updates_per_epoch == 0 or update == self.updates


@dataclass(kw_only=True)
class State:
    """How far a run has come: what a checkpoint holds besides tensors. All processes agree on it."""

    # Updates done.
    update: int = 0
    # Of the epoch under way: losses times images, images, seconds, and a sentence per image left out.
    loss_total: float = 0.0
    images: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    lr: float = 0.0
    skipped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one pass over the training images came to."""

    epoch: int
    train_loss: float
    # Of the last update.
    lr: float
    seconds: float
    data_wait_seconds: float
    images_per_second: float
    # One sentence for each image left out.
    skipped: tuple[str, ...]


class Keeper(Protocol):
    """What the loop reports to."""

    def add_losses(self, rows: Sequence[dict[str, Any]]) -> None:
        """Note the losses of a few updates: update, epoch, loss, lr."""

    def checkpoint(self, state: State) -> None:
        """Save everything that the run needs to go on from `state`."""

    def end_epoch(self, epoch: Epoch) -> None:
        """Evaluate, save and record; comes after the checkpoint of the epoch's last update."""


class Step(nn.Module):
    """From a batch to its losses as one module.

    Accelerate patches what it is given (DDP, autocast); this way it patches the step, and the model inside
    evaluates as the plain float32 model that is saved.
    """

    def __init__(
        self, model: nn.Module, losses: Losses, *, frozen: Sequence[nn.Module] = (), compiled: bool = False
    ) -> None:
        """frozen: parts of the model that stay in evaluation mode, so that their batch statistics stay too."""
        super().__init__()
        self.model = model
        self._losses = losses
        # Outside the list of submodules, of which they are parts already.
        self._frozen = tuple(frozen)
        self._forward: tuple[Any, ...] = (torch.compile(model) if compiled else model,)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self._losses(self._forward[0], batch)

    def train(self, mode: bool = True) -> "Step":
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that a run's loop works with."""

    accelerator: Accelerator
    # A `Step`, prepared for the processes that take part; its losses are summed and minimised.
    step: nn.Module
    optimization: Optimization
    # (epoch from 0, batches to leave out) -> what the epoch's loader yields after those: batches with the key `image`
    # (B, ...) and, for images left out, `bad`: a sentence each.
    batches: Callable[[int, int], Iterable[Batch]]
    plan: Plan
    state: State
    keeper: Keeper
    progress: Progress
    stop: StopRequest
    # Why the model cannot learn from a batch that has images; None where it can. Such a batch is left out.
    why_not: WhyNot = lambda _batch: None


def train(run: Training) -> None:
    """Train the model in `run.step` in place, from `run.state` to the end of `run.plan`.

    What is random in an update depends on the plan's seed, the update and the process, not on what ran before: so a
    run that goes on from a checkpoint does what the uninterrupted one does.

    Raises UserError naming epoch and update when a loss, or at a checkpoint a weight, is no longer finite; nothing is
    saved after that. Raises Stopped, after a checkpoint, when `run.stop` was asked.
    """
    state, plan = run.state, run.plan
    run.optimization.schedule.step_update(state.update)
    while state.update < plan.updates or state.images:
        under_way = state.images > 0
        epoch = plan.epoch(state.update - 1 if under_way else state.update)
        watch, clock = LossWatch(run), Clock(state, run.stop)
        # A run may have been stopped between the checkpoint of an epoch's last update and its evaluation.
        if not (under_way and plan.ends_epoch(state.update)):
            _run_epoch(run, epoch, watch, clock)
        run.keeper.end_epoch(_ended(state, epoch, clock))
        _forget_epoch(state)
        # Several processes agree on it first, after some updates of the next epoch.
        if state.update < plan.updates and run.accelerator.num_processes == 1:
            run.stop.obey()


def _run_epoch(run: Training, epoch: int, watch: "LossWatch", clock: "Clock") -> None:
    """From where the state is to the end of the epoch, with a checkpoint there and where the plan wants one."""
    state, plan = run.state, run.plan
    run.step.train()
    done = state.update - (epoch - 1) * plan.updates_per_epoch
    parts = iter(clock.timed(run.batches(epoch - 1, done * plan.accumulate)))
    ended = False
    while not ended:
        first = _first_part(run, epoch, parts, watch, clock)
        images = _update(run, chain(first, parts), watch)
        run.progress.advance(images * run.accelerator.num_processes, f"epoch {epoch}{watch.latest}")
        ended = plan.ends_epoch(state.update)
        periodic = plan.checkpoint_updates > 0 and state.update % plan.checkpoint_updates == 0
        must_stop = watch.must_stop(run.stop)
        if ended or periodic or must_stop:
            _save(run, epoch, watch, clock)
        if must_stop and not ended:
            run.stop.obey(agreed=True)


def _first_part(run: Training, epoch: int, parts: Iterator[Batch], watch: "LossWatch", clock: "Clock") -> list[Batch]:
    """The next batch, if there is one. Where this process is asked to stop and no batch comes, it saves first."""
    try:
        return list(islice(parts, 1))
    except Stopped:
        # Of the next update nothing is done yet. Several processes cannot save, as they are not at the same point.
        if run.accelerator.num_processes == 1:
            watch.read()
            # Without images of this epoch there is nothing that is not saved.
            if run.state.images:
                _save(run, epoch, watch, clock)
        raise


def _save(run: Training, epoch: int, watch: "LossWatch", clock: "Clock") -> None:
    watch.read()
    clock.stamp()
    _check_weights(run.step, epoch)
    run.keeper.checkpoint(run.state)


def _update(run: Training, parts: Iterator[Batch], watch: "LossWatch") -> int:
    """One update from as many batches of `parts` as the plan accumulates; the images that this process saw."""
    state, plan, optimizer, images = run.state, run.plan, run.optimization.optimizer, 0
    optimizer.zero_grad()
    for part in range(plan.accumulate):
        batch = next(parts, None)
        if batch is None:
            raise UserError(f"the data ended after {state.update} updates, before the epoch was over")
        bad, count = batch.get("bad", []), len(batch["image"])
        reason = run.why_not(batch) if count else None
        state.skipped += [*bad, reason] if reason else bad
        if reason or not count:
            _refuse_empty(run.accelerator, reason or bad[0])
            continue
        seed_everything("update", plan.seed, state.update, part, run.accelerator.process_index)
        with nullcontext() if part == plan.accumulate - 1 else _gradients_stay_here(run):
            loss = torch.stack(list(run.step(send_to_device(batch, run.accelerator.device)).values())).sum()
            run.accelerator.backward(loss / plan.accumulate)
        watch.add(loss, count)
        images += count
    state.lr = max(group["lr"] for group in optimizer.param_groups)
    if images:
        _move(run)
    state.update += 1
    run.optimization.schedule.step_update(state.update)
    watch.end_update()
    return images


def _move(run: Training) -> None:
    """Let the optimiser move the weights, and the running average follow."""
    optimization = run.optimization
    if optimization.clip_norm:
        run.accelerator.clip_grad_norm_(run.step.parameters(), optimization.clip_norm)
    optimization.optimizer.step()
    if optimization.ema is not None:
        # Its decay follows from the number of this update, so that a resumed run averages alike.
        optimization.ema.update(optimization.ema_source, step=run.state.update + 1)


def _gradients_stay_here(run: Training) -> Any:
    """A context in which gradients add up in this process without being sent to the others.

    FSDP2 would keep whole gradients in memory for that; it sends parts instead, which add up to the same.
    """
    return run.accelerator.no_sync(run.step)


class Clock:
    """Seconds of the epoch under way, those before an interruption included, and how many went by waiting for data."""

    def __init__(self, state: State, stop: StopRequest) -> None:
        self._state, self._stop = state, stop
        self._started = time.perf_counter()

    def stamp(self) -> None:
        """Bring the state up to date."""
        now = time.perf_counter()
        self._state.seconds += now - self._started
        self._started = now

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the time each takes to arrive counts as waited. Raises Stopped as `StopRequest.waiting` does."""
        waiting = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                with self._stop.waiting():
                    batch = next(waiting)
            except StopIteration:
                return
            finally:
                self._state.waited += time.perf_counter() - asked
            yield batch


class LossWatch:
    """Averages an epoch's losses over images and processes, and stops at the first that is not finite."""

    def __init__(self, run: Training) -> None:
        self._run = run
        # The newest loss read, for show.
        self.latest = ""
        # On CPUs reading costs nothing, and several processes must hear soon that they should stop.
        together_on_cpu = run.accelerator.num_processes > 1 and run.accelerator.device.type == "cpu"
        self._updates_per_read = 1 if together_on_cpu else UPDATES_PER_READ
        self._sums: list[Tensor] = []
        self._waiting: list[Tensor] = []
        self._rates: list[float] = []

    def add(self, loss: Tensor, images: int) -> None:
        """Take in the mean loss of a batch of `images`."""
        self._sums.append(torch.stack([loss.detach().float() * images, loss.new_tensor(float(images)).float()]))

    def end_update(self) -> None:
        """The batches since the last call made an update."""
        device = self._run.accelerator.device
        self._waiting.append(torch.stack(self._sums).sum(0) if self._sums else torch.zeros(2, device=device))
        self._rates.append(self._run.state.lr)
        self._sums.clear()
        if len(self._waiting) >= self._updates_per_read:
            self.read()

    def must_stop(self, stop: StopRequest) -> bool:
        """Whether a process was asked to stop; several processes agree on it whenever losses were just read."""
        accelerator = self._run.accelerator
        if accelerator.num_processes == 1:
            return stop.asked
        if self._waiting:
            return False
        asked = torch.tensor(float(stop.asked), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())

    def read(self) -> None:
        """Add the losses waiting to the state and hand them to the keeper."""
        if not self._waiting:
            return
        state, plan = self._run.state, self._run.plan
        # Every process reads the same sums, so all of them stop at the same update.
        sums = self._run.accelerator.reduce(torch.stack(self._waiting), reduction="sum").tolist()
        first, rows = state.update - len(sums), []
        for update, ((total, images), lr) in enumerate(zip(sums, self._rates, strict=True), start=first):
            epoch = plan.epoch(update)
            if not math.isfinite(total):
                raise UserError(
                    f"the loss became {total / images} at update {update % plan.updates_per_epoch + 1} of epoch "
                    f"{epoch}; training stopped, and the last good weights are kept; a lower learning rate or "
                    "clip_norm may help"
                )
            state.loss_total += total
            state.images += images
            if images:
                self.latest = f"  loss {total / images:.3f}"
                rows.append({"update": update + 1, "epoch": epoch, "loss": total / images, "lr": lr})
        self._waiting.clear()
        self._rates.clear()
        self._run.keeper.add_losses(rows)


def _ended(state: State, epoch: int, clock: Clock) -> Epoch:
    if not state.images and state.skipped:
        raise UserError(
            f"epoch {epoch} had no image to train on: all {len(state.skipped)} were left out; the first: "
            f"{state.skipped[0]}"
        )
    if not state.images:
        raise UserError(f"epoch {epoch} had no batch to train on; give more images or a smaller batch")
    clock.stamp()
    return Epoch(
        epoch=epoch,
        train_loss=state.loss_total / state.images,
        lr=state.lr,
        seconds=state.seconds,
        data_wait_seconds=state.waited,
        images_per_second=state.images / state.seconds,
        skipped=tuple(state.skipped),
    )


def _forget_epoch(state: State) -> None:
    state.loss_total = state.images = state.seconds = state.waited = 0.0
    state.skipped = []


def _refuse_empty(accelerator: Accelerator, sentence: str) -> None:
    # The other processes would wait for this one's gradients for ever.
    if accelerator.num_processes > 1:
        raise UserError(f"one process has nothing to train on in its share of a batch: {sentence}")


def _check_weights(step: nn.Module, epoch: int) -> None:
    for name, tensor in step.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{name} is no longer finite after an update of epoch {epoch}; training stopped, and the last "
                "good weights are kept; a lower learning rate or clip_norm may help"
            )
