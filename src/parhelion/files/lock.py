"""The lock on a run's folder: one process writes there, however many were started.

Where the file system knows record locks (fcntl), the kernel, or the file server, keeps the lock and frees it when the
process ends, however it ends. Record locks rather than flock, because a forked child inherits flock's, and the
workers of a killed run outlive it by some seconds. They belong to a process, so nothing else in it may open and close
the file while it is held.

Where there are no record locks, what the file says decides: a process of this machine holds the lock while it lives,
one of another machine while the file was touched within `STALE_SECONDS`. A file system that grants locks to each
machine separately (NFS mounted with `nolock`, sshfs) protects from processes of the same machine only.
"""

import errno
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from parhelion.errors import UserError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
HELD = (errno.EACCES, errno.EAGAIN)
# Without record locks: how often the holder touches the file, and after how long without it the lock is free.
TOUCH_SECONDS = 60.0
STALE_SECONDS = 600.0
# Without record locks two processes may take the lock at once; the one that wrote last keeps it.
SETTLE_SECONDS = 1.0

# The folders that this process holds: to the kernel a process never locks out itself. With its number, as a forked
# child has a copy.
_ours: dict[Path, int] = {}


class RunLock:
    """The lock on the run in `folder`; a context manager, which frees what was taken."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / LOCK
        self._key = folder.resolve()
        self._descriptor: int | None = None
        self._mark: dict[str, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.free()

    def take(self) -> None:
        """Take the lock, making the folder. Raises UserError where another process has it, or nobody can write."""
        self._mark = _mine()
        if _ours.get(self._key) == os.getpid():
            raise UserError(self._taken(self._mark))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock_file()
            self._write()
        except OSError as error:
            self._close()
            raise UserError(f"cannot write {self.file}: {error.strerror or error}") from error
        except UserError:
            self._close()
            raise
        _ours[self._key] = os.getpid()

    def free(self) -> None:
        """Free the lock, if it was taken; the file goes."""
        if self._descriptor is None or _ours.get(self._key) != os.getpid():
            return
        self._over.set()
        # While it is still locked, so that nobody else's file goes.
        with suppress(OSError):
            self.file.unlink()
        self._close()
        del _ours[self._key]

    def _lock_file(self) -> None:
        """Open the file and lock it. Raises UserError where another process has the lock."""
        while True:
            # Not inherited by programs that this one starts.
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
            holder = _holder(self._descriptor)
            if not _lock(self._descriptor, self._taken(holder)):
                self._take_by_word(holder)
            # The holder before may have removed the file after it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._descriptor), self.file.stat()):
                    return
            self._close()

    def _take_by_word(self, holder: dict[str, Any]) -> None:
        """Take the lock where there are no record locks. Raises UserError where `holder`, the last one, has it."""
        if self._is_held_by(holder):
            raise UserError(f"{self._taken(holder)}; if that process is gone for good, remove {self.file}")
        self._write()
        time.sleep(SETTLE_SECONDS)
        assert self._descriptor is not None
        now = _holder(self._descriptor)
        if now != self._mark:
            raise UserError(self._taken(now))
        threading.Thread(target=self._touch, daemon=True).start()

    def _is_held_by(self, holder: dict[str, Any]) -> bool:
        alive = _is_alive(holder)
        if alive is not None:
            return alive
        return bool(holder) and time.time() - self.file.stat().st_mtime < STALE_SECONDS

    def _touch(self) -> None:
        while not self._over.wait(TOUCH_SECONDS):
            with suppress(OSError):
                os.utime(self.file)

    def _write(self) -> None:
        assert self._descriptor is not None
        text = json.dumps(self._mark).encode()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text)
        os.ftruncate(self._descriptor, len(text))
        os.fsync(self._descriptor)

    def _taken(self, holder: dict[str, Any]) -> str:
        who = f"process {holder.get('process', '(unknown)')} on {holder.get('host', 'an unknown host')}"
        return f"the run in {self.folder} is in use by {who} since {holder.get('since', 'an unknown time')}"

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(descriptor: int) -> dict[str, Any]:
    """What the file says of who wrote it; nothing where it says nothing, or nothing whole."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        said = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _lock(descriptor: int, taken: str) -> bool:
    """Lock the file; False where the file system has no record locks. Raises UserError `taken` where it is locked."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            raise UserError(f"{taken}; wait until it has ended, or stop it") from None
        # ENOLCK, ENOTSUP, ENOSYS, EINVAL: each file system has its own way to say so.
        return False
    return True


def _mine() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether the process `holder` lives; None where that cannot be told: it is another machine's, or Windows."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int) or os.name != "posix":
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # Another process may have got the number since.
    return holder.get("started") == _started(process)


def _started(process: int) -> str | None:
    """When `process` started, in ticks since the machine did; None where the system does not tell."""
    try:
        # The name of the program, in brackets, may hold anything.
        return (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    except (OSError, IndexError):
        return None
