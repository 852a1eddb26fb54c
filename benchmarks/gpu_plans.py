"""The halo kernels with other plans: do they run, do they give the same numbers, and how long do they take?"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from gpu_cases import BLOCK, HALO, HALO_LAYERS
from gpu_kernels import workers
from gpu_process import apart
from gpu_record import number
from gpu_session import Session
from gpu_timing import noted
from torch import Tensor

from parhelion.ops import gpu, halo_attention
from parhelion.ops.halo import table_rows, triton, triton_plan
from parhelion.speed.report import figures
from parhelion.speed.timing import Run, summary
from parhelion.speed.turns import in_turns

ROUNDS, REHEARSAL_ROUNDS = 7, 1
SEED = 20103019
# Of the time for this part, what trying plans may take; the rest is for timing those that run.
TRYING = 0.65
CURRENT = "as it is"
# Other plans add up in another order; a wrong one is off by hundreds of times as much.
SAME = {torch.bfloat16: 2e-2, torch.float16: 2e-3}


class Choice(NamedTuple):
    """What of a plan is chosen: the most keys of a tile, tiles on their way, whether to load ahead, and registers.

    `ahead` leaves no loop over tiles of keys, so that the one around it, over heads or tiles of queries, loads ahead.
    `registers` are the most of a thread, 0 being up to the compiler: with fewer, more programs share a multiprocessor.
    """

    keys: int
    stages: int
    ahead: bool
    registers: int

    def __str__(self) -> str:
        ahead = ", ahead" if self.ahead else ""
        return f"keys {self.keys}, stages {self.stages}{ahead}, registers {self.registers or 'free'}"


# Tiles of 32 queries and programs of 8 warps took 1.6 to 6 times as long on an H100.
CHOICES = tuple(Choice(*numbers) for numbers in product((64, 128), (1, 2), (False, True), (0, 168, 128)))
REHEARSED = (CHOICES[0], CHOICES[-1])


@contextmanager
def replanned(choice: Choice | None) -> Iterator[None]:
    """Let the kernels of halo attention be cut as `choice` says meanwhile; None leaves them as they are."""
    choose = triton_plan.plan

    def chosen(*arguments: Any, **options: Any) -> triton_plan.Plan:
        cut = choose(*arguments, **options)
        if choice is None:
            return cut
        (rows, cols), (tail_rows, tail_cols) = triton_plan.key_tiles(cut.side, most=choice.keys)
        cut = cut._replace(rows=rows, cols=cols, tail_rows=tail_rows, tail_cols=tail_cols)
        if not choice.ahead:
            return cut
        return cut._replace(unroll=max(-(-cut.side // some) for some in (rows, tail_rows) if some), all_heads=True)

    with ExitStack() as stack:
        stack.enter_context(patch.object(triton_plan, "plan", chosen))
        if choice is not None:
            stack.enter_context(patch.object(triton_plan, "stages", lambda *_: choice.stages))
        _forget_plans()
        yield
    _forget_plans()


def _forget_plans() -> None:
    """Empty what remembers plans, so that the next call makes one."""
    for module in (triton, triton_plan):
        for value in vars(module).values():
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()


class Planned(NamedTuple):
    """A plan's launches, ready to be made again, and its numbers."""

    launches: tuple[gpu.Launch, ...]
    answer: tuple[Tensor, ...]

    def run(self, *, backward: bool) -> Run:
        """The launches of one direction: the first kernel is forward, the others are backward."""
        some = self.launches[1:] if backward else self.launches[:1]

        def launched() -> tuple[Tensor, ...]:
            for launch in some:
                launch()
            return ()

        return launched

    def says(self) -> dict[str, Any]:
        """What the kernels were compiled for."""
        rows = {}
        for launch in self.launches:
            plan, choices = launch.choices["PLAN"], launch.choices
            tile = {"keys": plan.rows * plan.cols, "queries": plan.queries, "ahead": plan.all_heads}
            under_way = {"warps": choices["num_warps"], "stages": choices["num_stages"]}
            rows[launch.kernel.__name__] = tile | under_way | {"registers": choices.get("maxnreg", 0)}
        return rows


def planned(choice: Choice | None, sizes: Mapping[str, Any]) -> Planned:
    """Halo attention forward and backward, with a plan."""
    launches: list[gpu.Launch] = []
    run = gpu.Launch.__call__

    def noting(launch: gpu.Launch) -> None:
        if choice is not None and choice.registers:
            launch = launch._replace(choices={**launch.choices, "maxnreg": choice.registers})
        launches.append(launch)
        run(launch)

    *leaves, towards = _tensors(**sizes)
    with replanned(choice), patch.object(gpu.Launch, "__call__", noting):
        out = halo_attention(*leaves, block=BLOCK, halo=HALO, scale=0.25, impl="triton")
        answer = (out.detach(), *torch.autograd.grad(out, leaves, towards))
    return Planned(tuple(launches), answer)


