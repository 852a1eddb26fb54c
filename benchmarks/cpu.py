"""Measure every case: check the numbers first, then time all candidates of a case in turns.

    python benchmarks/cpu.py                        # everything, into benchmarks/results/cpu.json and .png
    python benchmarks/cpu.py --only 'gsa-module*'   # some cases, to the terminal
    python benchmarks/cpu.py --eager                # without what torch.compile takes minutes for
    python benchmarks/cpu.py --quick                # two rounds, nothing compiled, no memory: does it all run?

Then `python benchmarks/table.py benchmarks/results/cpu.json` puts its tables into the pages. Exit code 1 where a
candidate computes wrong numbers; it is left out, and the report says why.
"""

import argparse
import gc
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from peers import PACKAGES

from parhelion.cli import exit_code
from parhelion.files.atomic import write_json
from parhelion.speed.report import HEADINGS, cells, figures, narrator, save_report, speed_case, speed_report
from parhelion.speed.timing import Candidate, Run, WrongNumbersError, footnote, ready

RESULTS = Path(__file__).parent / "results"
QUICK_ROUNDS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what `arguments` ask for; the exit code."""
    chosen = _parser().parse_args(arguments)
    cases = [case for case in CASES if fnmatchcase(case.name, chosen.only)]
    if not cases:
        print(f"no case is called {chosen.only!r}; there are {', '.join(case.name for case in CASES)}", file=sys.stderr)
        return 2
    out = chosen.out or (None if chosen.quick or chosen.only != "*" else RESULTS / "cpu")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    measured, wrong = [], []
    for case in cases:
        row = measured_case(case, quick=chosen.quick, eager=chosen.eager or chosen.quick, wrong=wrong)
        measured.append(row)
        print("\n".join(case_lines(row)), flush=True)
        if out is not None:
            # After each case, so that hours of measuring survive an interruption.
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out.with_suffix(".json"), speed_report(measured, "Parhelion on the CPU", packages=PACKAGES))
    report = speed_report(measured, "Parhelion on the CPU", packages=PACKAGES)
    if out is not None:
        save_report(report, out.with_suffix(".json"))
    print(footnote(report))
    for sentence in wrong:
        print(f"wrong: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="cases to measure, with * and ? as in a shell")
    parser.add_argument("--quick", action="store_true", help="two rounds, nothing compiled, no memory")
    parser.add_argument("--eager", action="store_true", help="nothing compiled, which takes minutes a network")
    parser.add_argument("--threads", type=int, help="threads of the CPU; PyTorch's own choice if not given")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="NAME",
        help="where to write NAME.json and NAME.png; benchmarks/results/cpu if everything is measured, else nowhere",
    )
    return parser


def measured_case(case: Case, *, quick: bool, eager: bool, wrong: list[str]) -> dict[str, Any]:
    """`case` as JSON: rows, what was left out and why, and what its targets reached.

    Sentences about candidates with wrong numbers are added to `wrong`.
    """
    say = narrator()
    runs: dict[Candidate, Run] = {}
    left_out: dict[str, str] = {}
    for candidate in case.candidates:
        reason = candidate.why_not()
        if reason is None and eager and getattr(candidate, "compiled", False):
            reason = "left out, since only eager candidates were asked for"
        if reason is None:
            say(f"{case.name}: checking {candidate.name}")
            try:
                runs[candidate] = ready(candidate)
            except WrongNumbersError as error:
                reason = str(error)
                wrong.append(f"{case.name}: {error}")
        if reason is not None:
            left_out[candidate.name] = reason
    rounds = QUICK_ROUNDS if quick else case.rounds
    row = speed_case(case.name, case.title, runs, rounds=rounds, memory=not quick, left_out=left_out, say=say)
    say("")
    del runs
    gc.collect()
    torch.compiler.reset()
    return row | {"targets": reached(case, row["candidates"])}


def reached(case: Case, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each target of `case` reached, None where nothing of it was measured.

    Whether a bound is met is known only if all were measured that ours is compared with; `without` names the others.
    """
    by_name = {row["name"]: row for row in rows}
    targets = []
    for target in case.targets:
        value = target.reached(by_name)
        without = [name for name in target.over if name not in by_name]
        bounds = {"bound": target.bound, "aim": target.aim}
        kept = {
            f"{name}_met": None if value is None or bound is None or without else target.met(value, bound)
            for name, bound in bounds.items()
        }
        head = {"says": target.says, "direction": target.direction, **bounds}
        targets.append({**head, "reached": value, "without": without, **kept})
    return targets


def case_lines(case: dict[str, Any]) -> list[str]:
    """A measured case as aligned text."""
    table = [HEADINGS, *(cells(row) for row in case["candidates"])]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = ["", f"{case['name']}: {case['title']}"]
    for name, *rest in table:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append(f"  {name.ljust(widths[0])}  {numbers}")
    lines += [f"  {other['name']}: {other['reason']}" for other in case["left_out"]]
    for target in case["targets"]:
        aim = "" if target["aim"] is None else f", aim {target['aim']:g}"
        verdict = {None: "not measured", True: "met", False: "MISSED"}[target["bound_met"]]
        if target["reached"] is not None and target["without"]:
            verdict = f"open without {', '.join(target['without'])}"
        asked = f"{target['direction']} {target['bound']:g}{aim}"
        lines.append(f"  {target['says']}: {figures(target['reached'])} ({asked}): {verdict}")
    return lines


if __name__ == "__main__":
    sys.exit(exit_code(main))
