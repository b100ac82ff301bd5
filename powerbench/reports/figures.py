"""The page's interactive figures: one function a figure, from a setting's rows to a plotly figure.

Texts that come from a run are escaped: plotly reads a little HTML in labels. Colours of texts and grids are set by
the page's style sheet, which knows whether it is dark; what stands here is what an exported PNG on white needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from powerbench.crossover import context_text
from powerbench.reports.curves import SOFTMAX, Curve, Group, best_of, by_time, compare
from powerbench.reports.parts import Figure, context_figure, crossing_trace, curve_trace, empty_figure, hover
from powerbench.reports.phase_figures import phase_bars, phase_trace
from powerbench.reports.phases import PhasesByCase, curves_with_phases, placed_phases
from powerbench.reports.rows import Row
from powerbench.reports.style import RoofAxes, Style, roof_axes
from powerbench.reports.text import si, significant
from powerbench.roofline import Ceilings


@dataclass(frozen=True)
class Drawn:
    """A figure with the words that stand over it on the page."""

    name: str  # unique within its setting; names the file when exported
    title: str
    caption: str
    figure: Figure


def draw(group: Group, ceilings: Ceilings, look: Mapping[str, Style], phases: PhasesByCase) -> list[Drawn]:
    """Every figure that this setting's rows and phases can fill; empty when no case has a time."""
    contexts = {row.ctx for row in _best_rows(group)}
    drawn = [ranking(group, look) if len(contexts) == 1 else latency(group, look)] if group.curves else []
    if len(contexts) > 1:
        drawn.append(throughput(group, look))
        if len(best_of(group.curves, SOFTMAX)) > 1:
            drawn.append(speedup(group, look))
    if any(row.roof_fraction is not None for row in group.rows):
        drawn.append(roofline(group, ceilings, look, phases))
    return drawn + time_by_phase(group, look, phases)


