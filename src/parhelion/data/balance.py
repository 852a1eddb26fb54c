"""Long tails: how often each class comes, and what gives every class the same share of training."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from parhelion.data.samples import Sample
from parhelion.errors import UserError


@runtime_checkable
class Labelled(Protocol):
    """A data set that knows the classes of its images without reading them."""

    def class_numbers(self) -> Sequence[int]:
        """The class number of every sample, in the order of the samples."""


def class_numbers(samples: Dataset[Sample], *, source: str, field: str) -> Tensor:
    """The class number of every sample, (N,) int64. Raises UserError for a stream, which `source` and `field` name."""
    if not isinstance(samples, Labelled):
        raise UserError(
            f"{field} is balanced, but {source} is a stream: how often its classes come is not known before it is read"
        )
    return torch.as_tensor(samples.class_numbers(), dtype=torch.int64)


def class_weights(numbers: Tensor, classes: int) -> Tensor:
    """N / (K * n) for each class, (classes,) float32: N images, K classes that have any, n of them in this class.

    The mean over the images is 1, so that the loss and the learning rate keep their scale. A class without images has
    weight 0.
    """
    counts = torch.bincount(numbers, minlength=classes).double()
    weights = counts.sum() / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 0.0).float()


class Balanced(Dataset[Sample]):
    """Samples whose training order has every class equally often; see `order`."""

    def __init__(self, samples: Dataset[Sample], numbers: Tensor) -> None:
        """numbers: The class number of every sample, (N,)."""
        self.samples, self.numbers = samples, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def order(self, generator: torch.Generator) -> list[int]:
        """As many indices as there are samples, each class as often as any other but for one.

        Images of a class that has more than its share take turns from epoch to epoch, at random; those of a class that
        has fewer come again, equally often but for one.
        """
        present = self.numbers.unique()
        quota = torch.full((len(present),), len(self) // len(present))
        quota[torch.randperm(len(present), generator=generator)[: len(self) % len(present)]] += 1
        chosen = [
            _drawn((self.numbers == number).nonzero()[:, 0], count, generator)
            for number, count in zip(present.tolist(), quota.tolist(), strict=True)
        ]
        indices = torch.cat(chosen)
        return indices[torch.randperm(len(indices), generator=generator)].tolist()


def repeats(order: Sequence[int]) -> list[int]:
    """How often each entry of `order` came before it."""
    seen: Counter[int] = Counter()
    before = []
    for index in order:
        before.append(seen[index])
        seen[index] += 1
    return before


def _drawn(members: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `members` at random, none again before all have come."""
    rounds = -(-count // len(members))
    return torch.cat([members[torch.randperm(len(members), generator=generator)] for _ in range(rounds)])[:count]
