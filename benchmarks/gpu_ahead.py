"""Compile ahead what torch.compile takes minutes for, many at a time, into the caches on disk that it reads again.

A case then finds its candidates compiled: what is left for it is to trace them. Where the caches are, PyTorch's
TORCHINDUCTOR_CACHE_DIR and TRITON_CACHE_DIR say.
"""

import time
from functools import partial
from typing import Any

import torch
from gpu_cases import cases
from gpu_kernels import workers
from gpu_networks import GpuNetwork
from gpu_process import apart
from gpu_session import Session

from parhelion.speed.timing import Candidate

# Of the GPU's memory, for a layer and for a network, so that all of them fit. One that wants more runs out of it when
# it is called, compiled by then; while it compiles a network, Inductor allocates what it tries products with.
LAYER_SHARE, NETWORK_SHARE = 0.03, 0.2
REHEARSED = 2


def compile_ahead(session: Session) -> None:
    """Build and call every candidate that compiles, each in a process of its own; that it failed is only noted."""
    tasks = {
        f"{case.name}, {candidate.name}": partial(_called, candidate, session.device)
        for case in cases(session.scale)
        for candidate in case.candidates
        if candidate.compiles and candidate.why_not() is None
    }
    # Networks last longest, and begin first.
    names = sorted(tasks, key=lambda name: not name.startswith(("halonet", "gsa-resnet")))
    chosen = {name: tasks[name] for name in (names[:REHEARSED] if session.rehearsal else names)}
    for name, seconds, failed in apart(chosen, workers=workers(), deadline=session.deadline):
        session.record.put("ahead", {"name": name, "seconds": seconds, "failed": failed})
        print(f"{name}: {failed or f'{seconds:.0f} s'}", flush=True)


def _called(candidate: Candidate, device: str) -> float:
    """Seconds that building and calling takes."""
    started = time.monotonic()
    if device != "cpu":
        share = NETWORK_SHARE if isinstance(candidate, GpuNetwork) else LAYER_SHARE
        torch.cuda.set_per_process_memory_fraction(share)
    run: Any = candidate.build()
    run()
    return time.monotonic() - started
