"""A `Chart` drawn by matplotlib: as a file for papers and slides, and as SVG on the page for readers without scripts.

No pyplot, so no global state.
"""

from __future__ import annotations

import io
import math
import re

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from powerbench.printable import printable
from powerbench.reports.chart import Axis, Chart, Rule, Series
from powerbench.reports.phases import PhaseRow
from powerbench.reports.style import is_dark

_FAINT = 0.35


def figure(chart: Chart, title: str | None = None, *, legend: bool = True) -> Figure:
    """The chart at a paper's width, 7.2 inches with a legend and 6 without one."""
    own = legend or chart.legend
    height = max(2.2, chart.height / 100)
    result = Figure(figsize=(7.6 if own else 6.2, height))
    axes = result.subplots()
    top = 1 - (0.32 if title else 0.1) / height
    named = max((len(text) for _, text in chart.y.ticks), default=0) if chart.y.kind == "category" else 0
    left = 0.1 + min(0.006 * named, 0.25)
    result.subplots_adjust(left=left, right=0.76 if own else 0.97, bottom=0.55 / height, top=top)
    if title:
        axes.set_title(_plain(title), fontsize=9)
    _set_axis(axes, chart.x, "x")
    _set_axis(axes, chart.y, "y")
    if chart.drawn_as == "cells":
        _cells(axes, chart)
    else:
        axes.grid(color="0.9", axis="x" if chart.drawn_as == "bars" else "both")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        _series(axes, chart)
    for rule in chart.rules:
        _rule(axes, rule)
    if chart.y.kind == "category":
        axes.set_ylim(len(chart.y.ticks) - 0.5, -0.5)
    if own:
        _add_legend(axes)
    return result


