"""tfds/NAME: TensorFlow Datasets, read through timm."""

import copy
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import get_worker_info

from parhelion.data.images import MODES, BadImage, as_mode
from parhelion.data.samples import Sample, Share, Source, Split, Stream, opening_error, split_name, split_names
from parhelion.errors import UserError


class TimmStream(Stream):
    """A streaming reader of timm's; a sample is named `tfds/NAME:split/17`, counted by each worker for itself."""

    def __init__(self, name: str, reader: Any, in_chans: int) -> None:
        self.name, self.reader, self.in_chans = name, reader, in_chans
        self.batch, self.workers, self.done = 1, 0, 0

    def arrange(self, *, batch: int, workers: int, seed: int, share: Share) -> None:
        if share.processes > 1:
            raise UserError(f"{self.name} is a stream of timm's, which {share.processes} processes cannot share")
        self.batch, self.workers = batch, workers
        self.reader.batch_size, self.reader.common_seed = batch, seed
        self.reader.dist_rank, self.reader.dist_num_replicas = 0, 1
        self.reader.set_loader_cfg(num_workers=workers)

    def go_to(self, epoch: int, batches: int) -> None:
        if batches and self.workers > 1:
            raise UserError(
                f"{self.name}, read by {self.workers} workers, cannot go on in the middle of an epoch; read it with "
                "--workers 0 or 1, or with --checkpoint-updates 0"
            )
        self.reader.set_epoch(epoch)
        self.done = batches

    def in_order(self) -> "TimmStream":
        reader = copy.copy(self.reader)
        # What timm's reader was told when it was made to train: shuffle, start over, round up to whole batches.
        reader.is_training = reader.reinit_each_iter = False
        return TimmStream(self.name, reader, self.in_chans)

    def reader_number(self) -> int:
        worker = get_worker_info()
        return worker.id if worker else 0

    def passed(self) -> int:
        return self.done * self.batch

    def __len__(self) -> int:
        return len(self.reader)

    def __iter__(self) -> Iterator[Sample]:
        for number, (image, target) in islice(enumerate(self.reader), self.passed(), None):
            name = f"{self.name}/{number}"
            try:
                yield as_mode(image, self.in_chans, name=name), int(target), name
            except BadImage as bad:
                yield bad.with_traceback(None), int(target), name


def open_tensorflow(
    spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]
) -> Source:
    """The data set `spec` as a source, kept in `data_dir`; raises UserError."""
    if getattr(find_spec("tensorflow_datasets"), "origin", None) is None:
        raise UserError(
            f"'{spec}' needs the package tensorflow-datasets, which is not installed: "
            "pip install tensorflow-datasets tensorflow"
        )
    try:
        readers = {split: _reader(spec, split, data_dir, download, in_chans) for split in splits}
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, AssertionError) as error:
        raise opening_error(spec, data_dir, error) from error
    opened = {split: TimmStream(f"{spec}:{split}", reader, in_chans) for split, reader in readers.items()}
    class_names = [_class_names(spec, reader) for reader in readers.values()]
    return Source(
        spec, opened.get("train"), opened.get("val"), max(class_names, key=len, default=()), opened.get("test")
    )


def _reader(spec: str, split: Split, data_dir: Path | None, download: bool, in_chans: int) -> Any:
    # Takes seconds, and only named sources need it.
    from timm.data import create_dataset

    tensorflow_datasets = import_module("tensorflow_datasets")
    root = data_dir and str(data_dir)
    present = tensorflow_datasets.builder(spec.partition("/")[2], data_dir=root).info.splits
    name = split_name(split, present)
    if name is None and not download:
        raise UserError(
            f"'{spec}' has the splits {', '.join(present) or 'none'}, but it should have {split_names(split)}"
        )
    return create_dataset(
        spec,
        root=root,
        # Not downloaded yet, so that the name is a guess.
        split=name or ("validation" if split == "val" else split),
        is_training=split == "train",
        download=download,
        input_img_mode=MODES[in_chans],
    ).reader


def _class_names(spec: str, reader: Any) -> tuple[str, ...]:
    names = tuple(reader.class_to_idx)
    if not names:
        raise UserError(f"'{spec}' does not tell its classes: it should have a feature 'label' of class labels")
    return names
