"""How fast, measured: candidates take turns, medians and quartiles come out, memory is read in a process of its own.

A candidate is data, so that a child process can build it anew; see `parhelion.speed.networks` for models.
"""

import multiprocessing
import signal
import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from parhelion.files.environment import commit, hardware
from parhelion.speed.products import Run, cpu_flags, matrix_product
from parhelion.speed.turns import in_turns

Precision = Literal["float32", "bfloat16", "autocast"]
PACKAGES = ("parhelion", "torch", "timm")
PRODUCT = "matrix product"
MEMORY_CALLS = 2
MIB = 2**20


class WrongNumbersError(RuntimeError):
    """A candidate computes something else than it should, so its speed means nothing."""


@dataclass(frozen=True, kw_only=True)
class Candidate(ABC):
    """Something to measure. It must pickle; `build` makes everything that it needs."""

    name: str
    batch: int  # images per call
    precision: Precision = "float32"
    device: str = "cpu"
    needs: tuple[str, ...] = ()  # modules that must be importable
    unit: str = "images"  # what a rate counts

    def units(self) -> float:
        """How many of `unit` a call computes."""
        return self.batch

    def why_not(self) -> str | None:
        """Why this cannot run here, None if it can."""
        missing = [name for name in self.needs if find_spec(name) is None]
        return f"not installed: {', '.join(missing)}" if missing else None

    @abstractmethod
    def build(self) -> Run:
        """What will be timed: one call computes one batch and returns what it computed."""

    @abstractmethod
    def problem(self, answer: Sequence[Tensor]) -> str | None:
        """What is wrong with the `answer` of the first call, None if nothing is."""

    @abstractmethod
    def multiply_adds(self) -> int | None:
        """Multiply-adds of one call, counted on the operations; None where nobody can count them."""


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Time of one call over all rounds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int


def not_finite(answer: Sequence[Tensor]) -> str | None:
    """A sentence where a number of `answer` is NaN or infinite."""
    if all(torch.isfinite(part).all() for part in answer):
        return None
    return "its output holds NaN or infinity"


def not_as_exact(actual: Tensor, baseline: Tensor, truth: Tensor, *, slack: float) -> str | None:
    """A sentence where `actual` errs more than `slack` times what `baseline` errs, plus one rounding.

    Compared are root mean squares, since the largest of many errors is a matter of luck. The largest may be twice as
    many times that of `baseline`, so that one wrong number among many is found.

    truth: the same quantity in float64. baseline: by plain PyTorch in the precision of `actual`.
    """
    if actual.shape != truth.shape:
        return f"its output is {tuple(actual.shape)}, not {tuple(truth.shape)}"
    errors, usual = actual.double() - truth, baseline.double() - truth
    eps = torch.finfo(baseline.dtype).eps
    for times, size in ((slack, _root_mean_square), (2 * slack, _largest)):
        error, allowed = size(errors), times * (size(usual) + eps * size(truth))
        # Written so that NaN fails.
        if not error <= allowed:
            return f"its output errs by {error:.3g}, and {allowed:.3g} is allowed"
    return None


def _root_mean_square(numbers: Tensor) -> float:
    return numbers.square().mean().sqrt().item()


def _largest(numbers: Tensor) -> float:
    return numbers.abs().max().item()


def ready(candidate: Candidate) -> Run:
    """`candidate` built, called once, and its numbers checked.

    Raises:
        WrongNumbersError: its numbers are wrong; the sentence says how.
    """
    run = candidate.build()
    problem = candidate.problem(run())
    if problem is not None:
        raise WrongNumbersError(f"{candidate.name} is not timed: {problem}")
    return run


def summary(samples: Sequence[float]) -> Seconds:
    """Median and quartiles of `samples`."""
    if len(samples) == 1:
        return Seconds(median=samples[0], lower_quartile=samples[0], upper_quartile=samples[0], rounds=1)
    lower, median, upper = statistics.quantiles(samples, n=4, method="inclusive")
    return Seconds(median=median, lower_quartile=lower, upper_quartile=upper, rounds=len(samples))


