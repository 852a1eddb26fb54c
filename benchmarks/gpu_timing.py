"""Time by the GPU's own clock, and measure what the machine can move, multiply, and take exponentials of."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from gpu_floor import Rates
from gpu_process import sentence

from parhelion.ops import gpu
from parhelion.speed.products import Run, matrix_product, product_run, seconds_per_call

COPY, PRODUCT, EXPONENTIALS = "copy", "matrix product", "exponentials"
# A copy grows from the first size until it takes so long that no cache holds it, but not beyond the last.
FIRST_COPY, LAST_COPY, COPY_SECONDS = 2**20, 2**30, 0.5e-3
# Exponentials are taken of numbers that stay in registers, each so many times.
RAISED_NUMBERS, RAISED_TIMES = 2**22, 256
# What a multiprocessor of compute capability 8.0 to 9.0 can take in a clock: the manual's number, for comparison.
RAISED_IN_A_CLOCK = 16
# Errors after which a process can do nothing more on its GPU.
STICKY = ("illegal", "misaligned address", "launch failure", "launch timed out", "device-side assert")
NVIDIA_SMI = ("driver_version", "clocks.max.sm", "clocks.sm", "clocks.max.mem", "power.limit", "ecc.mode.current")


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """How large the jobs are that the machine is measured with."""

    copy_bytes: int
    product_side: int
    raised_numbers: int = RAISED_NUMBERS
    raised_times: int = RAISED_TIMES

    @classmethod
    def sized(cls, device: str) -> "Yardstick":
        """The smallest copy that takes `COPY_SECONDS`, and the largest product that is done quickly, by trying both."""
        size = FIRST_COPY
        while size < LAST_COPY and min(seconds_per_call(_copy(size, device), 1) for _ in range(3)) < COPY_SECONDS:
            size *= 2
        return cls(copy_bytes=size, product_side=matrix_product(torch.bfloat16, device).side)

    def runs(self, device: str) -> dict[str, Run]:
        """The three, as candidates."""
        return {
            COPY: _copy(self.copy_bytes, device),
            PRODUCT: product_run(self.product_side, torch.bfloat16, device),
            EXPONENTIALS: _exponentials(self.raised_numbers, self.raised_times, device),
        }

    def rates(self, seconds: Mapping[str, float]) -> Rates:
        """What they reached. A copy reads and writes every byte."""
        return Rates(
            bytes_per_second=2 * self.copy_bytes / seconds[COPY],
            flops_per_second=2 * self.product_side**3 / seconds[PRODUCT],
            exponentials_per_second=self.raised_numbers * self.raised_times / seconds[EXPONENTIALS],
        )


def _copy(size: int, device: str) -> Run:
    """A copy of so many bytes on the device."""
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: (target.copy_(source),)


def _exponentials(numbers: int, times: int, device: str) -> Run:
    """Exponentials of so many numbers, of each so many times; by PyTorch where Triton's kernels cannot run."""
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)

    def raised() -> tuple[torch.Tensor]:
        if device == "cpu" and not gpu.interpreted():
            target.copy_(source)
            for _ in range(times):
                torch.exp2(target.neg_(), out=target)
        else:
            from gpu_exponentials import exponentials

            exponentials(source, target, times)
        return (target,)

    return raised


@contextmanager
def noted(failed: dict[str, str], name: str) -> Iterator[None]:
    """Keep why the block failed under `name` and go on: one candidate must not end all measuring.

    What spoils the process for every candidate is raised again.
    """
    try:
        yield
    except Exception as error:
        # The sentence alone; the traceback would keep every tensor of the failed call alive.
        failed[name] = sentence(error)
        if any(sign in str(error) for sign in STICKY):
            raise RuntimeError(f"{name} spoils the GPU for this process: {sentence(error)}") from error


def gpu_facts() -> dict[str, Any]:
    """The GPU, its driver, clocks and CUDA, as far as they can be read; None for what cannot."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cache_mib": round(properties.L2_cache_size / 2**20, 1),
        "exponentials_in_a_clock": RAISED_IN_A_CLOCK * properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    return facts | _from_nvidia_smi(str(properties.uuid))


def _from_nvidia_smi(uuid: str) -> dict[str, str | None]:
    """Each of `NVIDIA_SMI` with its unit."""
    # By its name, since processes may see the GPUs in another order than the tool.
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        values = [value.strip() for value in answer.splitlines()[0].split(",")]
        if len(values) == len(NVIDIA_SMI):
            return dict(zip(NVIDIA_SMI, values, strict=True))
    return dict.fromkeys(NVIDIA_SMI)


def peak_mib(device: str, run: Run, before: int) -> float | None:
    """The most memory of the GPU that `run` holds beyond `before` bytes; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def held_bytes(device: str) -> int:
    """Bytes of GPU memory in use now; 0 on a CPU."""
    return 0 if device == "cpu" else torch.cuda.memory_allocated()