def inline_svg(chart: Chart, id: str) -> str:
    """The chart as an `svg` element for the page; its own ids begin with `id`, since the page has many of these.

    Texts stay texts, in the page's font, and take its colour, dark or light.
    """
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": id, "font.family": "sans-serif"}):
        figure(chart, legend=False).savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<title>.*?</title>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{id}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{id}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"| height="[^"]*pt"', lambda found: found[1] or "", text, count=2)
    text = re.sub(r'="[^"<>]*"', lambda found: re.sub(r"(\d\.\d\d)\d+", r"\1", found[0]), text)
    return re.sub(r"\s*\n\s*", "\n", text)


def _set_axis(axes: Axes, axis: Axis, which: str) -> None:
    own = axes.xaxis if which == "x" else axes.yaxis
    own.set_label_text(_plain(axis.title), fontsize=9)
    own.set_tick_params(labelsize=8)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log" if axis.kind == "log" else "linear")
    if axis.kind == "log":
        # 1, 2, 5 of each decade have a number: a range of less than a decade has to have some
        own.set_major_locator(LogLocator(subs=(1.0,) if axis.range else (1.0, 2.0, 5.0), numticks=30))
        own.set_minor_formatter(NullFormatter())
        own.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    if axis.ticks:
        own.set_ticks([place for place, _ in axis.ticks], [_plain(text) for _, text in axis.ticks])
        own.set_ticks([], minor=True)
    if axis.kind == "log" and len(axis.ticks) == 1:  # of a single place matplotlib makes no range
        (place, _), *_ = axis.ticks
        (axes.set_xlim if which == "x" else axes.set_ylim)(place / 2, place * 2)
    if axis.range:
        (axes.set_xlim if which == "x" else axes.set_ylim)(*axis.range)


def _series(axes: Axes, chart: Chart) -> None:
    ends: dict[float, float] = {}
    longest, named = _longest(chart), list[tuple[float, float]]()
    for series in chart.series:
        if series.draw == "bar":
            _bars(axes, series, chart, ends)
        else:
            _markers(axes, series)
        if series.draw == "hollow":
            _name_phases(axes, series, longest, named)
    if chart.drawn_as == "bars":
        letters = 0 if chart.legend else max(len(point.words) for series in chart.series for point in series.points)
        axes.margins(x=0.05 + 0.018 * letters)  # words stand beyond the end of their bar
        axes.set_xlim(left=0)


def _bars(axes: Axes, series: Series, chart: Chart, ends: dict[float, float]) -> None:
    """Stacked on what stands already at their places, whose ends they move on."""
    places = [point.y for point in series.points]
    widths = [point.x for point in series.points]
    bars = axes.barh(
        places, widths, 0.75, left=[ends.get(place, 0.0) for place in places], color=series.style.color,
        edgecolor="white", linewidth=0.7, label=_plain(series.name) if series.key else None,
    )  # fmt: skip
    for place, width in zip(places, widths, strict=True):
        ends[place] = ends.get(place, 0.0) + width
    if chart.legend:
        _write_into(axes, bars, series, chart)
    else:
        axes.bar_label(bars, [_plain(point.words) for point in series.points], padding=3, fontsize=8)


def _write_into(axes: Axes, bars: BarContainer, series: Series, chart: Chart) -> None:
    """The words of each bar that is wide enough for them."""
    totals: dict[float, float] = {}
    for other in chart.series:
        for point in other.points:
            if other.draw == "bar":
                totals[point.y] = totals.get(point.y, 0.0) + point.x
    room = max(totals.values()) * 0.013  # of a letter
    words = [point.words if point.x > room * len(point.words) else "" for point in series.points]
    color = "white" if is_dark(series.style.color) else "#1b1f24"
    axes.bar_label(bars, [_plain(text) for text in words], label_type="center", fontsize=7, color=color)


def _markers(axes: Axes, series: Series) -> None:
    style, x, y = series.style, [point.x for point in series.points], [point.y for point in series.points]
    label = _plain(series.name) if series.key else None
    ends = [(point.x, point.low, point.high) for point in series.points if point.low is not None]
    if ends and series.draw != "crossing":
        alpha = 0.4 if series.draw == "faint" else 1.0
        axes.vlines(*zip(*ends, strict=True), color=style.color, linewidth=1, alpha=alpha)
    match series.draw:
        case "line":
            axes.plot(x, y, style.dash[1], color=style.color, marker=style.marker[1], markersize=4.5, label=label)
        case "links":
            gap = (math.nan, math.nan)
            pairs = [
                place for i in range(0, len(x), 2) for place in (*zip(x[i : i + 2], y[i : i + 2], strict=True), gap)
            ]
            axes.plot(*zip(*pairs, strict=True), "-", color=style.color, linewidth=0.6, alpha=0.5)
        case "mark":
            axes.plot(x, y, "|", color="0.2", markersize=16, markeredgewidth=1.8)
        case "hollow":
            axes.plot(
                x, y, style.marker[1], color=style.color, markerfacecolor="none", markersize=4, markeredgewidth=0.8
            )
        case "crossing":
            axes.plot(x, y, style.marker[1], color=style.color, markerfacecolor="none", markersize=9)
            for point in series.points:
                axes.hlines(point.y, point.low or point.x, point.high or point.x, color=style.color, linewidth=3)
        case "cross":
            axes.plot(x, y, "x", color=style.color, markersize=7, markeredgewidth=1.6)
        case "faint":
            axes.plot(x, y, style.marker[1], color=style.color, alpha=_FAINT, markersize=3, markeredgewidth=0)
        case _:
            axes.plot(x, y, style.marker[1], color=style.color, markersize=5.5, label=label)
            if series.draw == "dotted":
                axes.plot(x, y, ".", color="white", markersize=2.5)


def _tick(value: float) -> str:
    """1000 -> 1k, 2e7 -> 20M, 0.05 -> 0.05."""
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{suffix}"
    return f"{value:g}"


def _longest(chart: Chart) -> int:
    """The longest context of which a phase is shown: only there are phases named, or names would cover the points."""
    abouts = [point.about for series in chart.series if series.draw == "hollow" for point in series.points]
    return max((about.case.ctx for about in abouts if isinstance(about, PhaseRow)), default=0)


def _name_phases(axes: Axes, series: Series, ctx: int, named: list[tuple[float, float]]) -> None:
    """Names that would lie over one that is there already are left out."""
    for point in series.points:
        if isinstance(point.about, PhaseRow) and point.about.case.ctx == ctx:
            place = (math.log10(point.x), math.log10(point.y))
            if all(abs(place[0] - x) > 0.45 or abs(place[1] - y) > 0.06 for x, y in named):
                named.append(place)
                name = _plain(point.about.phase)
                axes.annotate(name, (point.x, point.y), fontsize=6, xytext=(5, -2), textcoords="offset points")


def _cells(axes: Axes, chart: Chart) -> None:
    """A heat map with its numbers; from twice the best time on the shade is the darkest."""
    grid = [[math.nan] * len(chart.x.ticks) for _ in chart.y.ticks]
    for series in chart.series:
        for point in series.points:
            grid[int(point.y)][int(point.x)] = math.nan if point.value is None else point.value
            dark = point.value is not None and point.value > 0.7
            axes.text(
                point.x, point.y, _plain(point.words), ha="center", va="center", fontsize=6.5,
                color="white" if dark else "#1b1f24", fontweight="bold" if point.value == 0 else "normal",
            )  # fmt: skip
    axes.imshow(grid, cmap="YlOrBr", aspect="auto", vmin=0, vmax=1.2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _rule(axes: Axes, rule: Rule) -> None:
    style = "--" if rule.dashed else "-"
    axes.plot(*zip(*rule.places, strict=True), style, color="0.45", linewidth=1, zorder=1)
    if rule.text:
        shift, anchor, side = ((4, -4), "left", "top") if rule.below else ((-2, 3), "right", "baseline")
        axes.annotate(
            _plain(rule.text), rule.places[rule.named], xytext=shift, textcoords="offset points", ha=anchor, va=side,
            fontsize=7,
        )  # fmt: skip


def _add_legend(axes: Axes) -> None:
    """Each name once, right of the axes."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        axes.legend(
            list(once.values()), list(once), frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.02)
        )


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, without what no font can show."""
    return "\n".join(printable(line) for line in text.split("\n")).replace("$", r"\$")
