"""How far long work has come: a bar with rate and time left on a terminal, a few plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from parhelion.errors import printable

# Elsewhere than on a terminal: a line for each tenth of the work, and not more often than this.
PLAIN_TENTHS = 10
PLAIN_SECONDS = 10.0


class Progress:
    """Progress over `total` images. Use as a context manager; everything goes to standard output."""

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self.total = max(1, total)
        self.quiet = quiet
        self._done = 0
        self._started = self._printed = time.monotonic()
        self._tenths = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._started = self._printed = time.monotonic()
        if not self.quiet and sys.stdout.isatty():
            self._bar = _rich_bar()
            self._task = self._bar.add_task("", total=self.total, rate="", left="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, images: int, text: str = "") -> None:
        """Count `images` more as done; `text` says what the work is at."""
        self._done += images
        elapsed = max(1e-9, time.monotonic() - self._started)
        rate = f"{self._done / elapsed:.0f} images/s"
        left = f"{span(elapsed * max(0, self.total - self._done) / max(1, self._done))} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=min(self._done, self.total), description=text, rate=rate, left=left)
        elif not self.quiet:
            self._plain(f"{text}  {rate}  {left}")

    def line(self, text: str) -> None:
        """Print `text` above the bar, to stay."""
        text = printable(text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        elif not self.quiet:
            print(text, flush=True)
        self._printed = time.monotonic()

    def _plain(self, text: str) -> None:
        tenths = PLAIN_TENTHS * self._done // self.total
        if tenths <= self._tenths or time.monotonic() - self._printed < PLAIN_SECONDS:
            return
        self._tenths = tenths
        if self._done < self.total:
            self.line(f"{min(99, 100 * self._done // self.total):2d}%  {text.strip()}")


def span(seconds: float) -> str:
    """`seconds` as a person says it: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _rich_bar() -> Any:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]}", style="cyan"),
        TextColumn("{task.fields[left]}", style="magenta"),
        transient=True,
    )
