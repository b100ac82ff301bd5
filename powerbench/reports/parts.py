"""What the page's figures are made of: the empty figure, a contestant's trace, and what a point says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Curve, Group
from powerbench.reports.rows import Row
from powerbench.reports.style import Style, context_ticks
from powerbench.reports.text import si, significant

Figure = Any  # plotly ships no types

_GRID = "#8884"
_TEXT = "#333333"


def empty_figure(x_title: str, y_title: str) -> Figure:
    """An empty log-log figure."""
    axis = {
        "type": "log",
        "gridcolor": _GRID,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": _GRID,
        "exponentformat": "SI",
        "automargin": True,
    }
    return go.Figure(
        layout={
            "template": {},  # none: plotly's own would add 7 kB to each figure
            "height": 340,
            "margin": {"l": 56, "r": 12, "t": 26, "b": 46},
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 6}},
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": _TEXT},
            "paper_bgcolor": "#ffffff",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "showlegend": False,
            "hovermode": "closest",
            "hoverlabel": {"bgcolor": "#1b1f24", "bordercolor": "#555", "font": {"color": "#f2f2f2"}, "align": "left"},
        }
    )


def context_figure(group: Group, y_title: str, y: Sequence[float | None]) -> Figure:
    """An empty figure over the group's contexts, its y axis ticked for values such as `y`."""
    figure = empty_figure("context (tokens)", y_title)
    ticks, texts = context_ticks(row.ctx for row in group.rows)
    figure.update_xaxes(tickvals=ticks, ticktext=texts)
    known = [value for value in y if value]
    if known:
        decades = math.log10(max(known) / min(known))
        figure.update_yaxes(dtick=1 if decades > 3 else "D2" if decades > 0.6 else "D1")
    return figure


def curve_trace(
    curve: Curve, style: Style, rows: Sequence[Row], y: Sequence[float | None], words: Sequence[str] = ()
) -> Figure:
    """A line with markers over the contexts of `rows`; `words` are added to the hover text of each point."""
    texts = [hover(row) for row in rows]
    if words:
        texts = [f"{text}<br>{word}" for text, word in zip(texts, words, strict=True)]
    return go.Scatter(
        x=[row.ctx for row in rows],
        y=list(y),
        name=escape(curve.label),
        meta=curve.label,  # what the page's legend switches on and off
        mode="lines+markers",
        line={"color": style.color, "dash": style.dash[0], "width": 2},
        marker={"symbol": style.marker[0], "size": 7, "color": style.color},
        text=texts,
        hovertemplate="%{text}<extra></extra>",
    )


def hover(row: Row) -> str:
    """What a point says of itself, in plotly's little HTML."""
    spread = " ({} to {})".format(*map(significant, row.interval_ms)) if row.interval_ms else ""
    lines = [
        f"<b>{escape(row.kernel)}</b> {row.params_text}",
        f"{context_text(row.ctx)} tokens, batch {row.batch}",
        f"{_known(row.median_ms, significant)} ms{spread}, n = {row.n}",
        f"{_known(row.tokens_per_s, si)} tokens/s",
    ]
    if row.intensity is not None:
        lines.append(f"{significant(row.intensity)} FLOP/byte{f', {row.bound} bound' if row.bound else ''}")
    if row.roof_fraction is not None:
        lines.append(
            f"{percent_text(row.roof_fraction)} of roof, MFU {_known(row.mfu, percent_text)}, "
            f"HFU {_known(row.hfu, percent_text)}"
        )
    if row.sm_mhz is not None:
        clock = f"{_known(row.median_mcycles, significant)} Mcycles at {row.sm_mhz:.0f} MHz"
        lines.append(
            f"{clock}, {_known(row.power_w, '{:.0f} W'.format)}, {_known(row.temperature_c, '{:.0f} °C'.format)}"
        )
    if row.throttled:
        lines.append(f"<b>throttled</b>: {escape(row.throttle or '')}")
    if row.config:
        lines.append(escape(row.config))
    return "<br>".join(lines)


def _known(value: float | None, form: Callable[[float], str]) -> str:
    return "unknown" if value is None else form(value)
