"""A speed report: cases with their candidates in JSON, as a table, and as a chart."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parhelion.files.atomic import write_json
from parhelion.files.drawing import BLUE, FAINT, INK, PAPER, plain, save_figure
from parhelion.speed.timing import PACKAGES, Candidate, Run, footnote, measure, surroundings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST, KIN, OTHERS = BLUE, "#8fb3d9", "#c3c8d2"
HEADINGS = ("candidate", "ms per batch", "quartiles", "images/s", "ratio", "GFLOP/s", "of a product", "peak MiB")
# Inches of a chart: its width, and what each bar, the head of a panel, and title with footnote take.
WIDTH, BAR, PANEL, FRAME = 10.0, 0.34, 0.72, 1.15
FOOTNOTE_CHARACTERS = 170
# Elsewhere than on a terminal: a line about what is going on, not more often than this.
PLAIN_SECONDS = 10.0


def speed_report(
    cases: Sequence[Mapping[str, Any]], title: str, *, device: str = "cpu", packages: Sequence[str] = PACKAGES
) -> dict[str, Any]:
    """Cases with where and when they were measured and the versions of `packages`, ready for JSON."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"title": title, "time": now, "device": device, **surroundings(packages), "cases": list(cases)}


def speed_case(
    name: str,
    title: str,
    runs: Mapping[Candidate, Run],
    *,
    rounds: int | None,
    memory: bool,
    left_out: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """One case, measured.

    Args:
        name, title: What it is called, and what it says to people.
        runs: Checked candidates (`parhelion.speed.timing.ready`); the others are compared with the first.
        rounds, memory, say: See `parhelion.speed.timing.measure`.
        left_out: Candidates that did not run, each with the reason.

    Returns:
        The case, whose rows have a `ratio`: their median time over that of the first.
    """
    rows, products = measure(runs, rounds=rounds, memory=memory, say=say)
    for row in rows:
        row["ratio"] = row["seconds"]["median"] / rows[0]["seconds"]["median"]
    missing = [{"name": other, "reason": reason} for other, reason in (left_out or {}).items()]
    return {
        "name": name,
        "title": title,
        "rounds": rows[0]["seconds"]["rounds"] if rows else rounds,
        "matrix_product_gflops": {dtype: product["gflops"] for dtype, product in products.items()},
        "matrix_product_sides": {dtype: product["side"] for dtype, product in products.items()},
        "emulated_dtypes": [dtype for dtype, product in products.items() if product["emulated"]],
        "candidates": rows,
        "left_out": missing,
    }


def save_report(report: Mapping[str, Any], path: Path) -> None:
    """Write `path` (.json) and the chart beside it (.png), each whole or not at all."""
    write_json(path, report)
    speed_chart(report, path.with_suffix(".png"))


def narrator(*, quiet: bool = False) -> Callable[[str], None]:
    """Says on standard error what is going on: one line that changes on a terminal, few lines elsewhere.

    An empty text ends it.
    """
    on_terminal = sys.stderr.isatty()
    last = float("-inf")

    def say(text: str) -> None:
        nonlocal last
        if quiet or (not on_terminal and (not text or time.monotonic() - last < PLAIN_SECONDS)):
            return
        last = time.monotonic()
        # The code erases the rest of the line.
        print(f"\r{text}\x1b[K" if on_terminal else text, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    return say


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A candidate's row as text, in the order of HEADINGS; a dash where nothing was measured."""
    seconds, share = row["seconds"], row["share_of_matrix_product"]
    return (
        row["name"],
        figures(1e3 * seconds["median"]),
        f"{figures(1e3 * seconds['lower_quartile'])} to {figures(1e3 * seconds['upper_quartile'])}",
        figures(row["images_per_second"]),
        figures(row["ratio"]),
        figures(row["gflops"]),
        "-" if share is None else f"{100 * share:.0f}%",
        figures(row["peak_memory_mib"]),
    )


def figures(value: float | None) -> str:
    """`value` to three significant figures; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def speed_chart(report: Mapping[str, Any], path: Path) -> None:
    """Draw the report to `path`: a panel for each case, a bar with its rate for each candidate."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    cases = [case for case in report["cases"] if case["candidates"]]
    heights = [PANEL + BAR * len(case["candidates"]) for case in cases]
    figure = Figure(figsize=(WIDTH, FRAME + sum(heights)), facecolor=PAPER, layout=ConstrainedLayoutEngine(h_pad=0.08))
    figure.suptitle(plain(report["title"]), color=INK, size=13, weight="bold", x=0.01, ha="left")
    grid = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, case in zip(grid, cases, strict=True):
        _draw_case(axes, case, titled=len(cases) > 1)
    figure.supxlabel(plain(_wrapped(footnote(report))), color=FAINT, size=8, x=0.01, ha="left")
    save_figure(figure, path)


def _draw_case(axes: Axes, case: Mapping[str, Any], *, titled: bool) -> None:
    rows = case["candidates"]
    rates = [row["units"] / row["seconds"]["median"] for row in rows]
    # A slow quartile of seconds is the low end of the rate.
    low = [rate - row["units"] / row["seconds"]["upper_quartile"] for rate, row in zip(rates, rows, strict=True)]
    high = [row["units"] / row["seconds"]["lower_quartile"] - rate for rate, row in zip(rates, rows, strict=True)]
    places = range(len(rows))
    first = _short(rows[0]["name"])
    kin = [KIN if _short(row["name"]) == first else OTHERS for row in rows[1:]]
    spread = [[max(0.0, value) for value in side] for side in (low, high)]
    axes.barh(
        places, rates, color=[FIRST, *kin], height=0.68, xerr=spread, error_kw={"ecolor": INK, "lw": 1, "capsize": 2}
    )
    axes.set_yticks(places, [plain(row["name"]) for row in rows], size=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(rates))
    for place, row in zip(places, rows, strict=True):
        against = "" if place == 0 else f"   {_compared(row['ratio'], first)}"
        end = rates[place] + spread[1][place] + 0.012 * max(rates)
        text = f"{figures(rates[place])} {row['unit']}/s{against}"
        axes.text(end, place, text, va="center", color=INK, size=9, weight="bold" if place == 0 else "normal")
    if titled:
        axes.set_title(plain(case["title"]), color=INK, size=10.5, loc="left")
    axes.set_xticks([])
    promises = [f"{target['says']}: {figures(target['reached'])}" for target in case.get("targets", ())]
    axes.set_xlabel(plain("; ".join(promises)), loc="left", color=INK, size=9, style="italic")
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=INK)


def _short(name: str) -> str:
    """What comes before the comma: `timm halonet_h1` of `timm halonet_h1, compiled`."""
    return name.partition(",")[0]


def _compared(ratio: float, first: str) -> str:
    """A time ratio as people say it."""
    if ratio >= 1:
        return f"{first} is {figures(ratio)} times as fast"
    return f"{figures(1 / ratio)} times as fast as {first}"


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, FOOTNOTE_CHARACTERS, break_on_hyphens=False))
