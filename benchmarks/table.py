"""Put a report into the pages: all its tables into docs/benchmarks.md, six rows into README.md, and a chart for both.

python benchmarks/table.py benchmarks/results/cpu.json
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.errors import UserError
from parhelion.files.atomic import write_text
from parhelion.speed.report import figures, speed_chart
from parhelion.speed.timing import footnote

ROOT = Path(__file__).resolve().parent.parent
SHORT = (
    ("halonet-h1-float32", 0, "halonet_h1, inference: images/s over timm's halonet_h1"),
    ("halonet-h1-float32", 1, "halonet_h1, inference: images/s over timm's resnet50"),
    ("halonet-h1-training", 0, "halonet_h1, training: images/s over timm's halonet_h1"),
    ("gsa-resnet50", 0, "gsa_resnet50, inference: images/s over timm's resnet50"),
    ("accelerate-halonet_h1", 0, "timm's halonet_h1 after `accelerate`: images/s over before"),
    ("halo-layer-forward", 0, "one HaloAttention, 64x64 pixels: time over a 3x3 convolution's (less is better)"),
)
"""The README's rows: a case, the number of its target, and what the row says."""
SIGNS = {"at most": "≤", "at least": "≥"}
DRAWN = {
    "halonet-h1-float32": (
        "parhelion",
        "timm halonet_h1",
        "timm resnet50",
        "timm efficientnet_b1",
        "OpenVINO, timm halonet_h1",
        "OpenVINO, timm resnet50",
    ),
}
"""The candidates of the chart, by case."""


def markdown(report: Mapping[str, Any], source: str) -> str:
    """Two tables, what was promised and what each candidate reached, with machine and versions; `source` is linked."""
    lines = ["| case | | asked | aim | reached |", "|---|---|---|---|---|"]
    for case in report["cases"]:
        lines += [_target_line(case["title"], target) for target in case["targets"]]
    lines += ["", "| case | candidate | images/s | ms per batch (quartiles) | of a matrix product | peak MiB |"]
    lines += ["|---|---|---|---|---|---|"]
    for case in report["cases"]:
        rows = [_candidate_cells(row) for row in case["candidates"]]
        rows += [f"{other['name']} | {other['reason']} | | |" for other in case["left_out"]]
        # The case is named once, before its first candidate.
        lines += [f"| {'' if index else case['title']} | {row} |" for index, row in enumerate(rows)]
    how = "Medians of one run, the candidates of a case in turns"
    return "\n".join([*lines, "", f"{footnote(report)}. {how}, {report['time'][:10]}: {linked(source)}."])


def linked(source: str) -> str:
    """A link to a file of the repository, which goes by its path from the root."""
    return f"[{source.removeprefix('../')}]({source})"


def short_markdown(report: Mapping[str, Any]) -> str:
    """The six rows of the README; a case that was not measured says so."""
    cases = {case["name"]: case for case in report["cases"]}
    lines = ["| on a CPU, float32, batch 8 (the layer: 4) | ratio |", "|---|--:|"]
    for name, number, says in SHORT:
        reached = cases[name]["targets"][number]["reached"] if name in cases else None
        lines.append(f"| {says} | {'not measured' if reached is None else figures(reached)} |")
    return "\n".join([*lines, "", f"{footnote(report)}; {report['time'][:10]}."])


def drawn(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with the cases and candidates of the chart only."""
    cases = [case for case in report["cases"] if case["name"] in DRAWN]
    kept = [[row for row in case["candidates"] if row["name"] in DRAWN[case["name"]]] for case in cases]
    cases = [{**case, "candidates": rows, "targets": []} for case, rows in zip(cases, kept, strict=True)]
    return {**report, "title": ", ".join(case["title"] for case in cases), "cases": cases}


def _target_line(title: str, target: Mapping[str, Any]) -> str:
    sign = SIGNS[target["direction"]]
    aim = "" if target["aim"] is None else f"{sign} {target['aim']:g}"
    value = "not measured" if target["reached"] is None else figures(target["reached"])
    strong = f"**{value}**" if target["bound_met"] else value
    return f"| {title} | {target['says']} | {sign} {target['bound']:g} | {aim} | {strong} |"


def _candidate_cells(row: Mapping[str, Any]) -> str:
    low, median, high = (figures(1e3 * row["seconds"][key]) for key in ("lower_quartile", "median", "upper_quartile"))
    share = row["share_of_matrix_product"]
    return (
        f"{row['name']} | {figures(row['images_per_second'])} | {median} ({low} to {high}) | "
        f"{'' if share is None else f'{100 * share:.0f}%'} | {figures(row['peak_memory_mib'])}"
    )


def between_markers(text: str, table: str, name: str = "benchmark") -> str:
    """`text` with `table` between the markers of a name.

    Raises:
        UserError: the markers are not there, once each and in order.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise UserError(f"the text must hold {first} and then {last}, once each")
    return f"{before}{first}\n\n{table}\n\n{last}{after}"


def main() -> None:
    """Rewrite the tables of both pages, and their chart, from a report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="a JSON file that benchmarks/cpu.py wrote")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs/")
    chosen = parser.parse_args()
    report = json.loads(chosen.report.read_text(encoding="utf-8"))
    source = f"../{chosen.report.resolve().relative_to(ROOT).as_posix()}"
    rewrite(chosen.root / "docs" / "benchmarks.md", markdown(report, source), "benchmark")
    rewrite(chosen.root / "README.md", short_markdown(report), "speed")
    speed_chart(drawn(report), chosen.root / "docs" / "images" / "speed.png")


def rewrite(page: Path, table: str, name: str) -> None:
    """Put `table` between the markers of a name on a page."""
    write_text(page, between_markers(page.read_text(encoding="utf-8"), table, name))


if __name__ == "__main__":
    main()
