"""A `Chart` as the plotly figure of the page: plain JSON, which page.js completes and draws.

What stands here is what an exported PNG on white needs; the page's style sheet, which knows whether it is dark, has
its own colours for texts. Points say what they are by their number in the page's list of `about` texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from powerbench.printable import plotly_text, printable
from powerbench.reports.chart import Axis, Chart, Point, Rule, Series

# The number of a series' point in the page's list of texts; None: it says nothing
About = Callable[[Point, Series], int | None]

_GRID = "#8884"
_TEXT = "#333333"
_SIZES = {"line": 7, "points": 9, "dotted": 9, "faint": 5, "hollow": 6, "cross": 9, "crossing": 11}
_HEAT = [[0, "#fff3d6"], [0.25, "#f6c85f"], [1, "#c2570c"]]


def plotly_figure(chart: Chart, about: About) -> dict[str, Any]:
    """`data` and `layout`; each trace has its facets in `meta` and, a point, its number by `about` in `customdata`."""
    layout = {
        "height": chart.height,
        "margin": {"l": 60, "r": 16, "t": 12, "b": 46},
        "xaxis": _axis(chart.x, [point.x for series in chart.series for point in series.points]),
        "yaxis": _axis(chart.y, [point.y for series in chart.series for point in series.points]),
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": _TEXT},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": chart.legend,
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#1b1f24", "bordercolor": "#555", "font": {"color": "#f2f2f2"}, "align": "left"},
    }
    if chart.legend:
        layout["legend"] = {
            **{"orientation": "h", "traceorder": "normal", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 11}},
            **{"yref": "container", "y": 0, "yanchor": "bottom"},
        }
        layout["margin"]["b"] = 80  # type: ignore[index]
    if chart.drawn_as == "bars":
        layout |= {"barmode": "stack", "bargap": 0.25, "uniformtext": {"mode": "hide", "minsize": 10}}
        layout["margin"]["r"] = 24 if chart.legend else 70  # type: ignore[index]
    if chart.y.kind == "category":
        layout["yaxis"]["autorange"] = "reversed"  # type: ignore[index]
    traces = [_rule(rule) for rule in chart.rules] + [_trace(series, chart, about) for series in chart.series]
    return {"data": traces, "layout": layout}


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "type": "log" if axis.kind == "log" else "linear",  # categories are numbers with ticks
        "title": {"text": plotly_text(axis.title), "standoff": 8},
        "gridcolor": _GRID,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": _GRID,
        "exponentformat": "SI",
        "automargin": True,
    }
    if axis.ticks:
        result |= {
            "tickvals": [place for place, _ in axis.ticks],
            "ticktext": [plotly_text(text) for _, text in axis.ticks],
        }
    if axis.kind == "category":
        return result | {"showgrid": False, "ticks": ""}
    if axis.kind == "linear":
        return result | ({"range": list(axis.range)} if axis.range else {"rangemode": "tozero"})
    if axis.range:
        low, high = (math.log10(end) for end in axis.range)
        ticks = {} if axis.ticks else {"dtick": 1, "exponentformat": "none" if high < 4.5 else "SI"}
        return result | {"range": [low, high], **ticks}
    known = [value for value in values if value > 0]
    if known and not axis.ticks:
        decades = math.log10(max(known) / min(known))
        result["dtick"] = 1 if decades > 3 else "D2" if decades > 0.6 else "D1"
        result["tickformat"] = "~s" if max(known) >= 1e4 else "~g"  # else 0.5 would read as 5
    return result


def _trace(series: Series, chart: Chart, about: About) -> dict[str, Any]:
    if series.draw == "cell":
        return _heat_map(series, chart, about)
    trace: dict[str, Any] = {
        "x": [_short(point.x) for point in series.points],
        "y": [_short(point.y) for point in series.points],
        "customdata": [about(point, series) for point in series.points],
        "name": plotly_text(series.name),
        "meta": _meta(series.facets, series.draw, series.name),
        "showlegend": series.key,
    }
    match series.draw:
        case "bar":
            return trace | _bar(series, chart)
        case "links":
            return _links(trace, series)
        case "mark":
            marker = {"symbol": "line-ns", "size": 24, "line": {"color": _TEXT, "width": 2.5}}
            return trace | {"type": "scatter", "mode": "markers", "marker": marker}
    style = series.style
    symbol = {"hollow": f"{style.marker[0]}-open", "dotted": f"{style.marker[0]}-dot"}.get(series.draw, style.marker[0])
    marker = {"symbol": symbol, "size": _SIZES[series.draw], "color": style.color}
    if series.draw in ("hollow", "cross", "crossing"):
        marker["line"] = {"width": 1.3 if series.draw == "hollow" else 2, "color": style.color}
    if series.draw == "dotted":
        marker["line"] = {"width": 1, "color": "#fff"}  # the dot has its colour
    trace |= {"type": "scatter", "mode": "lines+markers" if series.draw == "line" else "markers", "marker": marker}
    if series.draw == "line":
        trace["line"] = {"color": style.color, "dash": style.dash[0], "width": 2}
    if series.draw == "faint":
        trace["opacity"] = 0.4
    if series.draw == "crossing":
        bars = _error_bars([(point.x, point.low, point.high) for point in series.points])
        trace["error_x"] = {**bars, "thickness": 4, "width": 5}
    elif any(point.low is not None for point in series.points):
        trace["error_y"] = _error_bars([(point.y, point.low, point.high) for point in series.points])
    return trace


def _bar(series: Series, chart: Chart) -> dict[str, Any]:
    own = {
        "type": "bar",
        "orientation": "h",
        "marker": {"color": series.style.color, "line": {"color": "#fff", "width": 1}},
        "text": [plotly_text(point.words) for point in series.points],
        "textangle": 0,
    }
    if chart.legend:
        return own | {"textposition": "inside", "insidetextanchor": "middle"}
    return own | {"textposition": "outside", "cliponaxis": False}


def _links(trace: dict[str, Any], series: Series) -> dict[str, Any]:
    """Pairs of points with a gap after each; a link says nothing, but goes with the case whose phase it ties."""
    for key in ("x", "y", "customdata"):
        values = trace[key]
        trace[key] = [
            value
            for i in range(0, len(values), 2)
            for value in ((*values[i : i + 2], None) if key != "customdata" else (values[i],) * 3)
        ]
    line = {"color": series.style.color, "width": 1}
    return trace | {"type": "scatter", "mode": "lines", "line": line, "opacity": 0.45, "hoverinfo": "skip"}


def _heat_map(series: Series, chart: Chart, about: About) -> dict[str, Any]:
    """The dearest cells share a colour from twice the best time on, so that the differences near the best show."""
    cells = {(point.x, point.y): point for point in series.points}
    rows = [[cells.get((x, y)) for x in range(len(chart.x.ticks))] for y in range(len(chart.y.ticks))]
    return {
        "type": "heatmap",
        "x": list(range(len(chart.x.ticks))),
        "y": list(range(len(chart.y.ticks))),
        "z": [[_short(cell.value) if cell and cell.value is not None else None for cell in row] for row in rows],
        "text": [[_lines(cell.words) if cell else "not tried" for cell in row] for row in rows],
        "customdata": [[about(cell, series) if cell else None for cell in row] for row in rows],
        "texttemplate": "%{text}",
        "textfont": {"size": 11, "color": "#1b1f24"},
        "colorscale": _HEAT,
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "name": plotly_text(series.name),
        "meta": _meta(series.facets, "cell", series.name),
    }


def _lines(words: str) -> str:
    return "<br>".join(map(plotly_text, words.split("\n")))


def _rule(rule: Rule) -> dict[str, Any]:
    """A line with its name at one of its places."""
    names = [""] * len(rule.places)
    names[rule.named] = plotly_text(rule.text)
    return {
        "type": "scatter",
        "x": [_short(x) for x, _ in rule.places],
        "y": [_short(y) for _, y in rule.places],
        "mode": "lines+text" if rule.text else "lines",
        "text": names,
        "textposition": "bottom right" if rule.below else "top left",
        "textfont": {"size": 11},
        "line": {"color": "#888", "width": 1 if rule.dashed else 1.5, "dash": "dash" if rule.dashed else "solid"},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": _meta(rule.facets, "rule", rule.text),
    }


def _meta(facets: Mapping[str, str], draw: str, name: str) -> dict[str, str]:
    return {key: printable(value) for key, value in {**facets, "draw": draw, "name": name}.items()}


def _error_bars(ends: Sequence[tuple[float, float | None, float | None]]) -> dict[str, Any]:
    """From (value, low, high); a bar of no length where the ends are not known."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_short((high or at) - at) for at, _, high in ends],
        "arrayminus": [_short(at - (low or at)) for at, low, _ in ends],
        "thickness": 1,
        "width": 3,
    }


def _short(value: float | None) -> float | int | None:
    """Six digits: more than any screen shows, and a third of the text."""
    if value is None:
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
