"""Batches: shuffled and augmented the same way for the same seed, without the images that cannot be read."""

import copy
import os
import random
import signal
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import Array, Event
from threading import Thread
from typing import Any, Literal, TypeAlias, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, get_worker_info

from parhelion.data.balance import Balanced, repeats
from parhelion.data.images import BadImage
from parhelion.data.samples import Sample, Share, Stream
from parhelion.errors import UserError
from parhelion.seeds import number, seed_cpu

Transform: TypeAlias = Callable[[Image.Image], Tensor]
Ready: TypeAlias = tuple[Tensor | BadImage, int, str]
OnBadImage: TypeAlias = Literal["skip", "refuse"]
Ticket: TypeAlias = tuple[int, int, int]
"""Which sample, in which epoch, and how often it came in that epoch before."""


# How long a worker outlives a SIGTERM: as long as torchrun waits before it kills.
GRACE_SECONDS = 30


class Batch(TypedDict):
    """What a loader yields; the first three have the same length, 0 when every image of the batch was bad."""

    image: Tensor
    """(B, C, H, W) float32; (0, 0, 0, 0) when B is 0."""
    target: Tensor
    """(B,) int64."""
    name: list[str]
    bad: list[str]
    """One sentence per unreadable image that was left out."""


def make_loader(
    samples: Dataset[Sample],
    transform: Transform,
    *,
    batch: int,
    train: bool,
    workers: int = 0,
    seed: int = 0,
    on_bad_image: OnBadImage = "refuse",
    share: Share | None = None,
) -> DataLoader:
    """A DataLoader of `Batch`; see `build_loader`. `transform` makes a tensor of an image.

    `Balanced` samples come with every class equally often in training, otherwise each sample comes once.

    Bad images: with "refuse" the first one raises its BadImage in the process that iterates, also when a worker
    read it; with "skip" the batch goes without it and says so in `bad`. A batch may thus be smaller than `batch`,
    even empty: callers pass over batches with no image.
    """
    return build_loader(
        samples,
        partial(_transformed, transform=transform),
        partial(collate, refuse=refuses(on_bad_image)),
        batch=batch,
        train=train,
        workers=workers,
        seed=seed,
        share=share,
    )


