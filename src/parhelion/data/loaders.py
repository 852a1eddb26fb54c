"""Batches: shuffled and augmented the same way for the same seed, without the images that cannot be read."""

import copy
import hashlib
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import Array
from typing import Literal, TypeAlias, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from parhelion.data.images import BadImage
from parhelion.data.samples import Sample, Stream
from parhelion.errors import UserError

Transform: TypeAlias = Callable[[Image.Image], Tensor]
Ready: TypeAlias = tuple[Tensor | BadImage, int, str]
Ticket: TypeAlias = tuple[int, int]
"""Which sample, in which epoch."""


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
    on_bad_image: Literal["skip", "refuse"] = "refuse",
) -> DataLoader:
    """A DataLoader of `Batch`: `train` shuffles and draws augmentations, otherwise the order is that of `samples`.

    Bad images: with "refuse" the first one raises its BadImage in the process that iterates, also when a worker
    read it; with "skip" the batch goes without it and says so in `bad`. A batch may thus be smaller than `batch`,
    even empty: callers pass over batches with no image.

    Determinism: order and augmentations depend on the seed, the epoch and (for a dataset with an order) on the
    image, not on `workers` nor on what ran before, and no global generator is left changed. Each pass is the next
    epoch; `set_epoch` goes to another one.

    Training drops the last batch when it is incomplete, so that no batch norm sees a single image, unless it is the
    only one. A stream rounds its training pass up to whole batches instead: some images come twice.

    Workers ignore Ctrl-C, which the main process handles, and live until the loader is gone. Raises UserError.
    """
    if batch < 1 or workers < 0:
        raise UserError(f"batch is {batch} and workers is {workers}, but they should be at least 1 and 0")
    if on_bad_image not in ("skip", "refuse"):
        raise UserError(f"on_bad_image is {on_bad_image!r}, but it should be 'skip' or 'refuse'")
    ready: Dataset[Ready]
    sampler, drop_last = None, False
    if isinstance(samples, Stream):
        ready = _ReadyStream(samples, transform, seed if train else None)
        ready.samples.arrange(batch=batch, workers=workers, seed=seed)
    else:
        count = len(samples)  # type: ignore[arg-type]  # torch's Dataset promises no length; ours have one
        ready = _ReadySamples(samples, transform, seed)
        sampler = _ShuffledEpochs(count, seed) if train else None
        drop_last = train and count > batch
    return DataLoader(
        ready,
        batch_size=batch,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(collate, refuse=on_bad_image == "refuse"),
        worker_init_fn=_ignore_interrupt,
        pin_memory=torch.cuda.is_available(),
        # Without one, every pass would draw a number from the global generator.
        generator=torch.Generator().manual_seed(seed),
    )


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Make the next pass over a loader of `make_loader` that of `epoch`, counted from 0.

    A loader that Accelerate has prepared has a method of this name, and calls it at the start of every pass.
    """
    for part in (loader.sampler, loader.dataset):
        if isinstance(part, _ShuffledEpochs | _ReadyStream):
            part.set_epoch(epoch)


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


class _ShuffledEpochs(Sampler[Ticket]):
    """Every index once, in an order that depends on seed and epoch only; each pass is the next epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Ticket]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        generator = torch.Generator().manual_seed(_number("order", self.seed, epoch))
        order = torch.randperm(self.count, generator=generator).tolist()
        return ((index, epoch) for index in order)


class _ReadySamples(Dataset[Ready]):
    """Samples with the transform applied; a ticket's epoch seeds it, a plain index means nothing random."""

    def __init__(self, samples: Dataset[Sample], transform: Transform, seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]  # see make_loader

    def __getitem__(self, ticket: int | Ticket) -> Ready:
        return self.__getitems__([ticket])[0]

    # torch calls this with the tickets of a whole batch.
    def __getitems__(self, tickets: list[int | Ticket]) -> list[Ready]:
        with _global_generators_kept():
            return [self._ready(ticket) for ticket in tickets]

    def _ready(self, ticket: int | Ticket) -> Ready:
        index, epoch = ticket if isinstance(ticket, tuple) else (ticket, None)
        sample = self.samples[index]
        if epoch is not None:
            _seed_global_generators("image", self.seed, epoch, index)
        return _transformed(sample, self.transform)


class _ReadyStream(IterableDataset[Ready]):
    """A stream with the transform applied, seeded for each sample unless `seed` is None."""

    def __init__(self, samples: Stream, transform: Transform, seed: int | None) -> None:
        self.samples, self.transform, self.seed = copy.copy(samples), transform, seed
        # Shared with the workers: how often set_epoch was called, and with what.
        self.order = Array("q", [0, 0])
        self.obeyed, self.passes = 0, 0

    def set_epoch(self, epoch: int) -> None:
        with self.order.get_lock():
            self.order[:] = [self.order[0] + 1, epoch]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Ready]:
        calls, start = self.order[:]
        if calls != self.obeyed:
            self.obeyed, self.passes = calls, 0
        epoch, self.passes = start + self.passes, self.passes + 1
        self.samples.set_epoch(epoch)
        worker = get_worker_info()
        for count, sample in enumerate(self.samples):
            with _global_generators_kept():
                if self.seed is not None:
                    _seed_global_generators("stream", self.seed, epoch, worker.id if worker else 0, count)
                ready = _transformed(sample, self.transform)
            yield ready


def _transformed(sample: Sample, transform: Transform) -> Ready:
    image, target, name = sample
    return (image if isinstance(image, BadImage) else transform(image)), target, name


def _number(*key: str | int) -> int:
    """A 32-bit number that depends on `key` alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "big")


def _seed_global_generators(*key: str | int) -> None:
    """Seed what timm's and torchvision's augmentations draw from."""
    number = _number(*key)
    random.seed(number)
    np.random.seed(number)
    # Not torch.manual_seed: it would seed the GPUs as well.
    torch.default_generator.manual_seed(number)


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


def _ignore_interrupt(_worker: int) -> None:
    """Leave Ctrl-C to the main process, which ends its workers; else each of them prints a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