def ranking(group: Group, look: Mapping[str, Style]) -> Drawn:
    """Median time of each contestant at the one context that was measured, a bar each, the fastest on top."""
    figure = empty_figure("time (ms)", "")
    for curve in reversed(by_time(group)):
        (row,) = curve.points.values()
        figure.add_trace(
            go.Bar(
                x=[row.median_ms],
                y=[escape(curve.label)],
                orientation="h",
                name=escape(curve.label),
                meta=curve.label,  # what the page's legend switches on and off
                marker={"color": look[curve.label].color},
                text=[f"{significant(row.median_ms or 0)} ms"],
                textposition="outside",
                cliponaxis=False,
                hovertext=[hover(row)],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    figure.update_xaxes(type="linear", rangemode="tozero")
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_layout(margin={"l": 56, "r": 60, "t": 26, "b": 46})
    return Drawn(
        "ranking",
        f"Time at {context_text(next(iter(group.curves[0].points)))} tokens",
        "Median of the samples with the fastest d_tile and chunk. Shorter is better.",
        figure,
    )


def latency(group: Group, look: Mapping[str, Style]) -> Drawn:
    """Median time against context, log-log, with the interval of each median."""
    figure = context_figure(group, "time (ms)", [row.median_ms for row in _best_rows(group)])
    for curve in group.curves:
        rows = list(curve.points.values())
        trace = curve_trace(curve, look[curve.label], rows, [row.median_ms for row in rows])
        trace.error_y = {
            "type": "data",
            "symmetric": False,
            "array": [(row.ci_high_ms or row.median_ms or 0) - (row.median_ms or 0) for row in rows],
            "arrayminus": [(row.median_ms or 0) - (row.ci_low_ms or row.median_ms or 0) for row in rows],
            "thickness": 1,
            "width": 3,
        }
        figure.add_trace(trace)
    return Drawn(
        "latency",
        "Time against context",
        "Median of the samples, fastest d_tile and chunk at each context; bars are 95 % intervals. Lower is better.",
        figure,
    )


def throughput(group: Group, look: Mapping[str, Style]) -> Drawn:
    """Tokens per second against context, log-log."""
    figure = context_figure(group, "tokens/s", [row.tokens_per_s for row in _best_rows(group)])
    for curve in group.curves:
        rows = list(curve.points.values())
        figure.add_trace(curve_trace(curve, look[curve.label], rows, [row.tokens_per_s for row in rows]))
    return Drawn(
        "throughput",
        "Tokens per second against context",
        "Flat means that a token costs the same however long the context. Higher is better.",
        figure,
    )


def speedup(group: Group, look: Mapping[str, Style]) -> Drawn:
    """Time of the fastest softmax kernel over each curve's time, against context."""
    best = best_of(group.curves, SOFTMAX)

    def ratio(row: Row) -> float:
        return (best[row.ctx].median_ms or 0) / (row.median_ms or 1)

    ratios = [ratio(row) for row in _best_rows(group) if row.ctx in best]
    figure = context_figure(group, "times as fast as softmax", ratios)
    figure.add_hline(y=1, line={"color": "#888", "width": 1})
    crossings = [
        (curve, crossing)
        for curve in group.curves
        if curve.family not in SOFTMAX
        for crossing in compare(curve.points, best).crossings
    ]
    for curve, crossing in crossings:
        figure.add_trace(crossing_trace(curve, look[curve.label], crossing))
    for curve in group.curves:
        rows = [row for ctx, row in curve.points.items() if ctx in best]
        words = [f"{ratio(row):.3g} times the speed of {escape(best[row.ctx].kernel)}" for row in rows]
        figure.add_trace(curve_trace(curve, look[curve.label], rows, [ratio(row) for row in rows], words))
    return Drawn(
        "speedup",
        "Speed-up over the best softmax kernel",
        "Above the line: faster than the fastest softmax attention at that context."
        + (" On the line: where a curve crosses it, with the 95 % interval." if crossings else ""),
        figure,
    )


def time_by_phase(group: Group, look: Mapping[str, Style], phases: PhasesByCase) -> list[Drawn]:
    """Where the time of a call goes, a figure for each contestant that was taken apart."""
    return [
        Drawn(
            f"phases-{number}",
            f"Time by phase: {curve.label}",
            "Each phase alone, with the fastest d_tile and chunk. The line is the whole call: a bar may end before it "
            "(gaps between phases, one that failed) or beyond it (in the call, a phase finds data in the cache).",
            phase_bars(curve, look[curve.label], points),
        )
        for number, (curve, points) in enumerate(curves_with_phases(group, phases), start=1)
    ]


def roofline(group: Group, ceilings: Ceilings, look: Mapping[str, Style], phases: PhasesByCase) -> Drawn:
    """Executed TFLOP/s against intensity under the machine's measured ceilings; every row with a time is on it."""
    peak = ceilings.matmul_flops_per_s[group.setting.dtype] / 1e12
    placed = [row for row in group.rows if row.executed_tflops and row.intensity]
    apart = curves_with_phases(group, phases)
    points = [(row.intensity or 1, row.executed_tflops or 1) for row in placed]
    points += [(part.intensity or 1, part.executed_tflops or 1) for _, found in apart for part in placed_phases(found)]
    axes = roof_axes(peak, ceilings.copy_bytes_per_s, points)
    figure = empty_figure("executed FLOP per byte", "executed TFLOP/s")
    figure.update_xaxes(range=[math.log10(end) for end in axes.intensity], dtick=1)
    figure.update_yaxes(range=[math.log10(end) for end in axes.tflops], dtick=1, exponentformat="none")
    _add_ceilings(figure, axes, peak, ceilings, group.setting.dtype)
    for curve in group.curves:
        style, best = look[curve.label], list(curve.points.values())
        ids = {row.case_id for row in best}
        members = [row for row in placed if (row.kernel, row.p) == (curve.kernel, curve.p) and row.valid]
        others = [row for row in members if row.case_id not in ids]
        if others:
            figure.add_trace(_roof_trace(curve, style, others, opacity=0.35, size=5))
        figure.add_trace(_roof_trace(curve, style, [row for row in members if row.case_id in ids], 0.9, 8))
    for curve, found in apart:
        figure.add_trace(phase_trace(curve, look[curve.label], found))
    invalid = [row for row in placed if not row.valid]
    if invalid:
        figure.add_trace(_invalid_trace(invalid))
    return Drawn(
        "roofline",
        "Roofline",
        "Every point with a time; small pale ones are slower choices of d_tile and chunk. Executed work, redundant "
        "tiles included. A cross is above the roof: its time, its ledger or the ceiling is wrong."
        + (" Hollow: single phases, timed alone; those without matrix products have no place here." if apart else ""),
        figure,
    )


def _add_ceilings(figure: Figure, axes: RoofAxes, peak: float, ceilings: Ceilings, dtype: str) -> None:
    slope = ceilings.copy_bytes_per_s / 1e12
    corners = [axes.intensity[0], axes.ridge, axes.intensity[1]]
    figure.add_trace(
        go.Scatter(
            x=corners,
            y=[corners[0] * slope, peak, peak],
            mode="lines",
            line={"color": "#888", "width": 2},
            hoverinfo="skip",
            meta="",
        )
    )
    low = axes.intensity[0]
    labels = (
        (axes.intensity[1], peak, f"{dtype} matmul {significant(peak)} TFLOP/s", "right", 10),
        (low, low * slope, f"copy {si(ceilings.copy_bytes_per_s, ' ')}B/s", "left", -12),
    )
    for x, y, text, anchor, shift in labels:
        figure.add_annotation(
            x=math.log10(x), y=math.log10(y), text=text, showarrow=False, xanchor=anchor, yshift=shift,
            xshift=0 if shift > 0 else 8, font={"size": 11},
        )  # fmt: skip


def _roof_trace(curve: Curve, style: Style, rows: Sequence[Row], opacity: float, size: int) -> Figure:
    trace = curve_trace(curve, style, rows, [row.executed_tflops for row in rows])
    trace.update(x=[row.intensity for row in rows], mode="markers", opacity=opacity)
    trace.marker.size = size
    return trace


def _invalid_trace(rows: Sequence[Row]) -> Figure:
    return go.Scatter(
        x=[row.intensity for row in rows],
        y=[row.executed_tflops for row in rows],
        mode="markers",
        marker={"symbol": "x-thin", "size": 9, "color": "#D00000", "line": {"color": "#D00000", "width": 2}},
        text=[f"{hover(row)}<br><b>{escape(row.reason or '')}</b>" for row in rows],
        hovertemplate="%{text}<extra></extra>",
        meta="",
    )


def _best_rows(group: Group) -> list[Row]:
    return [row for curve in group.curves for row in curve.points.values()]
