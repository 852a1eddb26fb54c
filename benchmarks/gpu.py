"""On one NVIDIA GPU: build the kernels, test them, then time layers and networks against their peers.

    python benchmarks/gpu.py                              # everything, into benchmarks/results/gpu.json and .png
    python benchmarks/gpu.py --only 'halo-layer*'         # some parts, to the terminal; --list names all
    python benchmarks/gpu.py --only 'gsa*' --out NAME --add  # ... into the report of the same GPU and commit
    python benchmarks/gpu.py --quick                      # two rounds, few steps: does it all run?
    python benchmarks/gpu.py --device cpu --quick         # a dry run with tiny sizes where there is no GPU
    python benchmarks/gpu.py --table                      # docs/benchmarks.md's tables, from the report if there is one

Exit code 1 where kernels do not build, tests fail, a candidate computes wrong numbers, one of ours fails, or training
steps are not finite; what is left out stands in the report with its reason.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from cases import Case
from cpu import case_lines
from gpu_cases import FULL, TINY, TRAINED, cases, choices, markdown
from gpu_measure import (
    AUTO,
    Session,
    auto_line,
    auto_shape,
    floor_lines,
    measured_case,
    new_session,
    training_steps,
)
from gpu_peers import GpuLayer
from gpu_timing import gpu_facts, noted
from table import between_markers

from parhelion.cli import exit_code
from parhelion.errors import UserError
from parhelion.files.atomic import write_json, write_text
from parhelion.speed.report import save_report, speed_report
from parhelion.speed.timing import footnote

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "benchmarks.md"
PACKAGES = ("parhelion", "torch", "triton", "timm", "gsa-pytorch")
TESTS = ("-m", "pytest", "-q", "-m", "triton", "tests/ops")
SANITIZER = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "1")
SMALL_TESTS = "test_nothing_beside_the_maps_is_read"
STEPS, QUICK_STEPS = 500, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` ask for; the exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.table:
        tables = table(RESULTS / "gpu.json")
        print(tables)
        write_text(PAGE, between_markers(PAGE.read_text(encoding="utf-8"), tables, "gpu"))
        return 0
    scale = TINY if chosen.device == "cpu" else FULL
    if chosen.list:
        print("\n".join(part_names(cases(scale))))
        return 0
    check_device(chosen)
    parts = [name for name in part_names(cases(scale)) if fnmatchcase(name, chosen.only)]
    if not parts:
        raise UserError(f"nothing is called {chosen.only!r}; there are {', '.join(part_names(cases(scale)))}")
    session = new_session(scale, quick=chosen.quick, eager=chosen.eager)
    out = chosen.out or (None if chosen.quick or chosen.only != "*" else RESULTS / "gpu")
    report = new_report(session)
    if out is not None and chosen.add:
        take_over(report, out.with_suffix(".json"))
    problem = built(session, [case for case in cases(scale) if case.name in parts])
    problem = problem or (None if chosen.skip_tests else tested())
    if problem is not None:
        print(f"nothing is timed: {problem}", file=sys.stderr)
        return 1
    report["tests"] = None if chosen.skip_tests else tests_passed()
    steps = chosen.steps or (QUICK_STEPS if chosen.quick else STEPS)
    measure_all(session, report, parts, out=out, steps=steps)
    print(footnote(report))
    for failure in session.failures:
        print(f"wrong: {failure}", file=sys.stderr)
    return 1 if session.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="parts to run, with * and ? as in a shell")
    parser.add_argument("--list", action="store_true", help="print the names of all parts")
    parser.add_argument("--quick", action="store_true", help="two rounds and few training steps")
    parser.add_argument("--eager", action="store_true", help="nothing compiled, which takes minutes a network")
    parser.add_argument("--skip-tests", action="store_true", help="do not run the kernels' tests first")
    parser.add_argument("--steps", type=int, help=f"training steps on images; {STEPS} if not given")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run, with --quick")
    parser.add_argument("--add", action="store_true", help="keep the other parts of the report that --out names")
    parser.add_argument("--table", action="store_true", help="print the report as tables, into docs/benchmarks.md too")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="NAME",
        help="where to write NAME.json and NAME.png; benchmarks/results/gpu if everything is measured, else nowhere",
    )
    return parser


def check_device(chosen: argparse.Namespace) -> None:
    """Raise UserError where `chosen` asks for what this machine, or a dry run, cannot give."""
    if chosen.steps is not None and chosen.steps < 1:
        raise UserError(f"--steps must be at least 1, not {chosen.steps}")
    if chosen.add and chosen.out is None:
        raise UserError("--add wants --out NAME, the report to add to")
    if chosen.device == "cpu":
        if not chosen.quick:
            raise UserError("--device cpu is a dry run and wants --quick: these cases are sized for a GPU")
        if chosen.out is not None and chosen.out.resolve().is_relative_to(RESULTS):
            raise UserError(f"a dry run is no result: --out must lie elsewhere than in {RESULTS.relative_to(ROOT)}")
    elif not torch.cuda.is_available() or torch.version.hip is not None:
        raise UserError("this needs an NVIDIA GPU, and PyTorch finds none; --device cpu --quick is a dry run without")


def new_report(session: Session) -> dict[str, Any]:
    """A report without a case."""
    dry = session.device == "cpu"
    title = "Dry run on a CPU with tiny sizes: no result" if dry else "Parhelion on a GPU"
    report = speed_report([], title, device=session.device, packages=PACKAGES)
    report |= {"dry_run": dry, "auto": [], "steps": []}
    if not dry:
        report["gpu"] = facts = gpu_facts()
        driver = facts["driver_version"] or "unknown"
        # What the footnote says about the device.
        report["machine"]["capability"] = f"compute {facts['capability']}, driver {driver}, CUDA {facts['cuda']}"
    return report


def take_over(report: dict[str, Any], path: Path) -> None:
    """Put the parts that `path` holds into `report`; nothing if there is no such file.

    Raises:
        UserError: it was measured on something else.
    """
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for key in ("device", "commit", "versions"):
        if before.get(key) != report[key]:
            raise UserError(f"{path} was measured with another {key}; name another report")
    if before.get("gpu", {}).get("name") != report.get("gpu", {}).get("name"):
        raise UserError(f"{path} was measured on another GPU; name another report")
    report |= {key: before[key] for key in ("cases", "auto", "steps")}


def part_names(all_cases: Sequence[Case]) -> list[str]:
    """Every name that --only may match, in the order of running."""
    return [case.name for case in all_cases] + [AUTO] + [step_name(model) for model in TRAINED]


def step_name(model: str) -> str:
    """What the training steps of a model are called."""
    return f"steps-{model.replace('_', '-')}"


def built(session: Session, chosen: Sequence[Case]) -> str | None:
    """Call our layers for the first time, which compiles their kernels; what is wrong, None if all run."""
    started = time.monotonic()
    failed: dict[str, str] = {}
    layers = {case.name: case.candidates[0] for case in chosen if isinstance(case.candidates[0], GpuLayer)}
    # One of each layer where only networks are asked for.
    for case in cases(session.scale) if not layers else ():
        if isinstance(case.candidates[0], GpuLayer):
            layers.setdefault(case.name.partition("-")[0], case.candidates[0])
    for name, layer in layers.items():
        session.say(f"building the kernels of {name}")
        with noted(failed, name):
            replace(layer, batch=1, impl=session.scale.kernel, backward=True).build()()
    session.say("")
    if failed:
        return f"the kernels do not build: {'; '.join(f'{name}: {why}' for name, why in failed.items())}"
    print(f"built: first calls of {len(layers)} layers in {time.monotonic() - started:.0f} s", flush=True)
    return None


def tested() -> str | None:
    """Run the tests of kernels, small ones under compute-sanitizer, too, if it is there; what is wrong, or None."""
    commands = [[sys.executable, *TESTS]]
    if shutil.which(SANITIZER[0]):
        commands.append([*SANITIZER, sys.executable, *TESTS, "-k", SMALL_TESTS])
    for command in commands:
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code != 0:
            return f"the kernels' tests fail: {' '.join(command)} ends with code {code}"
    return None


def tests_passed() -> str:
    """What `tested` has run."""
    memory = f"{' '.join(SANITIZER)} on {SMALL_TESTS}" if shutil.which(SANITIZER[0]) else f"{SANITIZER[0]} is not there"
    return f"python {' '.join(TESTS)}: passed; memory: {memory}"


def measure_all(
    session: Session, report: dict[str, Any], parts: Sequence[str], *, out: Path | None, steps: int
) -> None:
    """Run the `parts` and put them into `report`, which is written after each if `out` is given."""
    all_cases = cases(session.scale)

    def put(key: str, rows: Sequence[dict[str, Any]], known_by: str) -> None:
        new = {row[known_by] for row in rows}
        report[key] = [row for row in report[key] if row[known_by] not in new] + list(rows)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out.with_suffix(".json"), report)

    for case in all_cases:
        if case.name in parts:
            row = measured_case(case, session)
            print("\n".join([*case_lines(row), *floor_lines(row)]), flush=True)
            put("cases", [row], "name")
    if AUTO in parts:
        shapes = [auto_shape(case, session) for case in choices(session.scale, all_cases)]
        print("\n".join(["", "auto: what it runs, against each by name", *map(auto_line, shapes)]), flush=True)
        put("auto", shapes, "title")
    for model in TRAINED:
        if step_name(model) in parts:
            run = training_steps(model, session, steps)
            print(f"\n{model}: {run['finite_steps']} of {steps} steps finite, loss {run['losses']}", flush=True)
            put("steps", [run], "model")
    order = [case.name for case in all_cases]
    report["cases"].sort(key=lambda row: order.index(row["name"]))
    if out is not None and report["cases"]:
        save_report(report, out.with_suffix(".json"))


def table(path: Path) -> str:
    """The tables of the report at `path`, every cell "not measured" where there is none."""
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return markdown(report, f"../{path.relative_to(ROOT).as_posix()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
