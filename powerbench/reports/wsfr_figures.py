"""Interactive figures of the weight-state ratio: one function a figure, in the style of the page's others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go

from powerbench.crossover import context_text
from powerbench.reports.figures import Drawn
from powerbench.reports.parts import Figure, empty_figure
from powerbench.reports.style import Style, context_ticks
from powerbench.reports.text import si, significant
from powerbench.reports.wsfr_measured import MeasuredRow, MeasuredSetting
from powerbench.reports.wsfr_rows import Analysis, WsfrRow
from powerbench.reports.wsfr_table import bytes_text
from powerbench.wsfr import ratio_text

CACHES = ("softmax", "window", "hybrid", "latent")  # kinds of attention that keep keys and values, or their latent


def ratio_figure(analysis: Analysis, look: Mapping[str, Style]) -> Drawn:
    """WSFR against context, log-log, a curve an attention."""
    figure = _over_context("weight FLOPs / state FLOPs", analysis.contexts)
    _balance_line(figure)
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if row.attention == variant.name]
        figure.add_trace(_trace(variant.name, look[variant.name], rows, [row.wsfr for row in rows]))
    ticks, texts = ratio_ticks(row.wsfr for row in analysis.rows)
    figure.update_yaxes(tickvals=ticks, ticktext=texts)
    return Drawn(
        "wsfr",
        f"Weight-state FLOP ratio of {analysis.model.name}",
        "Above the line the weights take more FLOPs than the state, below it fewer; on it the model is balanced "
        "(arXiv 2507.04239). Counted, not measured; power attention in the cheaper of its two forms.",
        figure,
    )


def degree_figure(analysis: Analysis, look: Mapping[str, Style]) -> Drawn:
    """Bytes of a sequence's state against the degree p."""
    rows = [row for row in analysis.rows if row.p is not None and row.ctx == analysis.contexts[-1]]
    figure = empty_figure("degree p", f"bytes a sequence ({analysis.dtype})")
    figure.update_xaxes(
        type="linear", tickvals=[row.p for row in rows], range=[0.5, max(row.p or 0 for row in rows) + 0.5]
    )
    for row in rows:
        trace = _trace(row.attention, look[row.attention], [row], [row.state_bytes])
        trace.update(x=[row.p], mode="markers")
        trace.marker.size = 11
        figure.add_trace(trace)
    _byte_axis(figure, analysis)
    return Drawn(
        "state-bytes",
        "State against degree",
        "Power attention keeps as much however long the context. The same scale as the figure of KV caches.",
        figure,
    )


def cache_figure(analysis: Analysis, look: Mapping[str, Style]) -> Drawn:
    """Bytes of a sequence's KV cache against context."""
    figure = _over_context(f"bytes a sequence ({analysis.dtype})", analysis.contexts)
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if row.attention == variant.name and row.kind in CACHES]
        if rows:
            figure.add_trace(_trace(variant.name, look[variant.name], rows, [row.state_bytes for row in rows]))
    _byte_axis(figure, analysis)
    return Drawn(
        "cache-bytes",
        "KV cache against context",
        "What softmax attention keeps of one sequence, over all layers and key/value heads.",
        figure,
    )


def measured_figure(setting: MeasuredSetting, look: Mapping[str, Style], number: int) -> Drawn:
    """The ratio in measured time against context, a curve a kernel, with the interval of each median."""
    rows = [row for found in setting.curves.values() for row in found]
    figure = _over_context("time of weights / time of attention", sorted({row.ctx for row in rows}))
    _balance_line(figure)
    for label, found in setting.curves.items():
        trace = _trace(label, look[label], found, [row.time_ratio for row in found])
        trace.error_y = {
            "type": "data",
            "symmetric": False,
            "array": [(row.high or row.time_ratio) - row.time_ratio for row in found],
            "arrayminus": [row.time_ratio - (row.low or row.time_ratio) for row in found],
            "thickness": 1,
            "width": 3,
        }
        figure.add_trace(trace)
    ticks, texts = ratio_ticks(row.time_ratio for row in rows)
    figure.update_yaxes(tickvals=ticks, ticktext=texts)
    return Drawn(
        f"wsfr-time-{number}",
        f"Measured time, weights to attention: {setting.name}",
        "Attention as measured, scaled to the model's heads and layers; weights at the run's measured matmul rate, the "
        "best they could do. Below the line attention takes the larger part of the time.",
        figure,
    )


