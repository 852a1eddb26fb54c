"""What every part of a run on a GPU is given: the report, sizes, clock, and how much time is left."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from gpu_cases import FULL, TINY, Scale
from gpu_floor import Rates
from gpu_record import Record
from gpu_timing import Yardstick, gpu_facts

import parhelion
from parhelion.errors import UserError
from parhelion.speed.report import narrator, speed_report
from parhelion.speed.turns import CPU_CLOCK, Clock, gpu_clock

PACKAGES = ("torch", "triton", "timm", "gsa-pytorch")
TINY_YARDSTICK = Yardstick(copy_bytes=2**16, product_side=64, raised_numbers=2**10, raised_times=2)
# A rehearsal is no measurement.
ONCE = replace(CPU_CLOCK, turn_seconds=0.0, pause_seconds=0.0)
WHAT_MUST_AGREE = ("device", "rehearsal", "commit", "versions")


@dataclass
class Session:
    """How one part measures, in its own process. Nothing of a GPU is touched before it is asked for."""

    record: Record
    scale: Scale
    deadline: float  # by `time.monotonic`, when nothing new is begun
    part: str = ""

    def __post_init__(self) -> None:
        self.say = narrator()

    @property
    def rehearsal(self) -> bool:
        """Whether this only shows on a CPU that everything runs."""
        return self.scale.device == "cpu"

    @property
    def device(self) -> str:
        """What everything runs on."""
        return self.scale.device

    @property
    def left(self) -> float:
        """Seconds until the deadline; below zero after it."""
        return self.deadline - time.monotonic()

    @cached_property
    def clock(self) -> Clock:
        """Times calls on the device."""
        if self.rehearsal:
            return ONCE
        # A convolution at its best is what everything else is compared with.
        torch.backends.cudnn.benchmark = True
        return gpu_clock()

    @cached_property
    def yardstick(self) -> Yardstick:
        """The jobs that the machine is measured with, sized by trying."""
        return TINY_YARDSTICK if self.rehearsal else Yardstick.sized(self.device)

    @cached_property
    def yard_runs(self) -> dict[str, Any]:
        """The same, ready to run."""
        return self.yardstick.runs(self.device)

    def rates(self, seconds: dict[str, float]) -> Rates:
        """What the machine reached."""
        return self.yardstick.rates(seconds)

    def blame(self, failure: str) -> None:
        """Note what went wrong in the report, once."""
        failures = self.record.rows("failures")
        if failure not in failures:
            self.record.update({"failures": [*failures, failure]})


def new_session(path: Path, *, seconds: float, rehearsal: bool, part: str = "") -> Session:
    """A session that goes on with the report at `path`."""
    return Session(Record(path), TINY if rehearsal else FULL, time.monotonic() + seconds, part)


def facts(*, rehearsal: bool) -> dict[str, Any]:
    """What is measured and on what, as the head of a report.

    Raises:
        UserError: there is no NVIDIA GPU, and it is no rehearsal.
    """
    if not rehearsal and (not torch.cuda.is_available() or torch.version.hip is not None):
        raise UserError("this needs an NVIDIA GPU, and PyTorch finds none; --rehearse runs everything in small without")
    title = "Rehearsal on a CPU with tiny sizes: no result" if rehearsal else "Parhelion on a GPU"
    head = speed_report([], title, device="cpu" if rehearsal else "cuda", packages=PACKAGES)
    # Where it runs from a copy of the sources, no installer knows of it.
    head["versions"] = {"parhelion": parhelion.__version__, **head["versions"]}
    del head["cases"]
    if not rehearsal:
        head["gpu"] = gpu = gpu_facts()
        driver = gpu["driver_version"] or "unknown"
        # What the footnote says about the device.
        head["machine"]["capability"] = f"compute {gpu['capability']}, driver {driver}, CUDA {gpu['cuda']}"
    return head | {"rehearsal": rehearsal}


def check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Raise UserError where the report at `path` was measured with something else than what is there now."""
    for key in WHAT_MUST_AGREE:
        if before.get(key) != now[key]:
            raise UserError(f"{path} was measured with another {key}; name another folder")
    if before.get("gpu", {}).get("name") != now.get("gpu", {}).get("name"):
        raise UserError(f"{path} was measured on another GPU; name another folder")