def _tensors(*, batch: int, side: int, heads: int, channels: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(SEED)
    head_dim = channels // heads
    maps = [(batch, side, side, heads, head_dim)] * 3
    tables = [(table_rows(BLOCK, HALO), head_dim // 2)] * 2
    shapes = [*maps, *tables]
    tensors = [torch.randn(shape, generator=generator, device=device).to(dtype) for shape in (*shapes, maps[0])]
    return [tensor.requires_grad_() for tensor in tensors[:-1]] + tensors[-1:]


def compare_plans(session: Session) -> None:
    """Try each plan in a process of its own, which compiles it too; then time those that run in one process."""
    started = time.monotonic()
    choices: tuple[Choice | None, ...] = (None, *(REHEARSED if session.rehearsal else CHOICES))
    tasks = {_name(choice): partial(_tried, choice, _sizes(session)) for choice in choices}
    running: list[Choice | None] = []
    trying = started + TRYING * session.left
    # A few more than there are cores, so that none waits for a second turn.
    for name, ran, failed in apart(tasks, workers=workers() + 3, deadline=trying):
        choice = next(one for one in choices if _name(one) == name)
        session.record.put("plans", {"name": name, "ran": ran, "wrong": failed, "seconds": {}})
        print(f"{name}: {failed or 'it runs'}", flush=True)
        if failed is None:
            running.append(choice)
    if None not in running:
        raise RuntimeError("the plan as it is does not run, so that nothing can be compared with it")
    _time_plans(session, sorted(running, key=choices.index))


def _name(choice: Choice | None) -> str:
    return CURRENT if choice is None else str(choice)


def _tried(choice: Choice | None, sizes: Mapping[str, Any]) -> dict[str, Any]:
    found = planned(choice, sizes)
    if sizes["device"] != "cpu":
        torch.cuda.synchronize()
    ran = found.says()
    for kernel, numbers in ran.items():
        wanted = {key: value for key, value in choice._asdict().items() if key != "keys"} if choice else {}
        other = {key: numbers[key] for key, value in wanted.items() if numbers[key] != value}
        if other:
            raise RuntimeError(f"{kernel} runs with another plan: {other}")
    return ran


def _sizes(session: Session) -> dict[str, Any]:
    """Those of the first halo layer; for the interpreter one block in float16, since it cannot multiply bfloat16."""
    if session.rehearsal:
        return {"batch": 1, "side": BLOCK, "heads": 1, "channels": 16, "dtype": torch.float16, "device": session.device}
    channels, side, heads = HALO_LAYERS[0]
    return session.scale.layer(channels, side) | {"heads": heads, "dtype": torch.bfloat16}


def _time_plans(session: Session, choices: list[Choice | None]) -> None:
    sizes = _sizes(session)
    current = planned(None, sizes)
    runs: dict[str, Run] = {}
    rows = {row["name"]: row for row in session.record.rows("plans")}
    for choice in choices:
        name = _name(choice)
        found = current if choice is None else planned(choice, sizes)
        errors = [_difference(*pair) for pair in zip(found.answer, current.answer, strict=True)]
        rows[name]["differences"] = [number(error) for error in errors]
        # Written so that NaN is wrong.
        if not max(errors) <= SAME[sizes["dtype"]]:
            rows[name]["wrong"] = f"it differs from the plan as it is by {max(errors):.2g}"
            session.blame(f"plan {name}: {rows[name]['wrong']}")
        else:
            runs |= {f"{name}|{way}": found.run(backward=way == "backward") for way in ("forward", "backward")}
        session.record.put("plans", rows[name])

    def write(samples: Mapping[str, list[float]]) -> None:
        for key, turns in samples.items():
            name, way = key.split("|")
            if turns:
                rows[name]["seconds"][way] = summary(turns).median
        session.record.update({"plans": list(rows.values())})

    rounds = REHEARSAL_ROUNDS if session.rehearsal else ROUNDS
    failed: dict[str, str] = {}
    guard = partial(noted, failed)
    in_turns(runs, session.clock, rounds=rounds, say=session.say, until=session.deadline, after=write, guard=guard)
    for key, reason in failed.items():
        rows[key.split("|")[0]]["wrong"] = reason
    session.record.update({"plans": list(rows.values())})
    print("\n".join(text_of_plan(row) for row in rows.values()), flush=True)


def _difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


def text_of_plan(row: Mapping[str, Any]) -> str:
    """A plan as a line."""
    times = ", ".join(f"{way} {figures(1e3 * seconds)} ms" for way, seconds in row["seconds"].items())
    return f"{row['name']}: {row['wrong'] or times or 'not timed'}"
