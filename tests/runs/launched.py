"""Commands in several processes under torchrun's agent, on this machine's CPU.

The agent and its workers are forked from this process, since a new one needs seconds to import torch. All that torchrun
does beyond reading its command line is done: the store, the environment, restarts, signals.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from parhelion.cli import main

FORK = get_context("fork")


@dataclass(frozen=True)
class Launched:
    """The agent of a launch, and where it and its workers write."""

    agent: BaseProcess
    folder: Path

    def code(self, seconds: float = 100) -> int:
        """How the agent ended: 0 if all workers did well."""
        self.agent.join(seconds)
        assert self.agent.exitcode is not None, f"still running after {seconds} s:\n{self.out}{self.err}"
        return self.agent.exitcode

    @property
    def out(self) -> str:
        """What was printed so far."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """What was printed so far as errors and warnings."""
        return (self.folder / "err").read_text()

    def workers(self) -> list[int]:
        """The ids of the newest workers' processes, by rank."""
        return [int(file.read_text()) for file in sorted(self.folder.glob("worker*"))]


@contextmanager
def launched(folder: Path, work: Callable[[], Any], *, processes: int = 2, restarts: int = 0) -> Iterator[Launched]:
    """Do `work` in every process, begun in the new `folder`, and end what is still running in the end."""
    folder.mkdir()
    agent = FORK.Process(target=_agent, args=(folder, work, processes, restarts))
    for name in ("out", "err"):
        (folder / name).touch()
    agent.start()
    try:
        yield Launched(agent, folder)
    finally:
        if agent.is_alive():
            agent.terminate()
            agent.join(30)
        agent.kill()


def in_processes(folder: Path, commands: list[list[str]], *, processes: int = 2) -> tuple[list[list[int]], Launched]:
    """The exit codes of command lines that every process runs one after the other, by process; and what they said."""

    def work() -> None:
        codes = [main(words) for words in commands]
        (folder / f"codes{os.environ['RANK']}").write_text(" ".join(map(str, codes)))

    with launched(folder, work, processes=processes) as launch:
        assert launch.code() == 0, launch.out + launch.err
    return [[int(code) for code in file.read_text().split()] for file in sorted(folder.glob("codes*"))], launch


def ends_with_code(words: list[str]) -> Callable[[], None]:
    """A process that runs a command line and ends as it does, as `torchrun -m parhelion.cli` has it."""

    def work() -> None:
        sys.exit(main(words))

    return work


def _agent(folder: Path, work: Callable[[], Any], processes: int, restarts: int) -> None:
    """torchrun --standalone, but for its command line."""
    for number, name in ((1, "out"), (2, "err")):
        stream = open(folder / name, "a", buffering=1)  # noqa: SIM115  stays open as long as the process
        os.dup2(stream.fileno(), number)
        setattr(sys, f"std{name}", stream)

    def worker() -> None:
        torch.set_num_threads(1)
        # This process has been a run's only one before.
        AcceleratorState._reset_state(reset_partial_state=True)
        (folder / f"worker{os.environ['RANK']}").write_text(str(os.getpid()))
        work()

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",
    )
    try:
        elastic_launch(config, worker)()
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until `condition` holds, or for so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
