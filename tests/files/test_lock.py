import errno
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parhelion.errors import UserError
from parhelion.files import lock
from parhelion.files.lock import LOCK, RunLock

FORK = multiprocessing.get_context("fork")


@contextmanager
def in_another_process(act: Callable[[], object]) -> Iterator[int]:
    """The number of a process that did `act`, and then waits to be killed."""
    done = FORK.Event()

    def first_act() -> None:
        act()
        done.set()
        time.sleep(600)

    process = FORK.Process(target=first_act)
    process.start()
    try:
        assert done.wait(60)
        yield process.pid
    finally:
        process.kill()
        process.join()


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        RunLock(folder).take()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_record_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows none, as some clusters have it."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)


@pytest.fixture(params=["record locks", "no record locks"])
def either(request: pytest.FixtureRequest) -> None:
    if request.param == "no record locks":
        request.getfixturevalue("no_record_locks")


@pytest.mark.usefixtures("either")
def test_a_second_process_is_told_who_has_the_lock_until_that_one_is_killed(tmp_path: Path) -> None:
    def train() -> None:
        RunLock(tmp_path).take()
        # A worker, which outlives the process that is killed.
        FORK.Process(target=time.sleep, args=(3,)).start()

    with in_another_process(train) as process:
        sentence = refused(tmp_path)
        assert f"the run in {tmp_path} is in use by process {process} on {socket.gethostname()} since 20" in sentence
        before = (tmp_path / LOCK).read_bytes()
        # Asking leaves the lock where it is.
        assert str(process) in refused(tmp_path)
        assert (tmp_path / LOCK).read_bytes() == before
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with RunLock(tmp_path) as held:
            held.take()
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("either")
def test_a_process_locks_itself_out_and_its_forked_children_free_nothing(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as held:
        held.take()
        assert f"process {os.getpid()}" in refused(tmp_path / "run")
        assert f"process {os.getpid()}" in refused(tmp_path / "other" / ".." / "run")
        with in_another_process(held.free):
            assert (tmp_path / "run" / LOCK).exists()
    with RunLock(tmp_path / "run") as again:
        again.take()


def test_a_file_that_was_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lockf, removed = lock.fcntl.lockf, []

    def late(*words: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        lockf(*words)

    monkeypatch.setattr(lock.fcntl, "lockf", late)
    with RunLock(tmp_path) as held:
        held.take()
        with in_another_process(lambda: refused(tmp_path)):
            pass
        assert (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_another_machine_holds_while_it_touches_the_file(tmp_path: Path) -> None:
    file = tmp_path / LOCK
    file.write_text(json.dumps({"host": "elsewhere", "process": os.getpid(), "since": "2026-01-02T03:04:05+00:00"}))
    sentence = refused(tmp_path)
    assert f"process {os.getpid()} on elsewhere since 2026-01-02T03:04:05+00:00" in sentence
    assert f"if that process is gone for good, remove {file}" in sentence
    old = time.time() - lock.STALE_SECONDS - 1
    os.utime(file, (old, old))
    with RunLock(tmp_path) as held:
        held.take()


@pytest.mark.usefixtures("no_record_locks")
def test_without_record_locks_the_holder_touches_the_file_and_a_reused_number_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.01)
    # A process of this number lives, but it is another one.
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "started": "1"}))
    with RunLock(tmp_path) as held:
        held.take()
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 60
        while (tmp_path / LOCK).stat().st_mtime < 1 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file" / "run") == f"cannot write {tmp_path / 'file' / 'run' / LOCK}: Not a directory"
