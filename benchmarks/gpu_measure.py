"""Measure one part of the benchmark of GPUs: a case, what impl="auto" picks at a shape, or training steps."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from cases import OURS, Case
from cpu import reached
from gpu_cases import REFERENCE, Scale
from gpu_networks import moved_bytes
from gpu_peers import choices_noted
from gpu_timing import (
    COPY,
    PRODUCT,
    Clock,
    Rates,
    Yardstick,
    gpu_clock,
    held_bytes,
    host_clock,
    in_turns,
    noted,
    peak_mib,
)

import parhelion
from parhelion.data.sources.fashion import bundled_images
from parhelion.speed.networks import SEED
from parhelion.speed.report import figures, narrator
from parhelion.speed.timing import Candidate, Run, WrongNumbersError, ready, summary

AUTO = "auto"
QUICK_ROUNDS = 2
# Two paths that differ by less are equally fast.
SAME_SPEED = 1.05
# Adam's rate rises over the first steps, as recipes have it; gradients are clipped to a norm.
LEARNING_RATE, WARMUP_STEPS, CLIP_NORM = 5e-4, 50, 1.0


@dataclass
class Session:
    """How things are measured, and what went wrong so far."""

    scale: Scale
    clock: Clock
    yardstick: Yardstick
    quick: bool = False
    eager: bool = False
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.say = narrator()

    @property
    def device(self) -> str:
        """What everything runs on."""
        return self.scale.device


def new_session(scale: Scale, *, quick: bool, eager: bool) -> Session:
    """Clock and yardstick for the device of `scale`."""
    if scale.device == "cpu":
        return Session(scale, host_clock, Yardstick(copy_bytes=2**16, product_side=64), quick, eager)
    # A convolution at its best is what everything else is compared with.
    torch.backends.cudnn.benchmark = True
    return Session(scale, gpu_clock(), Yardstick.sized(scale.device), quick, eager)


def measured_case(case: Case, session: Session) -> dict[str, Any]:
    """`case` as JSON: rows, what was left out and why, the rates of the machine, and what its targets reached."""
    left_out: dict[str, str] = {}
    runs: dict[str, Run] = {}
    memory: dict[str, float | None] = {}
    for candidate in case.candidates:
        reason = candidate.why_not()
        if reason is None and session.eager and getattr(candidate, "compiled", False):
            reason = "left out, since only eager candidates were asked for"
        if reason is not None:
            left_out[candidate.name] = reason
            continue
        session.say(f"{case.name}: checking {candidate.name}")
        before = held_bytes(session.device)
        with noted(left_out, candidate.name):
            runs[candidate.name] = run = ready(candidate)
            # A graph keeps memory of its own, which is not counted as in use.
            graphed = getattr(candidate, "graphed", False)
            memory[candidate.name] = None if graphed else peak_mib(session.device, run, before)
        if candidate.name in left_out:
            runs.pop(candidate.name, None)
            _blame(session, case, candidate, left_out[candidate.name])
            _forget(session.device)
    rounds = QUICK_ROUNDS if session.quick else case.rounds
    rows, rates, failed = _timed(case, runs, memory, rounds, session)
    for candidate in case.candidates:
        if candidate.name in failed:
            _blame(session, case, candidate, failed[candidate.name])
    session.say("")
    runs.clear()
    _forget(session.device)
    torch.compiler.reset()
    return {
        "name": case.name,
        "title": case.title,
        "rounds": rounds,
        "rates": asdict(rates),
        "yardstick": asdict(session.yardstick),
        "candidates": rows,
        "left_out": [{"name": name, "reason": reason} for name, reason in (left_out | failed).items()],
        "targets": reached(case, rows),
    }


def _blame(session: Session, case: Case, candidate: Candidate, reason: str) -> None:
    """Note a failure that ends the command with code 1: wrong numbers, whoever's, and whatever stops one of ours."""
    plain_pytorch = candidate.name in (REFERENCE, "reference")
    ours = candidate.name.startswith(OURS) or case.name.startswith(AUTO)
    if reason.startswith(WrongNumbersError.__name__) or (ours and not plain_pytorch):
        session.failures.append(f"{case.name}, {candidate.name}: {reason}")


