"""The report of a run on a GPU as text: the tables of docs/benchmarks.md, and a summary for the end of the log."""

from collections.abc import Iterator, Mapping
from typing import Any

from cases import Target
from gpu_cases import FULL, TRAINED, cases
from gpu_kernels import text_of_kernel
from gpu_measure import floor_text
from gpu_plans import text_of_plan
from gpu_training import STAGES, text_of_steps
from table import SIGNS, linked

from parhelion.speed.report import figures
from parhelion.speed.timing import footnote

NOT_MEASURED = "not measured"


def markdown(report: Mapping[str, Any] | None, source: str) -> str:
    """The tables of a report for docs/benchmarks.md; what was not measured says so, and None is nothing measured."""
    measured = {} if report is None else {case["name"]: case for case in report["cases"]}
    lines = ["| case | | asked | aim | reached |", "|---|---|---|---|---|"]
    for case in cases(FULL):
        known = {target["says"]: target for target in measured.get(case.name, {}).get("targets", ())}
        lines += [_promise(case.title, target, known.get(target.says)) for target in case.targets]
    lines += [_auto_line(report), *_step_lines(report)]
    if report is None:
        return "\n".join(lines)
    lines += ["", "| case | candidate | images/s | ms per batch (lowest to highest) | floor, and what binds |"]
    lines[-1] += " share of the floor | peak MiB |"
    lines.append("|---|---|---|---|---|---|---|")
    for case in report["cases"]:
        rows = [_candidate(row) for row in case["candidates"]]
        rows += [f"{other['name']} | {other['reason'].replace('|', '/')} | | | | |" for other in case["left_out"]]
        lines += [f"| {'' if index else case['title']} | {row} |" for index, row in enumerate(rows)]
    how = "Medians of one run, the candidates of a case in turns"
    return "\n".join([*lines, "", f"{footnote(report)}. {how}, {report['time'][:10]}: {linked(source)}."])


def _promise(title: str, target: Target, known: Mapping[str, Any] | None) -> str:
    sign = SIGNS[target.direction]
    value = None if known is None else known["reached"]
    text = NOT_MEASURED if value is None else figures(value)
    strong = f"**{text}**" if known is not None and known["bound_met"] else text
    if value is not None and known["without"]:
        strong += f"; without {', '.join(known['without'])}"
    return f"| {title} | {target.says} | {sign} {target.bound:g} | {sign} {target.aim:g} | {strong} |"


def _auto_line(report: Mapping[str, Any] | None) -> str:
    shapes = [] if report is None else report.get("auto", [])
    faster = sum(1 for shape in shapes if shape["picks_the_faster"])
    text = f"{faster} of {len(shapes)}" if shapes else NOT_MEASURED
    strong = f"**{text}**" if shapes and faster == len(shapes) else text
    return f'| every shape above and within our networks | impl="auto" picks the faster path | all | | {strong} |'


def _step_lines(report: Mapping[str, Any] | None) -> list[str]:
    runs = {} if report is None else {run["model"]: run for run in report.get("steps", [])}
    asked, lines = STAGES[-1], []
    for model in TRAINED:
        run = runs.get(model)
        text = NOT_MEASURED if run is None else f"{run['finite_steps']} of {run['steps']}"
        strong = f"**{text}**" if run is not None and run["finite_steps"] == run["steps"] >= asked else text
        lines.append(f"| {model}, training steps on images | loss and gradients finite | all of {asked} | | {strong} |")
    return lines


def _candidate(row: Mapping[str, Any]) -> str:
    low, median, high = (figures(1e3 * row["seconds"][key]) for key in ("lowest", "median", "highest"))
    floor = row["floor"]
    bound, share = ("-", "-") if floor is None else (floor_text(floor), f"{100 * floor['share']:.0f}%")
    rate, memory = figures(row["images_per_second"]), figures(row["peak_memory_mib"])
    return f"{row['name']} | {rate} | {median} ({low} to {high}) | {bound} | {share} | {memory}"


def summary_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What came out, in few lines: parts, kernels, tests, cases, plans, steps, failures."""
    yield f"{report['title']}, {report['time']}: {footnote(report)}"
    for part in report["parts"]:
        yield f"part {part['name']}: {part['state']} {part.get('seconds', '')} {part.get('reason', '')}".rstrip()
    yield from (text_of_kernel(row) for row in report.get("kernels", ()))
    outcomes = [test["outcome"] for test in report.get("tests", ())]
    if outcomes:
        yield "tests: " + ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes)))
    for case in report["cases"]:
        yield f"{case['title']}:"
        for row in case["candidates"]:
            floor = row["floor"]
            share = "" if floor is None else f", {100 * floor['share']:.0f}% of the floor, {floor_text(floor)}"
            memory = row["peak_memory_mib"]
            held = "" if memory is None else f", {figures(memory)} MiB"
            yield f"  {row['name']}: {figures(1e3 * row['seconds']['median'])} ms{share}{held}"
        yield from (f"  {other['name']}: {other['reason']}" for other in case["left_out"])
    yield from (f"plan {text_of_plan(row)}" for row in report.get("plans", ()))
    yield from (text_of_steps(run) for run in report.get("steps", ()))
    if report.get("auto"):
        slower = [shape["title"] for shape in report["auto"] if not shape["picks_the_faster"]]
        yield f"auto: the slower path at {len(slower)} of {len(report['auto'])} shapes {'; '.join(slower)}".rstrip()
    if "sanitizer" in report:
        yield report["sanitizer"]
    yield from (f"wrong: {failure}" for failure in report["failures"])
