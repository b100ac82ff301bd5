"""Phases in the page's figures: their points under the roof, and where the time of a contestant's call goes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Curve
from powerbench.reports.parts import Figure, empty_figure
from powerbench.reports.phases import PhaseRow, phase_names, placed_phases
from powerbench.reports.style import Style, tint
from powerbench.reports.text import significant


def phase_trace(curve: Curve, style: Style, points: Sequence[Sequence[PhaseRow]]) -> Figure:
    """Executed TFLOP/s against intensity: small hollow markers in the look of the contestant, which goes with them."""
    placed = placed_phases(points)
    return go.Scatter(
        x=[phase.intensity for phase in placed],
        y=[phase.executed_tflops for phase in placed],
        name=escape(f"{curve.label}: phases"),
        meta=curve.label,  # what the page's legend switches on and off
        mode="markers",
        marker={"symbol": f"{style.marker[0]}-open", "size": 5, "color": style.color, "line": {"width": 1.2}},
        text=[phase_hover(phase) for phase in placed],
        hovertemplate="%{text}<extra></extra>",
    )


def phase_bars(curve: Curve, style: Style, points: Sequence[Sequence[PhaseRow]]) -> Figure:
    """A bar for each context, made of the shares of the phases; a line where the whole call is."""
    figure = empty_figure("share of the whole call's time", "context (tokens)")
    for number, name in enumerate(phase_names(points)):
        parts = [(i, phase) for i, members in enumerate(points) for phase in members if phase.phase == name]
        known = [(i, phase) for i, phase in parts if phase.share is not None]
        figure.add_trace(
            go.Bar(
                x=[phase.share for _, phase in known],
                y=[i for i, _ in known],
                orientation="h",
                name=escape(name),
                meta=curve.label,
                marker={"color": tint(style.color, number), "line": {"color": "#fff", "width": 1}},
                text=[escape(name)] * len(known),
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                hovertext=[phase_hover(phase) for _, phase in known],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.add_vline(x=1, line={"color": "#888", "width": 2})
    contexts = [context_text(members[0].case.ctx) for members in points]
    figure.update_xaxes(type="linear", rangemode="tozero", tickformat=".0%")
    figure.update_yaxes(
        type="linear", autorange="reversed", tickvals=list(range(len(points))), ticktext=contexts, showgrid=False
    )
    legend = {
        "orientation": "h",
        "traceorder": "normal",
        "yref": "container",  # at the bottom: above the bars the page has its buttons
        "y": 0,
        "yanchor": "bottom",
        "font": {"size": 11},
        "bgcolor": "rgba(0,0,0,0)",
    }
    figure.update_layout(
        barmode="stack", bargap=0.25, showlegend=True, legend=legend, uniformtext={"mode": "hide", "minsize": 10}
    )
    return figure


def phase_hover(phase: PhaseRow) -> str:
    """What a phase says of itself, in plotly's little HTML."""
    case = phase.case
    spread = " ({} to {})".format(*map(significant, phase.interval_ms)) if phase.interval_ms else ""
    share = f", {percent_text(phase.share)} of the whole call" if phase.share is not None else ""
    lines = [
        f"<b>{escape(phase.phase)}</b> of {escape(case.kernel)} {case.params_text}",
        f"{context_text(case.ctx)} tokens, batch {case.batch}",
        f"{significant(phase.median_ms or 0)} ms{spread} alone, n = {phase.n}{share}",
    ]
    if phase.gb_per_s is not None:
        work = [f"{significant(phase.executed_tflops)} executed TFLOP/s"] if phase.executed_tflops else []
        lines.append(", ".join([*work, f"{significant(phase.gb_per_s)} GB/s"]))
    if phase.roof_fraction is not None:
        where = f"{significant(phase.intensity)} FLOP/byte, " if phase.intensity else ""
        lines.append(f"{where}{phase.bound} bound, {percent_text(phase.roof_fraction)} of roof")
    if phase.reason:
        lines.append(f"<b>{escape(phase.reason)}</b>")
    return "<br>".join(lines)
