"""wds/NAME: WebDataset shards (tar files) with the `_info.json` that timm's reader needs.

We read the tar files ourselves: timm's reader logs an image or a shard that it cannot read and goes on, and its
samples have no names.
"""

import copy
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby, islice
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from torch.utils.data import get_worker_info

from parhelion.data.images import ENDINGS, BadImage, open_image
from parhelion.data.samples import Sample, Share, Source, Split, Stream, few, numbered, split_name, split_names
from parhelion.errors import UserError

INFO_NAMES = ("_info.json", "info.json")
SHUFFLED_AT_ONCE = 2048
TRUNCATED = "it is truncated"

Record: TypeAlias = tuple[str, dict[str, bytes]] | BadImage
"""A sample as stored: its name and its files by ending; or why no more can be read of a shard."""


@dataclass(frozen=True)
class Shard:
    """A tar file and how many samples it should hold."""

    file: Path
    samples: int


class _Member(tarfile.TarInfo):
    """A header of a tar file. An archive ends with a block of zeros: to tarfile a damaged header ends it, too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            # Type checkers do not know these.
            kind = type(error).__name__
            if kind == "EOFHeaderError":
                raise
            truncated = kind in ("EmptyHeaderError", "TruncatedHeaderError")
            raise tarfile.ReadError(TRUNCATED if truncated else f"it is damaged ({error})") from error


class Shards(Stream):
    """The samples of one split; each worker of each process reads its own shards. A sample is named `shard.tar/key`.

    Training shuffles the shards, and the samples among the 2,048 read last. A pass has equally many whole batches in
    every process, whatever their shards hold: a reader starts over where its shards hold too few. So where shards do
    not divide evenly among readers, a pass repeats some images and misses others, and no process waits for another.
    """

    def __init__(
        self, shards: Sequence[Shard], *, train: bool, in_chans: int, class_count: int, label_field: str
    ) -> None:
        self.shards, self.train, self.in_chans = list(shards), train, in_chans
        self.class_count, self.label_field = class_count, label_field
        self.batch, self.workers, self.seed, self.share = 1, 1, 0, Share()
        self.epoch, self.done = 0, 0

    def arrange(self, *, batch: int, workers: int, seed: int, share: Share) -> None:
        self.batch, self.workers, self.seed, self.share = batch, max(1, workers), seed, share
        readers = self.workers * share.processes
        if self.train and readers > len(self.shards):
            on_each = f" on each of {share.processes} processes" if share.processes > 1 else ""
            raise UserError(
                f"{len(self.shards)} training shards in {self.shards[0].file.parent} cannot feed {self.workers} "
                f"workers{on_each}; give at least as many shards, or fewer workers or processes"
            )

    def go_to(self, epoch: int, batches: int) -> None:
        self.epoch, self.done = epoch, batches

    def in_order(self) -> "Shards":
        ordered = copy.copy(self)
        ordered.train = False
        return ordered

    def reader_number(self) -> int:
        return self.share.process * self.workers + self._turn()

    def passed(self) -> int:
        return max(0, -(-(self.done - self._turn()) // self.workers)) * self.batch

    def __len__(self) -> int:
        return self._batches() * self.batch if self.train else sum(shard.samples for shard in self._own())

    def __iter__(self) -> Iterator[Sample]:
        if not self.train:
            return map(self._sample, _records(self._own()[self._worker() :: self.workers]))
        # Every reader must shuffle the shards alike, and then its samples in its own way.
        order = Random(repr((self.seed, self.epoch))).sample(self.shards, len(self.shards))
        shards = order[self.share.process :: self.share.processes][self._turn() :: self.workers]
        own = Random(repr((self.seed, self.epoch, self.reader_number())))
        passes = (_shuffled(_some_records(shards), own) for _ in count())
        samples = -(-(self._batches() - self._turn()) // self.workers) * self.batch
        # What was passed is neither decoded nor transformed, only read.
        return map(self._sample, islice(chain.from_iterable(passes), self.passed(), samples))

    def _own(self) -> list[Shard]:
        """This process's shards in evaluation."""
        return self.shards[self.share.process :: self.share.processes]

    def _worker(self) -> int:
        worker = get_worker_info()
        return worker.id if worker else 0

    def _turn(self) -> int:
        """Which of the pass's readers this worker is: the first worker always gives the first batch that is read."""
        return (self._worker() + self.done) % self.workers

    def _batches(self) -> int:
        """Training batches of each process in a pass."""
        total = sum(shard.samples for shard in self.shards)
        return -(-total // (self.batch * self.share.processes * self.share.parts)) * self.share.parts

    def _sample(self, record: Record) -> Sample:
        if isinstance(record, BadImage):
            return record, -1, "unknown"
        name, files = record
        data = next((data for ending, data in files.items() if f".{ending}" in ENDINGS), None)
        if data is None:
            return BadImage(f"cannot read the image {name}: the sample holds {', '.join(files)} only"), -1, name
        target = self._target(files)
        if target is None:
            return BadImage(f"cannot use the image {name}: {self._why_no_label(files)}"), -1, name
        try:
            return open_image(io.BytesIO(data), self.in_chans, name=name), target, name
        except BadImage as bad:
            return bad.with_traceback(None), target, name

    def _target(self, files: dict[str, bytes]) -> int | None:
        try:
            target = int(json.loads(files["json"])[self.label_field] if self.label_field else files["cls"])
        except (LookupError, TypeError, ValueError):
            return None
        return target if 0 <= target < self.class_count else None

    def _why_no_label(self, files: dict[str, bytes]) -> str:
        if self.label_field:
            return f"its .json file has no '{self.label_field}' that is a number from 0 to {self.class_count - 1}"
        if "cls" in files:
            return f"its .cls file is no number from 0 to {self.class_count - 1}"
        if "json" in files:
            return (
                "it has no .cls file; if the class number is in its .json file, name the field in _info.json: "
                '"alt_label" of the split'
            )
        return f"it has no .cls file, only {', '.join(files)}"


def _some_records(shards: Sequence[Shard]) -> Iterator[Record]:
    """The records of all shards, for training; BadImages, first of all, where a pass would leave out or lack some."""
    empty = True
    for shard in shards:
        for read, record in enumerate(_records([shard])):
            if read == shard.samples and not isinstance(record, BadImage):
                yield BadImage(
                    f"cannot use the shard {shard.file}: it holds more than the {shard.samples} samples that "
                    "shard_lengths in _info.json says, and a pass would leave some out; correct the number"
                )
            yield record
            empty = False
    if empty:
        # Passes are repeated until there are enough samples, which would be for ever.
        yield BadImage(f"cannot read any sample of {few([shard.file for shard in shards])}")


def _records(shards: Iterable[Shard]) -> Iterator[Record]:
    """The records of all shards; a shard that ends too early adds a BadImage that says so."""
    for shard in shards:
        read, reason = 0, None
        try:
            with tarfile.open(shard.file, "r|*", tarinfo=_Member) as tar:
                files = (member for member in tar if member.isfile())
                for key, members in groupby(files, key=lambda member: _key_and_ending(member.name)[0]):
                    yield f"{shard.file.name}/{key}", {_key_and_ending(m.name)[1]: _bytes(tar, m) for m in members}
                    read += 1
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            reason = _why_unreadable(error)
        if reason is not None or read < shard.samples:
            reason = reason or "it holds no more; correct shard_lengths in _info.json"
            yield BadImage(f"cannot read more than {read} of {shard.samples} samples of {shard.file}: {reason}")


def _why_unreadable(error: Exception) -> str:
    # What tarfile says of one that ends within a member, and within its first header.
    if isinstance(error, EOFError) or str(error) in ("unexpected end of data", "truncated header", "empty file"):
        return TRUNCATED
    return getattr(error, "strerror", None) or str(error)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    return stream.read() if stream else b""


def _key_and_ending(path: str) -> tuple[str, str]:
    """`folder/0017` and `jpg` for `folder/0017.JPG`: WebDataset cuts a file name at its first dot."""
    folder, slash, name = path.rpartition("/")
    key, _, ending = name.partition(".")
    return folder + slash + key, ending.lower()


def _shuffled(records: Iterable[Record], random: Random) -> Iterator[Record]:
    """The records in another order; what cannot be read is told at once."""
    held: list[Record] = []
    for record in records:
        if isinstance(record, BadImage):
            yield record
        elif len(held) < SHUFFLED_AT_ONCE:
            held.append(record)
        else:
            chosen = random.randrange(len(held))
            yield held[chosen]
            held[chosen] = record
    random.shuffle(held)
    yield from held


def open_shards(spec: str, *, data_dir: Path | None, download: bool, in_chans: int, splits: Sequence[Split]) -> Source:
    """The shards in `data_dir` as a source; `spec` only names it, as in timm. Raises UserError."""
    if data_dir is None or not data_dir.is_dir():
        raise UserError(f"'{spec}' needs a data_dir that is the folder of its shards, not {data_dir}")
    if download:
        raise UserError(f"'{spec}' cannot be downloaded; put its shards into {data_dir} and leave download off")
    info = _info(spec, data_dir)
    class_names = _class_names(spec, info, data_dir)
    opened = {split: _shards(spec, split, info, data_dir, in_chans, len(class_names)) for split in splits}
    return Source(spec, opened.get("train"), opened.get("val"), class_names, opened.get("test"))


def _info(spec: str, folder: Path) -> dict[str, Any]:
    for name in INFO_NAMES:
        if (folder / name).is_file():
            try:
                info = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / name} is not valid JSON: {error}") from error
            if isinstance(info, dict) and isinstance(info.get("splits"), dict):
                return info
            raise UserError(f'{folder / name} should be a JSON object with an entry "splits", but has none')
    raise UserError(
        f"'{spec}' needs a file _info.json beside its shards in {folder}, such as "
        '{"class_names": ["cat", "dog"], "splits": {"train": {"filenames": ["train-0.tar"], "shard_lengths": [1000]}}}'
    )


