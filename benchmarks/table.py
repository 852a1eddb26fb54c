"""Turn a report into the Markdown between the markers of README.md.

python benchmarks/table.py benchmarks/results/cpu.json [README.md]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.errors import UserError
from parhelion.files.atomic import write_text
from parhelion.speed.report import figures
from parhelion.speed.timing import footnote

ROOT = Path(__file__).resolve().parent.parent


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
    return "\n".join([*lines, "", f"{footnote(report)}. {how}, {report['time'][:10]}: [{source}]({source})."])


def _target_line(title: str, target: Mapping[str, Any]) -> str:
    sign = "≤" if target["less_is_better"] else "≥"
    aim = "" if target["aim"] is None else f"{sign} {target['aim']:g}"
    value = "not measured" if target["reached"] is None else figures(target["reached"])
    strong = f"**{value}**" if target["at_least_met"] else value
    return f"| {title} | {target['says']} | {sign} {target['at_least']:g} | {aim} | {strong} |"


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
    """Rewrite the README's table from a report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("report", type=Path, help="a JSON file that benchmarks/cpu.py wrote")
    parser.add_argument("readme", type=Path, nargs="?", default=ROOT / "README.md")
    chosen = parser.parse_args()
    source = chosen.report.resolve().relative_to(chosen.readme.resolve().parent).as_posix()
    table = markdown(json.loads(chosen.report.read_text(encoding="utf-8")), source)
    write_text(chosen.readme, between_markers(chosen.readme.read_text(encoding="utf-8"), table))


if __name__ == "__main__":
    main()
