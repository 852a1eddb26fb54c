"""What every source hands out: samples, in datasets with an order or in streams."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from parhelion.data.images import BadImage
from parhelion.errors import UserError

Split: TypeAlias = Literal["train", "val", "test"]

Sample: TypeAlias = tuple[Image.Image | BadImage, int, str]
"""The image, or why it cannot be read; its class number (-1: unknown, bad images only); its name."""

VAL_NAMES = ("val", "validation", "valid", "test")
"""What the evaluation split may be called, the preferred name first."""


@dataclass(frozen=True)
class Source:
    """What `--data` names, opened; a split that was not asked for is None."""

    name: str
    train: Dataset[Sample] | None
    val: Dataset[Sample] | None
    class_names: tuple[str, ...]
    test: Dataset[Sample] | None = None
    # What a user should know of what was found and left out, a clause each.
    remarks: tuple[str, ...] = ()

    def images(self, split: Split) -> Dataset[Sample]:
        """The images of a split that was asked for."""
        found = {"train": self.train, "val": self.val, "test": self.test}[split]
        assert found is not None, f"open the source with its {split} split"
        return found

    def line(self) -> str:
        """What was found, in a line: classes, images of each open split, and the remarks."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        # torch's Dataset promises no length; those of a source have one.
        counts = [f"{len(cast('Sized', images)):,} in {name}" for name, images in splits.items() if images is not None]
        found = f"{self.name}: {len(self.class_names)} classes, images: {', '.join(counts)}"
        return "; ".join([found, *self.remarks])


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process reads of the images that several train or evaluate on together."""

    process: int = 0
    processes: int = 1
    # Batches that make one update.
    parts: int = 1


class Stream(IterableDataset[Sample]):
    """Samples that come in the order in which they are stored, each worker of each process reading its share.

    `make_loader` calls `arrange` once and `go_to` before every pass, in the process that reads.
    """

    @abstractmethod
    def arrange(self, *, batch: int, workers: int, seed: int, share: Share) -> None:
        """Get ready for one loader; raises UserError when so many workers or processes cannot be fed."""

    @abstractmethod
    def go_to(self, epoch: int, batches: int) -> None:
        """Make the next pass that of `epoch`, each with an order of its own, without its first `batches` batches."""

    @abstractmethod
    def in_order(self) -> "Stream":
        """The same samples for evaluation, each of them once, in the order in which they are stored."""

    @abstractmethod
    def reader_number(self) -> int:
        """The number, among all readers, of the one whose part the process that calls this reads."""

    @abstractmethod
    def passed(self) -> int:
        """How many samples of that part the next pass leaves out."""

    @abstractmethod
    def __len__(self) -> int:
        """Samples in one pass over all workers of this process."""

    @abstractmethod
    def __iter__(self) -> Iterator[Sample]: ...


def val_name(present: Collection[str]) -> str | None:
    """What the evaluation split is called among `present`, if it is there."""
    return next((name for name in VAL_NAMES if name in present), None)


def split_name(split: Split, present: Collection[str]) -> str | None:
    """What `split` is called among `present`, if it is there."""
    if split == "val":
        return val_name(present)
    return split if split in present else None


def split_names(split: Split) -> str:
    """What `split` may be called, for a sentence."""
    return " or ".join(VAL_NAMES) if split == "val" else split


def numbered(count: int) -> tuple[str, ...]:
    """Class names for classes that have none: "0", "1" and so on."""
    return tuple(map(str, range(count)))


def opening_error(spec: str, data_dir: Path | None, error: Exception) -> UserError:
    """What to raise when the library behind `spec` could not open it."""
    reason = " ".join((str(error) or type(error).__name__).split())
    return UserError(f"cannot open '{spec}' in {data_dir or 'its default folder'}: {reason}")


def few(names: Sequence[Any], limit: int = 5) -> str:
    """The first names, comma-separated, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def image_count(samples: Dataset[Sample] | None) -> int:
    """Images in one split of a source; 0 for a split that was not opened."""
    # torch's Dataset promises no length; those of a source have one.
    return 0 if samples is None else len(cast("Sized", samples))