def ratio_ticks(ratios: object) -> tuple[list[float], list[str]]:
    """Ticks of a ratio's axis: powers of ten (or two) written as 8:1 and 1:8."""
    known = [*ratios, 1.0]  # type: ignore[misc]
    base = 10 if max(known) / min(known) > 100 else 2
    low, high = math.floor(math.log(min(known), base)), math.ceil(math.log(max(known), base))
    ticks = [float(base) ** i for i in range(low, high + 1)]
    return ticks, [ratio_text(tick) for tick in ticks]


def byte_ticks(rows: Sequence[WsfrRow]) -> tuple[list[int], list[str]]:
    """Ticks of an axis for all states and caches of an analysis: powers of 16, in binary units."""
    low = math.floor(math.log2(min(row.state_bytes for row in rows)) / 4)
    high = math.ceil(math.log2(max(row.state_bytes for row in rows)) / 4)
    ticks = [16**i for i in range(low, high + 1)]
    return ticks, [bytes_text(tick) for tick in ticks]


def _over_context(y_title: str, contexts: Sequence[int]) -> Figure:
    figure = empty_figure("context (tokens)", y_title)
    ticks, texts = context_ticks(contexts)
    figure.update_xaxes(tickvals=ticks, ticktext=texts)
    return figure


def _balance_line(figure: Figure) -> None:
    figure.add_hline(y=1, line={"color": "#888", "width": 2})


def _byte_axis(figure: Figure, analysis: Analysis) -> None:
    """One range for both figures of bytes, so that they can be read beside each other."""
    ticks, texts = byte_ticks(analysis.rows)
    figure.update_yaxes(tickvals=ticks, ticktext=texts, range=[math.log10(ticks[0]), math.log10(ticks[-1])])


def _trace(label: str, style: Style, rows: Sequence[WsfrRow] | Sequence[MeasuredRow], y: Sequence[float]) -> Figure:
    return go.Scatter(
        x=[row.ctx for row in rows],
        y=list(y),
        name=escape(label),
        meta=label,  # what the page's legend switches on and off
        mode="lines+markers",
        line={"color": style.color, "dash": style.dash[0], "width": 2},
        marker={"symbol": style.marker[0], "size": 6, "color": style.color},
        text=[_measured_hover(row) if isinstance(row, MeasuredRow) else _hover(row) for row in rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: WsfrRow) -> str:
    own = ", the model's own" if row.own else ""
    return "<br>".join(
        [
            f"<b>{escape(row.attention)}</b>{own}",
            f"{context_text(row.ctx)} tokens, {row.mode}",
            f"weights : state = {ratio_text(row.wsfr)}",
            f"{si(row.weight_flops, ' ')}FLOP : {si(row.state_flops, ' ')}FLOP a token",
            f"{bytes_text(row.state_bytes)} a sequence; full attention's KV cache {bytes_text(row.kv_cache_bytes)}",
        ]
    )


def _measured_hover(row: MeasuredRow) -> str:
    spread = "" if row.low is None or row.high is None else f" ({significant(row.low)} to {significant(row.high)})"
    return "<br>".join(
        [
            f"<b>{escape(row.label)}</b>",
            f"{context_text(row.ctx)} tokens, measured with {row.heads} heads, batch {row.batch}",
            f"time of weights / attention = {significant(row.time_ratio)}{spread}",
            f"{significant(row.weights_us)} us : {significant(row.attention_us)} us a token of {escape(row.model)}",
        ]
    )
