"""Figures of the weight-state ratio: one function a figure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from powerbench.crossover import context_text
from powerbench.printable import plotly_text
from powerbench.reports.chart import Axis, Chart, Point, Rule, Series
from powerbench.reports.style import Style, context_ticks
from powerbench.reports.text import si, significant
from powerbench.reports.wsfr_measured import MeasuredRow, MeasuredSetting
from powerbench.reports.wsfr_rows import Analysis, WsfrRow
from powerbench.reports.wsfr_table import bytes_text
from powerbench.wsfr import ratio_text

CACHES = ("softmax", "window", "hybrid", "latent")  # kinds of attention that keep keys and values, or their latent

Look = Mapping[str, Style]


def ratio_figure(analysis: Analysis, look: Look) -> Chart:
    """WSFR against context, log-log, a curve an attention."""
    return Chart(
        "wsfr",
        f"Weight-state FLOP ratio of {analysis.model.name}",
        "Above the line the weights take more FLOPs than the state, below it fewer; on it the model is balanced "
        "(arXiv 2507.04239). Counted, not measured; power attention in the cheaper of its two forms.",
        _contexts(analysis.contexts),
        Axis("weight FLOPs / state FLOPs", ticks=ratio_ticks(row.wsfr for row in analysis.rows)),
        [
            _series(variant.name, look, [(row.ctx, row.wsfr, row) for row in analysis.rows if _is(row, variant.name)])
            for variant in analysis.variants
        ],
        (_balance(analysis.contexts),),
    )


def degree_figure(analysis: Analysis, look: Look) -> Chart:
    """Bytes of a sequence's state against the degree p."""
    rows = [row for row in analysis.rows if row.p is not None and row.ctx == analysis.contexts[-1]]
    degrees = sorted({row.p or 0 for row in rows})
    series = []
    for row in rows:
        points = [Point(row.p or 0, row.state_bytes, says=_hover(row))]
        series.append(Series(row.attention, points, look[row.attention], "points", {"curve": row.attention}))
    return Chart(
        "state-bytes",
        "State against degree",
        "Power attention keeps as much however long the context. The same scale as the figure of KV caches.",
        Axis("degree p", "linear", tuple((p, str(p)) for p in degrees), (0.5, max(degrees, default=1) + 0.5)),
        _bytes(analysis),
        series,
    )


def cache_figure(analysis: Analysis, look: Look) -> Chart:
    """Bytes of a sequence's KV cache against context."""
    series = []
    for variant in analysis.variants:
        rows = [row for row in analysis.rows if _is(row, variant.name) and row.kind in CACHES]
        if rows:
            series.append(_series(variant.name, look, [(row.ctx, row.state_bytes, row) for row in rows]))
    return Chart(
        "cache-bytes",
        "KV cache against context",
        "What softmax attention keeps of one sequence, over all layers and key/value heads.",
        _contexts(analysis.contexts),
        _bytes(analysis),
        series,
    )


def measured_figure(setting: MeasuredSetting, look: Look, number: int) -> Chart:
    """The ratio in measured time against context, a curve a kernel, with the interval of each median."""
    rows = [row for found in setting.curves.values() for row in found]
    contexts = sorted({row.ctx for row in rows})
    series = []
    for label, found in setting.curves.items():
        points = [Point(row.ctx, row.time_ratio, None, row.low, row.high, says=_measured_hover(row)) for row in found]
        series.append(Series(label, points, look[label], "line", {"curve": label}))
    return Chart(
        f"wsfr-time-{number}",
        f"Measured time, weights to attention: {setting.name}",
        "Attention as measured, scaled to the model's heads and layers; weights at the run's measured matmul rate, the "
        "best they could do. Below the line attention takes the larger part of the time.",
        _contexts(contexts),
        Axis("time of weights / time of attention", ticks=ratio_ticks(row.time_ratio for row in rows)),
        series,
        (_balance(contexts),),
    )


def ratio_ticks(ratios: Iterable[float]) -> tuple[tuple[float, str], ...]:
    """Ticks of a ratio's axis: powers of ten (or two) written as 8:1 and 1:8."""
    known = [*ratios, 1.0]
    base = 10 if max(known) / min(known) > 100 else 2
    low, high = math.floor(math.log(min(known), base)), math.ceil(math.log(max(known), base))
    ticks = [float(base) ** i for i in range(low, high + 1)]
    return tuple((tick, ratio_text(tick)) for tick in ticks)


def _bytes(analysis: Analysis) -> Axis:
    """One axis for all states and caches, so that both figures can be read beside each other: powers of 16."""
    sizes = [row.state_bytes for row in analysis.rows]
    low, high = math.floor(math.log2(min(sizes)) / 4), math.ceil(math.log2(max(sizes)) / 4)
    ticks = [16**i for i in range(low, high + 1)]
    title = f"bytes a sequence ({analysis.dtype})"
    return Axis(title, ticks=tuple((tick, bytes_text(tick)) for tick in ticks), range=(ticks[0], ticks[-1]))


def _contexts(contexts: Sequence[int]) -> Axis:
    return Axis("context (tokens)", ticks=tuple(zip(*context_ticks(contexts), strict=True)))


def _balance(contexts: Sequence[int]) -> Rule:
    return Rule(((contexts[0], 1.0), (contexts[-1], 1.0)))


def _is(row: WsfrRow, name: str) -> bool:
    return row.attention == name


def _series(name: str, look: Look, places: Sequence[tuple[int, float, WsfrRow]]) -> Series:
    return Series(name, [Point(x, y, says=_hover(row)) for x, y, row in places], look[name], "line", {"curve": name})


def _hover(row: WsfrRow) -> str:
    own = ", the model's own" if row.own else ""
    return "<br>".join(
        [
            f"<b>{plotly_text(row.attention)}</b>{own}",
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
            f"<b>{plotly_text(row.label)}</b>",
            f"{context_text(row.ctx)} tokens, measured with {row.heads} heads, batch {row.batch}",
            f"time of weights / attention = {significant(row.time_ratio)}{spread}",
            f"{significant(row.weights_us)} us : {significant(row.attention_us)} us a token "
            f"of {plotly_text(row.model)}",
        ]
    )
