"""On one NVIDIA GPU, in a time that is given: check the kernels, then time layers and networks against their peers.

    python benchmarks/gpu.py --seconds 480 --out DIR                        # into DIR/gpu.json and DIR/log.txt
    python benchmarks/gpu.py --seconds 300 --out DIR --add --only networks  # some parts, beside those of before
    python benchmarks/gpu.py --rehearse --out DIR                           # everything in small on a CPU: no result
    python benchmarks/gpu.py --list                                         # the parts, in the order of their value
    python benchmarks/gpu.py --table [REPORT]                               # tables of docs/benchmarks.md

It needs PyTorch, Triton, timm, pytest and pytest-xdist. This package need not be installed: `PYTHONPATH=src` will do.
Each part has a process and a time limit of its own, and none is begun that the time left is too short for. The report
is whole after every check and every round. What fails is recorded and stops nothing. Exit code 1: something failed.
The parts tests, ahead and steps want no clock: with little time, run them at once, each with a folder of its own.
"""

import argparse
import codecs
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Asking whether there is a GPU must not keep the processes of the parts, forked from this one, from using it.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
if "--rehearse" in sys.argv:
    # Triton looks at it when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

from gpu_parts import PARTS, Part, rehearse
from gpu_process import Ending, forked
from gpu_record import Record
from gpu_session import check_same, facts, new_session
from gpu_table import markdown, summary_lines
from table import between_markers

