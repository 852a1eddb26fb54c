"""Measure a case: check every candidate against float64, then time those that are right in turns."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from cases import OURS, Case
from cpu import case_lines, reached
from gpu_cases import REFERENCE
from gpu_floor import Rates, Work
from gpu_peers import GpuLayer, choices_noted, forget_expected
from gpu_process import NO_TIME
from gpu_session import Session
from gpu_timing import COPY, EXPONENTIALS, PRODUCT, held_bytes, noted, peak_mib

from parhelion.speed.networks import at_precision
from parhelion.speed.report import figures
from parhelion.speed.timing import Candidate, Run, WrongNumbersError, ready, summary
from parhelion.speed.turns import in_turns

AUTO = "auto"
REHEARSAL_ROUNDS = 2
# Two paths that differ by less are equally fast.
SAME_SPEED = 1.05
YARDSTICKS = (COPY, PRODUCT, EXPONENTIALS)
# Of the time that is left for a case, the share that checking may take before the rest is left out.
CHECKING = 0.7


@dataclass(frozen=True)
class Checked:
    """A candidate that is right, with what a row says about it whatever it takes."""

    candidate: Candidate
    run: Run
    peak_memory_mib: float | None
    multiply_adds: int | None
    work: Mapping[str, Work] | None


def measured_case(
    case: Case, session: Session, *, until: float | None = None, write: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """`case` as JSON: rows, what was left out and why, the rates of the machine, and what its targets reached.

    until: When it must be done, by `time.monotonic`; the session's deadline if not given.
    write: Given the case as far as it is, after each check and each round.
    """
    started, until = time.monotonic(), session.deadline if until is None else until
    write = write or (lambda row: None)
    left_out: dict[str, str] = {}
    found: dict[str, Checked] = {}
    head = {"name": case.name, "title": case.title, "yardstick": asdict(session.yardstick)}

    def so_far(samples: Mapping[str, list[float]]) -> dict[str, Any]:
        others = [{"name": name, "reason": reason} for name, reason in left_out.items()]
        return head | _timed_rows(case, found, samples, session) | {"checked": list(found), "left_out": others}

    for candidate in case.candidates:
        reason = candidate.why_not()
        if reason is None and time.monotonic() > started + CHECKING * (until - started):
            reason = NO_TIME
        if reason is None:
            session.say(f"{case.name}: checking {candidate.name}")
            with noted(left_out, candidate.name):
                found[candidate.name] = _checked(candidate, session)
            _forget(session.device)
            _blame(session, case, candidate, left_out.get(candidate.name))
        else:
            left_out[candidate.name] = reason
        write(so_far({}))
    rounds = REHEARSAL_ROUNDS if session.rehearsal else case.rounds
    runs = {name: checked.run for name, checked in found.items()} | session.yard_runs
    failed: dict[str, str] = {}
    samples = in_turns(
        runs,
        session.clock,
        rounds=rounds if found else 1,
        say=session.say,
        until=until,
        after=lambda samples: write(so_far(samples)),
        guard=partial(noted, failed),
    )
    missing = failed.keys() & set(YARDSTICKS)
    if missing:
        raise RuntimeError(f"the machine cannot be measured: {failed[min(missing)]}")
    left_out |= failed
    for candidate in case.candidates:
        _blame(session, case, candidate, failed.get(candidate.name))
    session.say("")
    row = so_far(samples)
    write(row)
    found.clear()
    runs.clear()
    forget_expected()
    _forget(session.device)
    torch.compiler.reset()
    return row


def _checked(candidate: Candidate, session: Session) -> Checked:
    """`candidate` built and found right.

    Raises:
        WrongNumbersError: its numbers are wrong.
    """
    work = None
    if isinstance(candidate, GpuLayer):
        # Before memory is looked at, since it is kept for the others.
        candidate.expected()
        work = candidate.work()
    before = held_bytes(session.device)
    run = ready(candidate)
    # A graph keeps memory of its own, which is not counted as in use.
    graphed = getattr(candidate, "graphed", False)
    memory = None if graphed else peak_mib(session.device, run, before)
    return Checked(candidate, run, memory, candidate.multiply_adds(), work)


def _blame(session: Session, case: Case, candidate: Candidate, reason: str | None) -> None:
    """Note what is a failure: wrong numbers, whoever's, and whatever stops one of ours."""
    if reason is None:
        return
    plain_pytorch = candidate.name in (REFERENCE, "reference")
    ours = candidate.name.startswith(OURS) or case.name.startswith(AUTO)
    if reason.startswith(WrongNumbersError.__name__) or (ours and not plain_pytorch):
        session.blame(f"{case.name}, {candidate.name}: {reason}")


