"""The training loop. It is handed a model, a task and a loader, and knows nothing more of them."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from parhelion.errors import UserError
from parhelion.train.optimization import Optimization
from parhelion.train.progress import Progress

Batch = dict[str, Any]
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]

# Reading a loss makes a GPU wait, so losses are read a few steps at a time.
STEPS_PER_CHECK = 16


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


def train(
    accelerator: Accelerator,
    model: nn.Module,
    losses: Losses,
    loader: Any,
    optimization: Optimization,
    *,
    epochs: int,
    end_epoch: Callable[[Epoch], None],
    progress: Progress,
) -> None:
    """Train `model` in place for `epochs` passes over `loader`.

    losses: the task: (model, batch) -> named losses, whose sum is minimised.
    loader: yields batches with the key `image` (B, ...) and, for images left out, `bad`: a sentence each.
    end_epoch: called after each epoch, to evaluate, save and record.

    Raises UserError naming epoch and step when the loss, or the epoch when a weight, is no longer finite;
    `end_epoch` is then not called, so what it saved before is still good.
    """
    step, optimizer, loader = accelerator.prepare(Step(model, losses), optimization.optimizer, loader)
    optimization.schedule.step_update(0)
    update = 0
    for epoch in range(1, epochs + 1):
        step.train()
        watch, clock, skipped, lr = LossWatch(accelerator, epoch), Clock(), [], 0.0
        for batch in clock.timed(loader):
            skipped += batch.get("bad", [])
            images = len(batch["image"])
            if not images:
                _refuse_empty(accelerator, batch)
                continue
            loss = torch.stack(list(step(batch).values())).sum()
            optimizer.zero_grad()
            accelerator.backward(loss)
            if optimization.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), optimization.clip_norm)
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            update += 1
            optimization.schedule.step_update(update)
            watch.add(loss, images)
            progress.advance(images * accelerator.num_processes, f"epoch {epoch}/{epochs}{watch.latest}")
        result = watch.result(lr=lr, clock=clock, skipped=skipped)
        _check_weights(model, epoch)
        end_epoch(result)


class Step(nn.Module):
    """From a batch to its losses as one module.

    Accelerate patches what it is given (DDP, autocast); this way it patches the step, and the model inside
    evaluates as the plain float32 model that is saved.
    """

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.losses(self.model, batch)


class Clock:
    """Seconds since it was made, and how many of them went by waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.waited = 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of `loader`; the time each takes to arrive is added to `waited`."""
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield batch


class LossWatch:
    """Averages an epoch's losses over images and processes, and stops at the first that is not finite."""

    def __init__(self, accelerator: Accelerator, epoch: int) -> None:
        self.epoch = epoch
        # The newest loss read, for show.
        self.latest = ""
        self._accelerator = accelerator
        self._waiting: list[Tensor] = []
        self._steps = 0
        self._total = 0.0
        self._images = 0.0

    def add(self, loss: Tensor, images: int) -> None:
        """Take in the mean loss of one step's `images`."""
        self._waiting.append(torch.stack([loss.detach().float() * images, loss.new_tensor(float(images)).float()]))
        if len(self._waiting) >= STEPS_PER_CHECK:
            self._read()

    def result(self, *, lr: float, clock: Clock, skipped: list[str]) -> Epoch:
        """The epoch so far, averaged over all processes."""
        self._read()
        if not self._images:
            raise UserError(f"epoch {self.epoch} had no batch to train on; give more images or a smaller batch")
        return Epoch(
            epoch=self.epoch,
            train_loss=self._total / self._images,
            lr=lr,
            seconds=clock.seconds,
            data_wait_seconds=clock.waited,
            images_per_second=self._images / clock.seconds,
            skipped=tuple(skipped),
        )

    def _read(self) -> None:
        if not self._waiting:
            return
        # Every process reads the same sums, so all of them stop at the same step.
        sums = self._accelerator.reduce(torch.stack(self._waiting), reduction="sum").tolist()
        self._waiting.clear()
        for total, images in sums:
            self._steps += 1
            if not math.isfinite(total):
                raise UserError(
                    f"the loss became {total / images} at step {self._steps} of epoch {self.epoch}; training stopped, "
                    "and the last good weights are kept; a lower learning rate or clip_norm may help"
                )
            self._total += total
            self._images += images
            self.latest = f"  loss {total / images:.3f}"


def _refuse_empty(accelerator: Accelerator, batch: Batch) -> None:
    # The other processes would wait for this one's gradients for ever.
    if accelerator.num_processes > 1:
        raise UserError(f"a whole share of a batch could not be read: {batch['bad'][0]}")


def _check_weights(model: nn.Module, epoch: int) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(
                f"{name} is no longer finite after the last step of epoch {epoch}; training stopped, and the last "
                "good weights are kept; a lower learning rate or clip_norm may help"
            )
