"""Work in processes of its own, forked from this one, so that a crash or a hang costs that work only.

This process must not have touched a GPU: what CUDA sets up does not survive a fork.
"""

import faulthandler
import multiprocessing
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import torch

# Kept of what a process printed.
LAST_LINES, LAST_BYTES = 12, 2**14
POLL_SECONDS, KILLED_SECONDS = 0.2, 5.0
FAILED = 1
NO_TIME = "there was no time for it"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a process ended."""

    code: int  # the exit code; -9 where signal 9 ended it
    seconds: float
    timed_out: bool
    last_lines: tuple[str, ...]  # of what it printed


def forked(work: Callable[[], int], *, seconds: float, tell: Callable[[bytes], None]) -> Ending:
    """Do `work`, which returns an exit code, in another process, and end it with all its children after `seconds`.

    tell: Given what the process prints, as it comes.
    """
    check_no_gpu()
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work_and_exit(work, writing, seconds)
    os.close(writing)
    last, status, until = b"", None, started + seconds
    try:
        while status is None and time.monotonic() < until:
            last = _read(reading, tell, last, POLL_SECONDS)
            status = _status(child)
        timed_out = status is None
    finally:
        # Children that it left behind would go on computing beside the next one.
        _end_group(child)
    # A process that waits for a GPU in the kernel may not even end when it is killed.
    until = time.monotonic() + KILLED_SECONDS
    while status is None and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        status = _status(child)
    last = _read(reading, tell, last, 2 * POLL_SECONDS)
    os.close(reading)
    return Ending(
        code=-signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status),
        seconds=time.monotonic() - started,
        timed_out=timed_out,
        last_lines=tuple(last.decode(errors="replace").splitlines()[-LAST_LINES:]),
    )


def _status(child: int) -> int | None:
    """How it ended, None if it did not yet."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return status if ended else None


def _work_and_exit(work: Callable[[], int], writing: int, seconds: float) -> None:
    code = FAILED
    try:
        os.setpgid(0, 0)
        for descriptor in (1, 2):
            os.dup2(writing, descriptor)
        os.close(writing)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
        # A crash, and a hang shortly before it is ended, say where they are.
        faulthandler.enable(sys.stderr)
        faulthandler.dump_traceback_later(max(0.1, seconds - 1), file=sys.stderr)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _read(reading: int, tell: Callable[[bytes], None], last: bytes, seconds: float) -> bytes:
    """Tell what comes within some seconds, or until nothing more will; `last` with it, cut to its end."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        some = os.read(reading, 2**16)
        if not some:
            # All writers are gone; the end of the process is waited for elsewhere.
            time.sleep(max(0.0, until - time.monotonic()))
            break
        tell(some)
        last = (last + some)[-LAST_BYTES:]
    return last


def _end_group(child: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def apart(
    tasks: Mapping[str, Callable[[], Any]], *, workers: int, deadline: float
) -> Iterator[tuple[str, Any, str | None]]:
    """Do `tasks`, some at a time, each in a process of its own; gives (name, result, why it has none) as they end.

    deadline: When those that run are ended, by `time.monotonic`.
    """
    check_no_gpu()
    context = multiprocessing.get_context("fork")
    waiting, running = list(tasks), dict[Any, tuple[str, Any]]()
    while waiting or running:
        while waiting and len(running) < workers and time.monotonic() < deadline:
            name = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(tasks[name], sender))
            process.start()
            sender.close()
            running[receiver] = (name, process)
        if time.monotonic() >= deadline:
            for _, process in running.values():
                process.kill()
            yield from ((name, None, NO_TIME) for name in waiting)
            waiting.clear()
        for receiver in wait(list(running), timeout=POLL_SECONDS):
            name, process = running.pop(receiver)
            try:
                yield name, *receiver.recv()
            except EOFError:
                process.join()
                yield name, None, _ended(process.exitcode, late=time.monotonic() >= deadline)
            process.join()
            receiver.close()


def _send(task: Callable[[], Any], sender: Any) -> None:
    # What it prints about itself would stand among the lines of others.
    try:
        answer = (task(), None)
    except Exception as error:
        answer = (None, sentence(error))
    sender.send(answer)
    sender.close()


def _ended(code: int | None, *, late: bool) -> str:
    if late:
        return NO_TIME
    return f"its process ended with signal {-code}" if code is not None and code < 0 else f"it ended with code {code}"


def check_no_gpu() -> None:
    """Raise RuntimeError where this process uses a GPU, and so can no longer be forked."""
    if torch.cuda.is_initialized():
        raise RuntimeError("this process uses a GPU, so that none that is forked from it can")


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "it runs out of GPU memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # Some say in the first line only that something was raised.
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