def _forget(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()


def _timed_rows(
    case: Case, found: Mapping[str, Checked], samples: Mapping[str, list[float]], session: Session
) -> dict[str, Any]:
    """The rates of the machine, the rows of candidates, and what the targets reached, from the turns so far."""
    if not all(samples.get(name) for name in YARDSTICKS):
        return {"rounds": 0, "rates": None, "candidates": [], "targets": reached(case, [])}
    rates = session.rates({name: summary(samples[name]).median for name in YARDSTICKS})
    timed = [name for name in found if samples.get(name)]
    rows = [_row(found[name], samples[name], rates) | {"part": session.part} for name in timed]
    for row in rows:
        row["ratio"] = row["seconds"]["median"] / rows[0]["seconds"]["median"]
    return {
        "rounds": len(samples[COPY]),
        "rates": asdict(rates),
        "candidates": rows,
        "targets": reached(case, rows),
    }


def _row(checked: Checked, samples: Sequence[float], rates: Rates) -> dict[str, Any]:
    candidate, count = checked.candidate, checked.multiply_adds
    seconds = asdict(summary(samples)) | {"lowest": min(samples), "highest": max(samples)}
    median = seconds["median"]
    floor = None
    if checked.work is not None:
        dtype, _ = at_precision(candidate.precision, candidate.device)
        floor = rates.floor(checked.work, dtype.itemsize)
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
        "peak_memory_mib": checked.peak_memory_mib,
    }


def put_case(session: Session, case: Case) -> Callable[[dict[str, Any]], None]:
    """Writes `case` into the report, beside the rows that an earlier part measured of other candidates."""
    order = [candidate.name for candidate in case.candidates]
    earlier = next((row for row in session.record.rows("cases") if row["name"] == case.name), None)

    def put(row: dict[str, Any]) -> None:
        if earlier is not None:
            new = {one["name"] for key in ("candidates", "left_out") for one in row[key]}
            rows, others = (
                [one for one in earlier[key] if one["name"] not in new] + row[key] for key in ("candidates", "left_out")
            )
            rows.sort(key=lambda one: order.index(one["name"]))
            row = row | {"candidates": rows, "left_out": others, "targets": reached(case, rows)}
            row["rates"] = row["rates"] or earlier["rates"]
        session.record.put("cases", row)

    return put


def text_of_case(case: Mapping[str, Any]) -> str:
    """The case, the machine's rates, and the floor of our first candidate with what binds it."""
    lines = case_lines(dict(case))
    rates = case["rates"]
    if rates is not None:
        copy, product = rates["bytes_per_second"] / 1e9, rates["flops_per_second"] / 1e12
        raised = rates["exponentials_per_second"] / 1e12
        lines.append(f"  measured between them: copy {figures(copy)} GB/s, matrix product {figures(product)} TFLOP/s,")
        lines[-1] += f" {figures(raised)} T exponentials/s"
    for row in case["candidates"]:
        if row["floor"] is not None:
            lines.append(
                f"  floor of {row['name']}: {floor_text(row['floor'])}; {100 * row['floor']['share']:.1f}% reached"
            )
    return "\n".join(lines)


def floor_text(floor: Mapping[str, Any]) -> str:
    """The floor in milliseconds, and what binds each stage."""
    stages = [
        f"{name} {figures(1e3 * stage['seconds'])} by {stage['binds']}" for name, stage in floor["stages"].items()
    ]
    return f"{figures(1e3 * floor['seconds'])} ms ({', '.join(stages)})"


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
