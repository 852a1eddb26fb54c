"""A run that is asked to stop: it saves first, and says by its exit code who asked."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# How long a process that was asked to stop still waits for images: well within the 30 s that launchers and clusters
# wait before they kill.
PATIENCE_SECONDS = 10.0


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """The run was asked to stop and has saved; `code` is what the process should exit with."""

    def __init__(self, code: int, sentence: str = "stopped") -> None:
        super().__init__(sentence)
        self.code = code


class StopRequest:
    """Listens for Ctrl-C and SIGTERM while it is entered: the first asks, a second Ctrl-C interrupts at once.

    Outside the main thread, where Python delivers no signals, it listens to nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._waits = self._overdue = False
        self._timer: threading.Timer | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal is not None

    def obey(self, *, agreed: bool = False) -> None:
        """Raise Stopped if somebody asked, or if the processes agreed that one of them was asked."""
        if self.asked or agreed:
            raise Stopped(128 + (self.signal or signal.SIGTERM))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for images in this: if somebody asks, or has asked, for `PATIENCE_SECONDS` at most, then raise Stopped.

        An update under way should end, but not wait for ever for a worker that is stuck.
        """
        self._waits = True
        if self.asked:
            self._lose_patience()
        try:
            yield
        finally:
            self._waits = self._overdue = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # A shell starts background jobs deaf to Ctrl-C; they stay so.
            self._before = {
                number: signal.signal(number, self._hear)
                for number in SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self._overdue:
            self._overdue = False
            if self._waits:
                raise Stopped(128 + (self.signal or number), "stopped while waiting for images")
            return
        if number == signal.SIGINT and self.asked:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this update; once more Ctrl-C stops at once", file=sys.stderr, flush=True)
        if self._waits:
            self._lose_patience()

    def _lose_patience(self) -> None:
        """Signal this process again after `PATIENCE_SECONDS`: a handler alone can interrupt what waits."""
        number, waiting = self.signal, threading.get_ident()
        if self._timer is not None or number not in self._before or not hasattr(signal, "pthread_kill"):
            return

        def interrupt() -> None:
            self._overdue = True
            signal.pthread_kill(waiting, signal.Signals(number))

        self._timer = threading.Timer(PATIENCE_SECONDS, interrupt)
        self._timer.daemon = True
        self._timer.start()