from parhelion.cli import USER_MISTAKE, exit_code
from parhelion.errors import UserError
from parhelion.files.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE = ROOT / "benchmarks" / "results" / "gpu.json", ROOT / "docs" / "benchmarks.md"
REPORT, LOG = "gpu.json", "log.txt"
SECONDS = 480
# What a part may still write down after its deadline, and what the end of all takes.
ENDING_SECONDS, LAST_SECONDS = 8, 3
FACTS_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` ask for; the exit code."""
    started = time.monotonic()
    chosen = _parser().parse_args(arguments)
    if chosen.list:
        print("\n".join(f"{part.name:18} up to {part.most:3.0f} s  {part.says}" for part in PARTS))
        return 0
    if chosen.table is not None:
        tables = table(chosen.table)
        print(tables)
        write_text(PAGE, between_markers(PAGE.read_text(encoding="utf-8"), tables, "gpu"))
        return 0
    parts = _chosen_parts(chosen)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with (chosen.out / LOG).open("ab") as log:
        runner = Runner(chosen.out / REPORT, log, started + chosen.seconds, rehearsal=chosen.rehearse)
        if not runner.begin():
            return USER_MISTAKE
        for part in parts:
            runner.run(part)
        return runner.end()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time for everything; {SECONDS} if not given")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {REPORT} and {LOG}")
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts to run, see --list; all if not given")
    parser.add_argument("--add", action="store_true", help="keep the other parts of the report that DIR holds")
    parser.add_argument("--rehearse", action="store_true", help="everything in small on a CPU, to see that it runs")
    parser.add_argument("--list", action="store_true", help="print the names of all parts")
    parser.add_argument(
        "--table",
        type=Path,
        nargs="?",
        const=RESULT,
        metavar="REPORT",
        help=f"print a report as tables, into docs/benchmarks.md too; {RESULT.relative_to(ROOT)} if not given",
    )
    return parser


def _chosen_parts(chosen: argparse.Namespace) -> list[Part]:
    """The parts to run.

    Raises:
        UserError: the arguments ask for what cannot be.
    """
    if chosen.out is None:
        raise UserError("name a folder for the results with --out DIR")
    # Absolute, since a part may work elsewhere.
    chosen.out = chosen.out.resolve()
    if chosen.seconds <= 0:
        raise UserError(f"--seconds must be more than 0, not {chosen.seconds:g}")
    names = [part.name for part in PARTS]
    unknown = [name for name in chosen.only or () if name not in names]
    if unknown:
        raise UserError(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}")
    if (chosen.out / REPORT).exists() and not chosen.add:
        raise UserError(f"{chosen.out / REPORT} is there already; --add keeps its other parts, or name another folder")
    return [part for part in PARTS if chosen.only is None or part.name in chosen.only]


class Runner:
    """Runs parts one after the other, each in a process of its own, until the time is over."""

    def __init__(self, path: Path, log: Any, deadline: float, *, rehearsal: bool) -> None:
        self.path, self.log, self.deadline, self.rehearsal = path, log, deadline, rehearsal
        # What comes may end within a character.
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def left(self) -> float:
        """Seconds for parts."""
        return self.deadline - time.monotonic() - LAST_SECONDS

    def tell(self, some: bytes) -> None:
        """Print what a part printed, and keep it."""
        sys.stdout.write(self.decoder.decode(some))
        sys.stdout.flush()
        self.log.write(some)
        self.log.flush()

    def say(self, text: str) -> None:
        """Print a line and keep it."""
        self.tell(f"{text}\n".encode())

    def begin(self) -> bool:
        """Write the head of the report; whether it can be measured at all. The reason is printed."""
        ending = forked(partial(_write_head, self.path, self.rehearsal), seconds=FACTS_SECONDS, tell=self.tell)
        if ending.timed_out:
            self.say("the GPU does not answer")
        return ending.code == 0

    def run(self, part: Part) -> None:
        """Run `part`, if there is time for it, and write down how it ended."""
        if self.left < part.least:
            reason = f"{self.left:.0f} s were left, and it wants {part.least:.0f} at least"
            self._write(part, {"state": "not begun", "reason": reason})
            self.say(f"\n== {part.name}: not begun: {reason}")
            return
        # A rehearsal takes the time that a CPU takes.
        seconds = self.left if self.rehearsal else min(part.most, self.left)
        self.say(f"\n== {part.name}: {part.says}; {seconds:.0f} s at most, {self.left:.0f} s left")
        work = partial(_work, part, self.path, max(1.0, seconds - ENDING_SECONDS), self.rehearsal)
        ending = forked(work, seconds=seconds, tell=self.tell)
        row = {"state": "done" if ending.code == 0 else "failed", "seconds": round(ending.seconds, 1)}
        if ending.code != 0:
            row |= {"reason": _reason(ending, seconds), "last_lines": list(ending.last_lines)}
        self._write(part, row)
        self.say(f"== {part.name}: {row['state']} after {row['seconds']} s {row.get('reason', '')}".rstrip())

    def end(self) -> int:
        """Print what came out; the exit code."""
        report = Record(self.path).report
        self.say("\n".join(["", *summary_lines(report)]))
        failed = any(part["state"] == "failed" for part in report.get("parts", ()))
        return 1 if failed or report.get("failures") else 0

    def _write(self, part: Part, row: dict[str, Any]) -> None:
        Record(self.path).put("parts", {"name": part.name, "rehearsal": self.rehearsal, **row})


def _write_head(path: Path, rehearsal: bool) -> int:
    """Write down what is measured on; exit code 2 where it cannot be."""

    def write() -> None:
        record, head = Record(path), facts(rehearsal=rehearsal)
        if record.report:
            check_same(record.report, head, path)
        record.update(head | {key: record.report.get(key, []) for key in ("parts", "failures", "cases")})

    return exit_code(write)


def _work(part: Part, path: Path, seconds: float, rehearsal: bool) -> int:
    """Do the work of a part in this process."""
    if rehearsal:
        rehearse()
    part.work(new_session(path, seconds=seconds, rehearsal=rehearsal, part=part.name))
    return 0


def _reason(ending: Ending, seconds: float) -> str:
    if ending.timed_out:
        return f"it was ended after {seconds:.0f} s"
    if ending.code < 0:
        return f"it ended with signal {-ending.code}; the log says where"
    lines = [line for line in ending.last_lines if line.strip()]
    return f"it ended with code {ending.code}: {lines[-1] if lines else 'it said nothing'}"


def table(path: Path) -> str:
    """The tables of the report at `path`, every cell "not measured" where there is none."""
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if report is not None and report["rehearsal"]:
        raise UserError(f"{path} is a rehearsal's, which is no result")
    path = path.resolve()
    source = f"../{path.relative_to(ROOT).as_posix()}" if path.is_relative_to(ROOT) else path.name
    return markdown(report, source)


if __name__ == "__main__":
    sys.exit(exit_code(main))
