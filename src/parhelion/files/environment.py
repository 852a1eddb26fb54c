"""What a run ran on: versions, commit, hardware, command."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("parhelion", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "pillow")


def environment(*, seed: int, processes: int = 1) -> dict[str, Any]:
    """Everything besides the recipe that a run's result may depend on, ready for JSON."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "processes": processes,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": hardware(),
    }


def commit() -> dict[str, Any] | None:
    """The commit of the checkout this parhelion runs from and whether it is modified; None outside one."""
    package = Path(__file__).resolve().parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    # An installed copy may lie inside some other project's checkout.
    if root is None or Path(root).resolve() / "src" / "parhelion" != package:
        return None
    name = _git(package, "rev-parse", "--verify", "HEAD")
    if name is None:
        return None
    return {"name": name, "modified": bool(_git(package, "status", "--porcelain"))}


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, and GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None
