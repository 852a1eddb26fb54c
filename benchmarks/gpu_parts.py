"""The parts of a run on a GPU, in the order of their value, with the seconds that each may take."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from gpu_ahead import compile_ahead
from gpu_cases import cases, choices
from gpu_kernels import check_kernels
from gpu_measure import auto_line, auto_shape, measured_case, put_case, text_of_case
from gpu_plans import compare_plans
from gpu_session import Session
from gpu_tests import run_tests, sanitize
from gpu_training import training_steps


@dataclass(frozen=True)
class Part:
    """Work for one process."""

    name: str
    says: str
    work: Callable[[Session], None]
    least: float  # seconds: with less left it is not begun
    most: float


def measure(session: Session, names: tuple[str, ...], *, compiled: bool) -> None:
    """Measure some cases, either the candidates that compile for minutes, beside ours, or the others."""
    chosen = [case for case in cases(session.scale) if case.name in names]
    if session.rehearsal:
        # One of those that differ in sizes only.
        few = 2 if compiled else None
        chosen = list({re.sub(r"\d+", "", case.name): case for case in reversed(chosen)}.values())[::-1][:few]
    for place, case in enumerate(chosen):
        some = [one for one in case.candidates if one is case.candidates[0] or one.compiles == compiled]
        if session.left <= 0 or (compiled and len(some) < 2):
            continue
        # A case leaves to the others what they will need, if all need the same.
        until = session.deadline - session.left * (1 - 1 / (len(chosen) - place))
        row = measured_case(replace(case, candidates=tuple(some)), session, until=until, write=put_case(session, case))
        print(text_of_case(row), flush=True)


def pick_paths(session: Session) -> None:
    """See at every shape whether impl="auto" picks the faster path."""
    shapes = choices(session.scale, cases(session.scale))
    for case in shapes[:: len(shapes) // 3] if session.rehearsal else shapes:
        if session.left <= 0:
            break
        shape = auto_shape(case, session)
        session.record.put("auto", shape, known_by="title")
        print(auto_line(shape), flush=True)


HALO_64 = ("halo-layer-64", "halo-layer-64-backward")
LAYERS = (
    *(f"halo-layer-{channels}{way}" for channels in (128, 256) for way in ("", "-backward")),
    *(f"gsa-layer-{channels}" for channels in (64, 128, 256, 512)),
    *(f"halo-operation-{channels}" for channels in (64, 128, 256)),
)
NETWORKS = (
    "halonet-h1-inference",
    "gsa-resnet50-inference",
    "halonet-h1-training",
    "gsa-resnet50-training",
    "halonet-h1-one-image",
)


def _measured(names: tuple[str, ...], *, compiled: bool = False) -> Callable[[Session], None]:
    return partial(measure, names=names, compiled=compiled)


# fmt: off
PARTS = (
    Part("kernels", "each kernel once, in three dtypes, against float64", check_kernels, 15, 60),
    Part("tests", "the tests that matter most", run_tests, 40, 150),
    Part("halo", "the halo layer at 64x64 against eager peers", _measured(HALO_64), 30, 120),
    Part("plans", "the halo kernels with other plans", compare_plans, 30, 90),
    Part("layers", "the other layers against eager peers", _measured(LAYERS), 30, 120),
    Part("networks", "networks: inference, training step, memory", _measured(NETWORKS), 30, 180),
    Part("steps", "100 then 500 training steps: are they finite?", training_steps, 30, 240),
    Part("ahead", "what torch.compile takes minutes for, many at a time, into its caches", compile_ahead, 60, 300),
    Part("compiled-layers", "layers through torch.compile", _measured((*HALO_64, *LAYERS), compiled=True), 60, 300),
    Part("compiled-networks", "networks through torch.compile", _measured(NETWORKS, compiled=True), 90, 600),
    Part("auto", 'whether impl="auto" picks the faster path', pick_paths, 30, 300),
    Part("sanitizer", "every kernel once under compute-sanitizer", sanitize, 45, 180),
)
# fmt: on


def rehearse() -> None:
    """Let this process, which a part has for itself, do in small on a CPU what the part does on a GPU."""
    torch.set_num_threads(1)
    # Nothing is compiled to machine code, which would take minutes; everything before that is done.
    torch.compile = partial(torch.compile, backend="eager")