def measure(
    runs: Mapping[Candidate, Run], *, rounds: int | None, memory: bool, say: Callable[[str], None] = lambda text: None
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Time candidates and one large matrix product per precision in turns.

    Args:
        runs: Candidates with what `ready` made of them; their names must differ.
        rounds: How often each takes its turn; None: see `in_turns`.
        memory: Read peak memory too, each in a process of its own.
        say: Told what is going on.

    Returns:
        A row for each candidate; and by dtype a large matrix product: its `side`, its rate in `gflops`, whether it is
        `emulated`. A multiply-add is two FLOPs.
    """
    dtypes = {dtype_of(candidate): candidate for candidate in runs}
    products = {dtype: matrix_product(getattr(torch, dtype), candidate.device) for dtype, candidate in dtypes.items()}
    named = {candidate.name: run for candidate, run in runs.items()}
    named |= {f"{PRODUCT}, {dtype}": product.run for dtype, product in products.items()}
    samples = in_turns(named, rounds=rounds, say=say)
    measured = {}
    for dtype, product in products.items():
        rate = product.flops_per_second(summary(samples[f"{PRODUCT}, {dtype}"]).median)
        measured[dtype] = {"side": product.side, "gflops": rate / 1e9, "emulated": product.emulated}
    rows = []
    for candidate in runs:
        seconds = summary(samples[candidate.name])
        count = candidate.multiply_adds()
        gflops = None if count is None else 2 * count / 1e9 / seconds.median
        if memory:
            say(f"memory of {candidate.name}")
        rows.append(
            {
                "name": candidate.name,
                "precision": candidate.precision,
                "batch": candidate.batch,
                "seconds": asdict(seconds),
                "images_per_second": candidate.batch / seconds.median,
                "units": candidate.units(),
                "unit": candidate.unit,
                "multiply_adds": count,
                "gflops": gflops,
                "share_of_matrix_product": None if gflops is None else gflops / measured[dtype_of(candidate)]["gflops"],
                "peak_memory_mib": peak_memory_mib(candidate) if memory else None,
            }
        )
    return rows, measured


def dtype_of(candidate: Candidate) -> str:
    """What `candidate` multiplies its matrices in."""
    return "float32" if candidate.precision == "float32" else "bfloat16"


def peak_memory_mib(candidate: Candidate) -> float | None:
    """The most memory that `candidate` holds while it computes: weights, activations, and all that comes with them.

    A fresh process imports everything, notes its size, builds the candidate and calls it; what counts is its
    peak during the calls beyond that size (on a GPU: what PyTorch allocated there). None where the system
    cannot tell.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # A daemon, so that it ends with this process whatever happens.
    process = context.Process(target=_send_peak, args=(candidate, torch.get_num_threads(), sender), daemon=True)
    process.start()
    sender.close()
    try:
        peak = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that reads the memory of {candidate.name} ended with code {process.exitcode}"
        ) from None
    finally:
        process.terminate()
        process.join()
    return None if peak is None else peak / MIB


def _send_peak(candidate: Candidate, threads: int, sender: Connection) -> None:
    # Ctrl-C reaches every process of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for name in candidate.needs:
        import_module(name)
    if candidate.device != "cpu":
        torch.cuda.init()
    before = _memory_now()
    run = candidate.build()
    _forget_peak(candidate.device)
    for _ in range(MEMORY_CALLS):
        run()
    peak = torch.cuda.max_memory_allocated() if candidate.device != "cpu" else _memory_peak()
    sender.send(None if peak is None else peak - (before if candidate.device == "cpu" else 0))


def _memory_now() -> int:
    return _status("VmRSS") or _memory_peak() or 0


def _memory_peak() -> int | None:
    # Linux's ru_maxrss also remembers the process that started this one, VmHWM does not.
    peak = _status("VmHWM")
    if peak is None:
        with suppress(ModuleNotFoundError):
            resource: Any = import_module("resource")
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return peak


def _status(key: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak(device: str) -> None:
    """Let the peak start anew, so that what building needed does not count; without the right to, it counts."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """What the numbers were taken on: machine, threads, versions (None: not installed), commit; ready for JSON."""
    return {
        "machine": {
            **hardware(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cpu_flags": cpu_flags(),
        },
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in packages}},
        "commit": commit(),
    }


def footnote(report: Mapping[str, Any]) -> str:
    """The machine and the versions of a report in one line, for under a table or a chart."""
    machine, versions = report["machine"], report["versions"]
    where = machine["gpus"][0] if report.get("device") == "cuda" else machine["cpu"]
    known = ", ".join(f"{name} {number}" for name, number in versions.items() if number and name != "python")
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    notes = "".join(f"; {note}" for note in emulation_notes(report))
    return f"{where} ({machine['capability']}), {threads} of {machine['cores']} cores; {known}{notes}"


def emulation_notes(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each dtype that the cases of a report had to emulate."""
    dtypes = {dtype for case in report.get("cases", ()) for dtype in case.get("emulated_dtypes", ())}
    return [f"{dtype} is emulated: no instructions of this processor are used for it" for dtype in sorted(dtypes)]


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None