def build_loader(
    samples: Dataset[Any],
    ready: Callable[[Any], Any],
    together: Callable[[list[Any]], Any],
    *,
    batch: int,
    train: bool,
    workers: int = 0,
    seed: int = 0,
    share: Share | None = None,
) -> DataLoader:
    """A DataLoader: `train` shuffles and draws at random, otherwise the order is that of `samples`.

    ready: What is done to each sample, in the process that reads it; may draw from the global generators.
    together: From a list of those to a batch.
    batch: Images of one update in training, of all processes and parts together; in evaluation of one batch.
    share: What this process reads of each update's images (training) or of all images (evaluation), and in how many
        parts; everything at once if None. The images of an update are the same whatever the processes and parts.

    Determinism: order and augmentations depend on the seed, the epoch and (for a dataset with an order) on the
    image, not on `workers` nor on what ran before, and no global generator is left changed. Each pass is the next
    epoch; `go_to` goes to another one, or into the middle of one.

    Training leaves out the last images where they do not fill an update, so that no batch norm sees a single image,
    unless that is all there are. A stream rounds its training pass up to whole updates instead: some images come twice.

    Workers ignore Ctrl-C and SIGTERM, which the main process handles, and live until the loader is gone. Raises
    UserError.
    """
    share = share or Share()
    for name, value, least in (("batch", batch, 1), ("workers", workers, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; it must be at least {least}")
    if train and batch % (share.processes * share.parts):
        raise UserError(
            f"batch is {batch}, but it must be a multiple of {share.processes * share.parts} to be shared evenly "
            f"(processes: {share.processes}, parts of each: {share.parts})"
        )
    local = batch // (share.processes * share.parts) if train else batch
    dataset: Dataset[Any]
    batching: dict[str, Any] = {"batch_size": local}
    if isinstance(samples, Stream):
        dataset = _ReadyStream(samples, ready, seed if train else None)
        dataset.samples.arrange(batch=local, workers=workers, seed=seed, share=share)
    elif train:
        dataset = _ReadySamples(samples, ready, seed)
        batching = {"batch_sampler": _Updates(samples, local, share, seed)}
    else:
        rows = range(share.process, _length(samples), share.processes)
        dataset = _ReadySamples(samples if share.processes == 1 else Subset(samples, rows), ready, seed)
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=together,
        worker_init_fn=_WorkerLife() if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Without one, every pass would draw a number from the global generator.
        generator=torch.Generator().manual_seed(seed),
        **batching,
    )


def go_to(loader: DataLoader, epoch: int, batches: int = 0) -> None:
    """Make the next pass over a training loader that of `epoch` (from 0), without its first `batches` batches.

    Those batches are not read: images of a dataset with an order are not even opened; a stream passes over their bytes.
    """
    for part in (loader.batch_sampler, loader.dataset):
        if isinstance(part, _Updates | _ReadyStream):
            part.go_to(epoch, batches)


def end_workers(loader: DataLoader) -> None:
    """End the loader's workers at once, also those that are stuck in what they read; it gives no more batches."""
    if isinstance(loader.worker_init_fn, _WorkerLife):
        loader.worker_init_fn.over.set()


def refuses(on_bad_image: OnBadImage) -> bool:
    """Whether an unreadable image ends the pass. Raises UserError."""
    if on_bad_image not in ("skip", "refuse"):
        raise UserError(f"on_bad_image is {on_bad_image!r}, but it should be 'skip' or 'refuse'")
    return on_bad_image == "refuse"


def collate(samples: list[Ready], *, refuse: bool) -> Batch:
    """The batch of `samples`; raises the first BadImage among them if `refuse`."""
    bad = [image for image, _, _ in samples if isinstance(image, BadImage)]
    if bad and refuse:
        raise bad[0]
    images = [image for image, _, _ in samples if isinstance(image, Tensor)]
    good = [(target, name) for image, target, name in samples if isinstance(image, Tensor)]
    return Batch(
        image=torch.stack(images) if images else torch.empty(0, 0, 0, 0),
        target=torch.tensor([target for target, _ in good], dtype=torch.int64),
        name=[name for _, name in good],
        bad=[str(sentence) for sentence in bad],
    )


@dataclass
class _Position:
    """Where the next pass begins: its epoch, and how many batches it leaves out."""

    epoch: int = 0
    batches: int = 0

    def next_pass(self) -> tuple[int, int]:
        """The position; the one after it is the beginning of the next epoch."""
        begin = self.epoch, self.batches
        self.epoch, self.batches = self.epoch + 1, 0
        return begin


class _Updates(Sampler[list[Ticket]]):
    """This process's batches of every update, in an order that depends on seed and epoch only."""

    def __init__(self, samples: Dataset[Any], batch: int, share: Share, seed: int) -> None:
        together, count = batch * share.processes * share.parts, _length(samples)
        # All there is, if that is less than a batch and nobody has to share it.
        self.whole = count < together and share.processes * share.parts == 1
        if count < together and not self.whole:
            raise UserError(
                f"batch is {together}, in {share.parts} parts on {share.processes} processes, but there are only "
                f"{count} training images"
            )
        self.samples, self.count, self.batch, self.share, self.seed = samples, count, batch, share, seed
        self.position = _Position()

    def go_to(self, epoch: int, batches: int) -> None:
        self.position = _Position(epoch, batches)

    def __len__(self) -> int:
        if self.whole:
            return 1
        return self.count // (self.batch * self.share.processes * self.share.parts) * self.share.parts

    def __iter__(self) -> Iterator[list[Ticket]]:
        epoch, done = self.position.next_pass()
        generator = torch.Generator().manual_seed(number("order", self.seed, epoch))
        if isinstance(self.samples, Balanced):
            order = self.samples.order(generator)
            before = repeats(order)
        else:
            order = torch.randperm(self.count, generator=generator).tolist()
            before = [0] * self.count
        for batch in range(done, len(self)):
            first = (batch * self.share.processes + self.share.process) * self.batch
            yield [(order[place], epoch, before[place]) for place in range(first, min(first + self.batch, self.count))]


class _ReadySamples(Dataset[Any]):
    """Samples made ready; a ticket's epoch seeds that, a plain index means nothing random."""

    def __init__(self, samples: Dataset[Any], ready: Callable[[Any], Any], seed: int) -> None:
        self.samples, self.ready, self.seed = samples, ready, seed

    def __len__(self) -> int:
        return _length(self.samples)

    def __getitem__(self, ticket: int | Ticket) -> Any:
        return self.__getitems__([ticket])[0]

    # torch calls this with the tickets of a whole batch.
    def __getitems__(self, tickets: list[int | Ticket]) -> list[Any]:
        with _global_generators_kept():
            return [self._sample(ticket) for ticket in tickets]

    def _sample(self, ticket: int | Ticket) -> Any:
        if not isinstance(ticket, tuple):
            return self.ready(self.samples[ticket])
        index, epoch, before = ticket
        sample = self.samples[index]
        # An image that comes again looks different.
        seed_cpu("image", self.seed, epoch, index, *([before] if before else []))
        return self.ready(sample)


class _ReadyStream(IterableDataset[Any]):
    """A stream made ready, seeded for each sample unless `seed` is None."""

    def __init__(self, samples: Stream, ready: Callable[[Any], Any], seed: int | None) -> None:
        self.samples, self.ready, self.seed = copy.copy(samples), ready, seed
        # Shared with the workers: how often go_to was called, and with what.
        self.order = Array("q", [0, 0, 0])
        self.obeyed, self.position = 0, _Position()

    def go_to(self, epoch: int, batches: int) -> None:
        # Here already, and not in a worker, a stream says that it cannot.
        self.samples.go_to(epoch, batches)
        with self.order.get_lock():
            self.order[:] = [self.order[0] + 1, epoch, batches]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Any]:
        calls, *wanted = self.order[:]
        if calls != self.obeyed:
            self.obeyed, self.position = calls, _Position(*wanted)
        epoch, done = self.position.next_pass()
        self.samples.go_to(epoch, done)
        reader, passed = self.samples.reader_number(), self.samples.passed()
        for count, sample in enumerate(self.samples, start=passed):
            with _global_generators_kept():
                if self.seed is not None:
                    seed_cpu("stream", self.seed, epoch, reader, count)
                ready = self.ready(sample)
            yield ready


def _length(samples: Dataset[Any]) -> int:
    # torch's Dataset promises no length; ours have one.
    return len(cast("Sized", samples))


def _transformed(sample: Sample, transform: Transform) -> Ready:
    image, target, name = sample
    return (image if isinstance(image, BadImage) else transform(image)), target, name


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Put the global generators back; in a worker nobody else draws from them, and that is not worth the time."""
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class _WorkerLife:
    """How a worker process begins and ends; called in it.

    It leaves Ctrl-C and SIGTERM to the main process, which saves with the help of its workers and then ends them: a
    cluster sends SIGTERM to all processes at once. One that is still there long after it ends by itself.
    """

    def __init__(self) -> None:
        self.over = Event()

    def __call__(self, _worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_SECONDS))
            # By code 0, since torch raises an error in the main process, which may be saving, for any other.
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        Thread(target=self._leave, daemon=True).start()

    def _leave(self) -> None:
        self.over.wait()
        os._exit(0)
