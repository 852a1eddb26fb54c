"""Runs drawn together: accuracy against epoch, time, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.evaluate.compare import Group, notes, spread_text
from parhelion.evaluate.drawing import AMBER, BLUE, FAINT, GREEN, INK, PAPER, RED, dress, new_figure, plain, save_figure
from parhelion.evaluate.drawing import short as shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Twelve that can be told apart; later groups begin again with another marker.
COLORS = (
    BLUE,
    AMBER,
    GREEN,
    RED,
    "#7d5ba6",
    "#17a2b8",
    "#d6569a",
    "#8a6d3b",
    "#5b6472",
    "#9bb02f",
    "#1b2f6e",
    "#e7a08a",
)
MARKERS = "os^Dv<>phX"
WIDTH, PANELS, LEGEND_ROW = 11.0, 7.4, 0.24
# Names of more characters than the first stand below each other, and are cut at the second.
TWO_COLUMNS, LABEL = 48, 100
MARKERS_PER_CURVE = 12
# Beyond this ratio of the largest to the smallest, an axis of costs is logarithmic.
LINEAR = 6.0
TIMES = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


def compare_chart(groups: Sequence[Group], path: Path) -> None:
    """Draw `groups` to `path`: curves with a band over the seeds, and the last accuracy against its cost."""
    labels = [f"{shortened(group.label, LABEL)}   {_score(group)}" for group in groups]
    columns = 2 if len(groups) > 1 and max(map(len, labels)) <= TWO_COLUMNS + len(_score(groups[0])) else 1
    said = notes(groups)
    height = PANELS + LEGEND_ROW * (-(-len(groups) // columns) + bool(said))
    figure = new_figure(WIDTH, height, _title(groups))
    (by_epoch, by_time), (by_params, by_work) = figure.subplots(2, 2)
    _curves(by_epoch, groups, [group.epochs for group in groups], "epoch")
    times = [group.seconds() for group in groups]
    longest = max(seconds[-1] for seconds in times)
    unit, name = next((unit, name) for least, unit, name in TIMES if longest >= least)
    _curves(by_time, groups, [[value / unit for value in seconds] for seconds in times], f"{name} of training")
    _points(by_params, groups, [group.first.params for group in groups], "parameters")
    _points(by_work, groups, [group.first.multiply_adds for group in groups], "multiply-adds of one image")
    _legend(figure, by_epoch, labels, columns, "; ".join(said))
    save_figure(figure, path)


def _title(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    data = {str(run.recipe["data"]) for run in runs}
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{count} on {shortened(data.pop(), 60) if len(data) == 1 else 'different images'}"


def _score(group: Group) -> str:
    return spread_text(group.along("top1")[-1], lambda share: f"{100 * share:.2f}%")


def _style(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def _curves(axes: Axes, groups: Sequence[Group], places: Sequence[Sequence[float]], across: str) -> None:
    for number, (group, across_values) in enumerate(zip(groups, places, strict=True)):
        color, marker = _style(number)
        spreads = group.along("top1")
        every = max(1, len(spreads) // MARKERS_PER_CURVE)
        axes.plot(
            across_values,
            [100 * spread.mean for spread in spreads],
            color=color,
            lw=2,
            ls="-" if group.first.finished else "--",
            marker=marker,
            ms=5,
            mfc=color if group.first.finished else PAPER,
            # The last epoch is marked.
            markevery=((len(spreads) - 1) % every, every),
        )
        low, high = [100 * spread.low for spread in spreads], [100 * spread.high for spread in spreads]
        axes.fill_between(across_values, low, high, color=color, alpha=0.18, lw=0)
    dress(axes, "validation top-1, %", across)
    if across == "epoch":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        axes.set_xlim(left=0)
    bottom, top = _window(groups)
    axes.set_ylim(bottom, top)


def _window(groups: Sequence[Group]) -> tuple[float, float]:
    """Where the accuracies of curves are worth seeing: without the steep beginning of long runs."""
    curves = [[100 * spread.mean for spread in group.along("top1")] for group in groups]
    means = sorted(value for curve in curves for value in curve)
    low = min(means[len(means) // 5], *(curve[-1] for curve in curves))
    high = max(100 * group.best().high for group in groups)
    room = max(0.5, 0.08 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def _points(axes: Axes, groups: Sequence[Group], costs: Sequence[int], what: str) -> None:
    unit, letter = (1e9, "G") if max(costs) >= 1e9 else (1e6, "M")
    for number, (group, cost) in enumerate(zip(groups, costs, strict=True)):
        color, marker = _style(number)
        last = group.along("top1")[-1]
        low, mean, high = (100 * value for value in (last.low, last.mean, last.high))
        face = color if group.first.finished else PAPER
        axes.errorbar(
            cost / unit,
            mean,
            yerr=None if low == high else [[mean - low], [high - mean]],
            color=color,
            marker=marker,
            ms=9,
            mfc=face,
            mew=1.5,
            capsize=4,
            elinewidth=1.5,
        )
    dress(axes, "top-1 after the last epoch, %", f"{what}, {letter}")
    _scale_costs(axes, [cost / unit for cost in costs])
    ends = [100 * end for group in groups for end in (group.along("top1")[-1].low, group.along("top1")[-1].high)]
    room = max(0.5, 0.15 * (max(ends) - min(ends)))
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(costs), max(costs)
    if low > 0 and high / low > LINEAR:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.4)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.12 * (high - low) or 0.2 * high or 1.0
        axes.set_xlim(low - room, high + room)


def _legend(figure: Figure, axes: Axes, labels: Sequence[str], columns: int, note: str) -> None:
    legend = figure.legend(
        axes.get_lines(),
        [plain(label) for label in labels],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
        fontsize=9.5,
        handlelength=2.6,
        title=plain(note) or None,
        title_fontsize=8.5,
        alignment="left",
    )
    legend.get_title().set_color(FAINT)