def _forget(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _timed(
    case: Case, runs: dict[str, Run], memory: dict[str, float | None], rounds: int, session: Session
) -> tuple[list[dict[str, Any]], Rates, dict[str, str]]:
    """Rows of the candidates, what the machine reached between them, and why some have no row."""
    samples, failed = in_turns(
        runs | session.yardstick.runs(session.device), session.clock, rounds=rounds, say=session.say
    )
    missing = {COPY, PRODUCT} & failed.keys()
    if missing:
        raise RuntimeError(f"the machine cannot be measured: {failed[min(missing)]}")
    rates = session.yardstick.rates({name: summary(samples[name]).median for name in (COPY, PRODUCT)})
    rows = [
        _row(candidate, samples[candidate.name], rates) | {"peak_memory_mib": memory[candidate.name]}
        for candidate in case.candidates
        if candidate.name in samples
    ]
    for row in rows:
        row["ratio"] = row["seconds"]["median"] / rows[0]["seconds"]["median"]
    return rows, rates, failed


def _row(candidate: Candidate, samples: Sequence[float], rates: Rates) -> dict[str, Any]:
    seconds = asdict(summary(samples)) | {"lowest": min(samples), "highest": max(samples)}
    median, count, moved = seconds["median"], candidate.multiply_adds(), moved_bytes(candidate)
    floor = None
    if count is not None and moved is not None:
        floor = rates.floor(moved, count)
        floor["share"] = floor["seconds"] / median
    flops = None if count is None else 2 * count / median
    return {
        "name": candidate.name,
        "precision": candidate.precision,
        "batch": candidate.batch,
        "seconds": seconds,
        "images_per_second": candidate.batch / median,
        "units": candidate.units(),
        "unit": candidate.unit,
        "multiply_adds": count,
        "gflops": None if flops is None else flops / 1e9,
        "share_of_matrix_product": None if flops is None else flops / rates.flops_per_second,
        "floor": floor,
    }


def floor_lines(case: dict[str, Any]) -> list[str]:
    """The machine's rates and the floor of each candidate, as text."""
    rates = case["rates"]
    copy, product = rates["bytes_per_second"] / 1e9, rates["flops_per_second"] / 1e12
    lines = [f"  measured between them: copy {figures(copy)} GB/s, matrix product {figures(product)} TFLOP/s"]
    for row in case["candidates"]:
        floor = row["floor"]
        if floor is not None:
            move, multiply = (figures(1e3 * floor[key]) for key in ("move_seconds", "multiply_seconds"))
            share = f"{100 * floor['share']:.1f}%"
            lines.append(f"  floor of {row['name']}: {move} ms to move, {multiply} ms to multiply; {share} reached")
    return lines


def auto_shape(case: Case, session: Session) -> dict[str, Any]:
    """What impl="auto" runs at one shape, the seconds of each path, and whether it picks the faster one."""
    failed: dict[str, str] = {}
    with choices_noted() as names, noted(failed, AUTO):
        case.candidates[0].build()()
    measured = measured_case(case, session)
    seconds = {row["name"]: row["seconds"]["median"] for row in measured["candidates"]}
    best = min((value for name, value in seconds.items() if name != AUTO), default=None)
    picks = AUTO in seconds and best is not None and seconds[AUTO] <= SAME_SPEED * best
    return {
        "title": case.title,
        "chosen": sorted(names),
        "seconds": seconds,
        "left_out": measured["left_out"],
        "picks_the_faster": picks,
    }


def auto_line(shape: dict[str, Any]) -> str:
    """The shape as text."""
    times = ", ".join(f"{name} {figures(1e3 * seconds)} ms" for name, seconds in shape["seconds"].items())
    verdict = "the faster path" if shape["picks_the_faster"] else "NOT the faster path"
    return f"  {shape['title']}: runs {' and '.join(shape['chosen'])}, {verdict}; {times}"


def training_steps(model: str, session: Session, steps: int) -> dict[str, Any]:
    """Train on the bundled photographs in autocast to bfloat16: how many steps had a finite loss and gradient."""
    scale, device = session.scale, session.device
    images, labels, names = bundled_images("train")
    pixels, classes = torch.tensor(images, device=device), torch.tensor(labels, device=device)
    mean, deviation = pixels.float().div(255).mean(), pixels.float().div(255).std()
    image_px = scale.image_px(model)
    torch.manual_seed(SEED)
    network = parhelion.create_model(model, image_size=image_px, num_classes=len(names))
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    order = torch.Generator().manual_seed(SEED)
    losses, finite = torch.zeros(steps, device=device), torch.zeros(steps, dtype=torch.bool, device=device)
    for step in range(steps):
        session.say(f"{model}: step {step + 1} of {steps}")
        some = torch.randint(len(labels), (scale.step_images,), generator=order).to(device)
        x = pixels[some, None].float().div(255).sub(mean).div(deviation).expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(image_px, image_px), mode="bilinear").contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = F.cross_entropy(network(x).float(), classes[some])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS)
        optimizer.step()
        losses[step], finite[step] = loss.detach(), loss.isfinite() & norm.isfinite()
    session.say("")
    count = int(finite.sum())
    if count < steps:
        session.failures.append(f"{model}: {steps - count} of {steps} training steps have a loss or gradient of NaN")
    # JSON has no NaN; a loss that is not finite is counted above.
    ends = {"first": losses[0], "last": losses[-min(steps, 20) :].mean()}
    shown = {name: float(value) if value.isfinite() else None for name, value in ends.items()}
    sizes = {"image_px": image_px, "batch": scale.step_images}
    return {"model": model, "steps": steps, "finite_steps": count, "losses": shown, **sizes}
