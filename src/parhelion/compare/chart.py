"""Runs drawn together: their scores against epoch, time, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from parhelion.compare.runs import Group, notes, spread_text
from parhelion.files.drawing import AMBER, BLUE, FAINT, GREEN, INK, PAPER, RED, dress, new_figure, plain, save_figure
from parhelion.files.drawing import short as shortened

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
# In inches: the sides of a panel, a line of the legend.
PANEL_WIDTH, PANEL_HEIGHT, LEGEND_ROW = 5.5, 3.7, 0.24
# Where two scores are drawn, each has the four panels of its row.
NARROW = 4.4
# Of the legend: what fits into an inch beside the mark, which takes half of one. Names too long for half of the
# picture's width stand below each other, and those too long for all of it are cut.
CHARACTERS_PER_INCH, MARK = 11, 0.5
MARKERS_PER_CURVE = 12
# In epochs; of a shorter run all is shown.
LONG_RUN = 10
# Beyond this ratio of the largest to the smallest, an axis of costs is logarithmic.
LINEAR = 6.0
TIMES = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A score as it is drawn, over the groups that have it."""

    metric: str
    name: str
    # Each with its place among all groups, from which its colour follows.
    members: tuple[tuple[int, Group], ...]

    @property
    def groups(self) -> list[Group]:
        return [group for _, group in self.members]


def compare_chart(groups: Sequence[Group], path: Path) -> None:
    """Draw `groups` to `path`: curves with a band over the seeds, and the last score against its cost."""
    yardstick = groups[0].yardstick
    every = [_drawn(groups, metric, name) for metric, name in yardstick.drawn.items()]
    scores = [score for score in every if score.members]
    said = notes(groups)
    width = 2 * PANEL_WIDTH if len(scores) == 1 else 4 * NARROW
    labels = [_legend_line(group, _fitting(width)) for group in groups]
    columns = 2 if len(groups) > 1 and max(map(len, labels)) <= _fitting(width / 2) else 1
    height = 2 * PANEL_HEIGHT + LEGEND_ROW * (-(-len(groups) // columns) + bool(said))
    figure = new_figure(width, height, _title(groups))
    panels = figure.subplots(2, 2).reshape(1, 4) if len(scores) == 1 else figure.subplots(len(scores), 4)
    longest = max(group.seconds()[-1] for group in groups)
    unit, name = next((unit, name) for least, unit, name in TIMES if longest >= least)
    for score, (by_epoch, by_time, by_params, by_work) in zip(scores, panels, strict=True):
        _curves(by_epoch, score, [group.epochs for group in score.groups], "epoch")
        times = [[value / unit for value in group.seconds()] for group in score.groups]
        _curves(by_time, score, times, f"{name} of training")
        _points(by_params, score, [group.first.params for group in score.groups], yardstick.params)
        _points(by_work, score, [group.first.multiply_adds for group in score.groups], f"{yardstick.work} of one image")
    # The first score is one that every group has.
    _legend(figure, panels[0][0], labels, columns, "; ".join(said))
    save_figure(figure, path)


def _drawn(groups: Sequence[Group], metric: str, name: str) -> _Drawn:
    members = tuple((place, group) for place, group in enumerate(groups) if group.measures(metric))
    return _Drawn(metric=metric, name=name, members=members)


def _title(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    data = {str(run.recipe["data"]) for run in runs}
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{count} on {shortened(data.pop(), 60) if len(data) == 1 else 'different images'}"


def _fitting(width: float) -> int:
    """Characters of the legend that fit into `width` inches."""
    return int(CHARACTERS_PER_INCH * (width - MARK))


def _legend_line(group: Group, most: int) -> str:
    """The group's name and its scores after the last epoch; the name is cut so that both have `most` characters."""
    scores = _scores(group)
    return f"{shortened(group.label, most - len(scores) - 3)}   {scores}"


def _scores(group: Group) -> str:
    columns = [column for column in group.yardstick.shares if group.measures(column.metric)]
    texts = [spread_text(group.along(column.metric)[-1], column.text) for column in columns]
    if len(texts) == 1:
        return texts[0]
    return ", ".join(f"{column.heading} {text}" for column, text in zip(columns, texts, strict=True))


def _style(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]


def _curves(axes: Axes, score: _Drawn, across: Sequence[Sequence[float]], title: str) -> None:
    for (place, group), values in zip(score.members, across, strict=True):
        color, marker = _style(place)
        spreads = group.along(score.metric)
        every = max(1, len(spreads) // MARKERS_PER_CURVE)
        axes.plot(
            values,
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
        axes.fill_between(values, low, high, color=color, alpha=0.18, lw=0)
    dress(axes, f"validation {score.name}, %", title)
    if title == "epoch":
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        axes.set_xlim(left=0)
    bottom, top = _window(score)
    axes.set_ylim(bottom, top)


def _window(score: _Drawn) -> tuple[float, float]:
    """Where the scores of curves are worth seeing: without the steep beginning of long runs."""
    curves = [group.along(score.metric) for group in score.groups]
    if max(map(len, curves)) < LONG_RUN:
        low = min(100 * spread.low for curve in curves for spread in curve)
    else:
        means = sorted(100 * spread.mean for curve in curves for spread in curve)
        low = min(means[len(means) // 5], *(100 * curve[-1].mean for curve in curves))
    high = max(100 * group.best(score.metric).high for group in score.groups)
    room = max(0.5, 0.08 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def _points(axes: Axes, score: _Drawn, costs: Sequence[int], what: str) -> None:
    unit, letter = (1e9, "G") if max(costs) >= 1e9 else (1e6, "M")
    lasts = [group.along(score.metric)[-1] for group in score.groups]
    for (place, group), last, cost in zip(score.members, lasts, costs, strict=True):
        color, marker = _style(place)
        low, mean, high = (100 * value for value in (last.low, last.mean, last.high))
        axes.errorbar(
            cost / unit,
            mean,
            yerr=None if low == high else [[mean - low], [high - mean]],
            color=color,
            marker=marker,
            ms=9,
            mfc=color if group.first.finished else PAPER,
            mew=1.5,
            capsize=4,
            elinewidth=1.5,
        )
    dress(axes, f"{score.name} after the last epoch, %", f"{what}, {letter}")
    _scale_costs(axes, [cost / unit for cost in costs])
    ends = [100 * end for last in lasts for end in (last.low, last.high)]
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