def _class_names(spec: str, info: dict[str, Any], folder: Path) -> tuple[str, ...]:
    names, number = info.get("class_names"), info.get("num_classes")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    if isinstance(number, int) and number > 0:
        return numbered(number)
    raise UserError(
        f"the _info.json of '{spec}' in {folder} does not tell the classes; add "
        '"class_names": [...] in the order of the class numbers, or "num_classes": their count'
    )


def _shards(spec: str, split: Split, info: dict[str, Any], folder: Path, in_chans: int, class_count: int) -> Shards:
    present = info["splits"]
    name = split_name(split, present)
    if name is None:
        raise UserError(
            f"'{spec}' in {folder} has the splits {', '.join(present)}, but it should have {split_names(split)}"
        )
    return Shards(
        _listed(f"split {name} of '{spec}'", present[name], folder),
        train=split == "train",
        in_chans=in_chans,
        class_count=class_count,
        label_field=present[name].get("alt_label", ""),
    )


def _listed(whose: str, entry: dict[str, Any], folder: Path) -> list[Shard]:
    """The shards of a split that hold samples; its `entry` of the info file lists them. Raises UserError."""
    names, lengths = entry.get("filenames"), entry.get("shard_lengths")
    if not names or not lengths or len(names) != len(lengths):
        raise UserError(
            f'{whose} in {folder} should list its "filenames" and as many "shard_lengths" (samples in each) in '
            "_info.json"
        )
    wrong = [length for length in lengths if not isinstance(length, int) or isinstance(length, bool) or length < 0]
    if wrong:
        shown = few([json.dumps(length) for length in wrong])
        raise UserError(f'"shard_lengths" of {whose} in {folder} should be whole numbers, at least 0, not {shown}')
    missing = [file for file in names if not (folder / file).is_file()]
    if missing:
        raise UserError(f"shards of {whose} are missing in {folder}: {few(missing)}")
    shards = [Shard(folder / file, length) for file, length in zip(names, lengths, strict=True)]
    # One without samples would leave its reader with nothing to read.
    left_out = [shard.file for shard in shards if not shard.samples and not _is_empty(shard.file)]
    if left_out:
        raise UserError(f'"shard_lengths" of {whose} says 0 for shards that are not empty: {few(left_out)}')
    if not any(lengths):
        raise UserError(f'{whose} in {folder} has no sample: its "shard_lengths" are all 0')
    return [shard for shard in shards if shard.samples]


def _is_empty(file: Path) -> bool:
    try:
        with tarfile.open(file, "r|*") as tar:
            return tar.next() is None
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        # Not even a header: an interrupted download, or a file of no bytes.
        return file.stat().st_size == 0
