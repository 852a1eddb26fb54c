"""Candidates take turns on a clock: how everything in this project is timed."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from parhelion.files.progress import span
from parhelion.speed.products import Run, seconds_per_call

WARMUP_CALLS = 3
# Where calls are slow, one warms up for no longer than this, and as many rounds are made as fit into the second.
WARMUP_SECONDS, ALL_ROUNDS_SECONDS = 2.0, 300.0
LEAST_ROUNDS, MOST_ROUNDS = 3, 10
# What is written between two calls on a GPU, in sizes of its cache: nothing of the call before stays in it, and the GPU
# is busy for so long that the next call is waiting when it is done.
FLUSHED_CACHES = 4


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How calls are timed, and how many make a turn."""

    seconds: Callable[[Run, int], list[float]]
    """Of each of so many calls, or of all of them their mean."""
    turn_seconds: float
    """A turn lasts about so long, so that neither the clock nor a cold cache decides."""
    most_calls: float = math.inf
    pause_seconds: float = 0.0
    """Before a turn: threads of the one before may still be spinning."""

    def calls(self, seconds: float) -> int:
        """Calls in a turn, where one takes so many seconds."""
        return int(min(self.most_calls, max(1, math.ceil(self.turn_seconds / max(1e-9, seconds)))))


CPU_CLOCK = Clock(
    seconds=lambda run, calls: [seconds_per_call(run, calls)],
    turn_seconds=0.05,
    pause_seconds=0.02,
)
"""The processor's clock; a GPU's work is waited for, too."""


def gpu_clock() -> Clock:
    """The GPU's own clock: calls are timed one by one, with a cache that holds nothing of them."""
    device = torch.cuda.current_device()
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    scratch = torch.empty(FLUSHED_CACHES * max(cache, 2**24), dtype=torch.uint8, device=device)

    def seconds(run: Run, calls: int) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            scratch.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]

    return Clock(seconds=seconds, turn_seconds=0.1, most_calls=20)


def in_turns(
    runs: Mapping[str, Run],
    clock: Clock | None = None,
    *,
    rounds: int | None,
    say: Callable[[str], None],
    until: float = math.inf,
    after: Callable[[Mapping[str, list[float]]], None] = lambda samples: None,
    guard: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> dict[str, list[float]]:
    """Seconds per call of each of `runs`, one number per round; all take turns, a different one first each round.

    Args:
        runs: What is timed, by name.
        clock: What it is timed with; `CPU_CLOCK` if not given.
        rounds: None makes 10, or fewer where those would take more than five minutes; 3 at least.
        say: Told what is going on.
        until: When no further round is begun, by `time.monotonic`; one is made in any case.
        after: Given all turns so far, after each round.
        guard: What one of them is called within, by its name. One whose error the guard keeps drops out, with all its
            turns.
    """
    clock = clock or CPU_CLOCK
    calls, round_seconds = dict[str, int](), 0.0
    for name, run in runs.items():
        say(f"warming up {name}")
        with guard(name):
            seconds = _warm(run, clock)
            calls[name] = clock.calls(seconds)
            round_seconds += calls[name] * seconds
    if rounds is None:
        rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(ALL_ROUNDS_SECONDS / max(1e-9, round_seconds))))
    samples = {name: list[float]() for name in calls}
    started, took = time.monotonic(), round_seconds
    for index in range(rounds):
        if index and time.monotonic() + took > until:
            break
        names = list(samples)
        first = index % max(1, len(names))
        for name in names[first:] + names[:first]:
            say(f"timing, round {index + 1} of {rounds}, {span(took * (rounds - index))} left: {name}")
            time.sleep(clock.pause_seconds)
            with guard(name):
                samples[name].append(statistics.median(clock.seconds(runs[name], calls[name])))
            if len(samples[name]) <= index:
                del samples[name]
        took = (time.monotonic() - started) / (index + 1)
        after(samples)
    return samples


def _warm(run: Run, clock: Clock) -> float:
    """Call `run` a few times, but for no long; seconds of the last call."""
    started = time.monotonic()
    for _ in range(WARMUP_CALLS):
        seconds = statistics.median(clock.seconds(run, 1))
        if time.monotonic() - started > WARMUP_SECONDS:
            break
    return seconds
