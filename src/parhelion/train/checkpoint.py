"""Checkpoints of a run under way: a folder each, whole or not there, checked by sums when read.

A checkpoint holds tensors as safetensors, a file per process that wrote (torch.distributed.checkpoint with its
safetensors format, so that another number of processes can read them), and `state.json`: facts, and the length and
SHA-256 of every file. It is written under another name and renamed when all of it is on the disk.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from parhelion.errors import UserError, printable
from parhelion.files.atomic import flush_to_disk

FORMAT_VERSION = 2
STATE = "state.json"
PIECE = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole: its folder and its facts."""

    folder: Path
    facts: dict[str, Any]

    def shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every tensor by name."""
        found: dict[str, Any] = HuggingFaceStorageReader(str(self.folder)).read_metadata().state_dict_metadata
        return {name: (entry.size, entry.properties.dtype) for name, entry in found.items()}

    def read(self, into: dict[str, Tensor]) -> None:
        """Fill the tensors of `into` in place; each process of a sharded run fills its own parts."""
        with _quiet_alone():
            dcp.load(into, storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=not dist.is_initialized())


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; the newest `keep` stay."""

    def __init__(self, folder: Path, accelerator: Accelerator, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._accelerator = accelerator

    def save(self, update: int, tensors: dict[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write one, then remove those that are too many. All processes call this; UserError in all if one fails."""
        final, temporary = self.folder / f"{update:09d}", self.folder / f".{update:09d}"
        self._together(lambda: self._make_empty(temporary), on_main_only=True)
        self._together(lambda: _write_tensors(temporary, tensors))
        self._together(lambda: self._complete(temporary, final, facts), on_main_only=True)

    def newest(self, note: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, or None; `note` is called with a sentence about each damaged one.

        Raises UserError where a checkpoint is of another format.
        """
        for folder in sorted(self._folders(), reverse=True):
            reason = why_not_whole(folder)
            if reason is None:
                facts = json.loads((folder / STATE).read_text(encoding="utf-8"))["facts"]
                return Checkpoint(folder, facts)
            note(f"{folder} is damaged ({reason}); going back to the checkpoint before it")
        return None

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("[0-9]*") if path.is_dir()] if self.folder.is_dir() else []

    def _make_empty(self, temporary: Path) -> None:
        # Also what a run that was killed while it saved has left.
        self._remove_unfinished()
        temporary.mkdir(parents=True)

    def _remove_unfinished(self) -> None:
        for left in self.folder.glob(".[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)

    def _complete(self, temporary: Path, final: Path, facts: Mapping[str, Any]) -> None:
        files = {path.name: _sum(path) for path in sorted(temporary.iterdir())}
        state = {"format": FORMAT_VERSION, "files": files, "facts": dict(facts)}
        state["sum"] = _sum_of_state(state)
        text = printable(json.dumps(state, indent=1, allow_nan=False, ensure_ascii=False))
        (temporary / STATE).write_text(text, encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            flush_to_disk(path)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        flush_to_disk(self.folder)
        for old in sorted(self._folders())[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _together(self, act: Callable[[], None], *, on_main_only: bool = False) -> None:
        """Run `act`, in the first process only if so wanted; if it fails in one process, raise UserError in all."""
        sentence = None
        if self._accelerator.is_main_process or not on_main_only:
            try:
                act()
            except OSError as error:
                sentence = f"cannot write a checkpoint to {self.folder}: {error.strerror or error}"
            except dcp.api.CheckpointException as error:
                cause = next(iter(error.failures.values()))[0]
                sentence = f"cannot write a checkpoint to {self.folder}: {getattr(cause, 'strerror', None) or cause}"
        if self._accelerator.num_processes > 1 and on_main_only:
            (sentence,) = broadcast_object_list([sentence])
        if sentence is not None:
            self._remove_unfinished()
            raise UserError(f"{sentence}; the checkpoint before it is still good")


def why_not_whole(folder: Path) -> str | None:
    """Why the checkpoint in `folder` cannot be used, or None. Raises UserError where it is of another format."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        version, written, files = state["format"], state.pop("sum"), state["files"]
        damaged = [name for name, entry in files.items() if _sum(folder / name) != entry]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} or a file that it names cannot be read: {error}"
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise UserError(
            f"{folder} is of checkpoint format {version}, but this parhelion reads format {FORMAT_VERSION}; "
            "resume with the parhelion that wrote it"
        )
    if written != _sum_of_state(state):
        return f"{STATE} was changed"
    return f"{damaged[0]} is not what was written" if damaged else None


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    with _quiet_alone():
        dcp.save(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            no_dist=not dist.is_initialized(),
        )


def _sum(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sum_of_state(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _quiet_alone() -> Iterator[None]:
    """Without torch's warnings that a checkpoint is written by a single process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
