"""The figures of one setting that compare its contestants: time, rate, speed-up, and all that belongs to a setting.

Each function takes a setting's rows and returns a `Chart`, or none where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from powerbench.crossover import context_text
from powerbench.printable import plotly_text
from powerbench.reports.chart import Axis, Chart, Point, Rule, Series
from powerbench.reports.curves import SOFTMAX, Group, best_of, by_time, compare
from powerbench.reports.facets import facets
from powerbench.reports.pareto import pareto
from powerbench.reports.phase_figures import time_by_phase
from powerbench.reports.phases import PhasesByCase
from powerbench.reports.rows import Row
from powerbench.reports.style import Style, context_ticks
from powerbench.reports.text import significant
from powerbench.reports.tile_figures import tile_charts, work_by_tile

Look = Mapping[str, Style]


def charts(group: Group, look: Look, phases: PhasesByCase) -> list[Chart]:
    """Every figure that this setting's rows and phases can fill; empty when no case has a time."""
    if not group.curves:
        return []
    contexts = {row.ctx for row in _best_rows(group)}
    compared = [ranking(group, look)] if len(contexts) == 1 else [latency(group, look), throughput(group, look)]
    if len(contexts) > 1 and len(best_of(group.curves, SOFTMAX)) > 1:
        compared.append(speedup(group, look))
    others = [
        *pareto(group, look),
        *time_by_phase(group, look, phases),
        *work_by_tile(group, look),
        *tile_charts(group, look),
    ]
    # a single bar says nothing that the sentence above it does not
    return others if others and len(contexts) == len(group.curves) == 1 else compared + others


def ranking(group: Group, look: Look) -> Chart:
    """Median time of each contestant at the one context that was measured, a bar each, the fastest on top."""
    found = by_time(group)
    series = []
    for place, curve in enumerate(found):
        (row,) = curve.points.values()
        point = Point(row.median_ms or 0, place, row, words=f"{significant(row.median_ms or 0)} ms")
        series.append(Series(curve.label, [point], look[curve.label], "bar", facets(curve, group.setting), key=False))
    return Chart(
        "ranking",
        f"Time at {context_text(next(iter(found[0].points)))} tokens",
        "With the fastest d_tile and chunk; medians. Shorter is better.",
        Axis("time (ms)", "linear"),
        Axis("", "category", tuple((i, curve.label) for i, curve in enumerate(found))),
        series,
        height=90 + 34 * len(found),
    )


def latency(group: Group, look: Look) -> Chart:
    """Median time against context, log-log, with the interval of each median."""
    return _over_context(
        group,
        look,
        lambda row: row.median_ms,
        Chart(
            "latency",
            "Time against context",
            "Medians, with the fastest d_tile and chunk at each context; bars are 95 % intervals. Lower is better.",
            _contexts(group),
            Axis("time (ms)"),
            [],
        ),
    )


def throughput(group: Group, look: Look) -> Chart:
    """Tokens per second against context, log-log."""
    return _over_context(
        group,
        look,
        lambda row: row.tokens_per_s,
        Chart(
            "throughput",
            "Tokens per second against context",
            "Flat means that a token costs the same however long the context. Higher is better.",
            _contexts(group),
            Axis("tokens/s"),
            [],
        ),
    )


def speedup(group: Group, look: Look) -> Chart:
    """Time of the fastest softmax kernel over each curve's time, against context."""
    best = best_of(group.curves, SOFTMAX)

    def ratio(row: Row) -> float | None:
        return best[row.ctx].median_ms / row.median_ms if row.ctx in best and row.median_ms else None  # type: ignore[operator]

    def words(row: Row) -> str:
        return f"{ratio(row) or 0:.3g} times the speed of {best[row.ctx].kernel}"

    names = ", ".join(dict.fromkeys(row.kernel for row in best.values()))
    ends = (min(best), max(best))
    crossings = _crossings(group, look, best)
    on_the_line = " On the line: where a curve crosses it, with the 95 % interval." if crossings else ""
    return _over_context(
        group,
        look,
        ratio,
        Chart(
            "speedup",
            "Speed-up over FlashAttention" if names.startswith("flash") else "Speed-up over softmax attention",
            f"Over the fastest softmax attention at each context ({names}). Above the line: faster.{on_the_line}",
            _contexts(group),
            Axis("times as fast as softmax"),
            crossings,
            (Rule(((ends[0], 1.0), (ends[1], 1.0))),),
        ),
        words,
    )


def _crossings(group: Group, look: Look, best: dict[int, Row]) -> list[Series]:
    """The places where contestants that are no softmax attention change places with the fastest that is."""
    series = []
    for curve in group.curves:
        found = compare(curve.points, best).crossings if curve.family not in SOFTMAX else ()
        points = []
        for crossing in found:
            words = "faster" if crossing.leader == 1 else "slower"
            says = f"<b>{plotly_text(curve.label)}</b><br>{words} than softmax attention from {crossing.text} tokens on"
            points.append(Point(crossing.at, 1.0, low=crossing.low, high=crossing.high, says=says))
        if points:
            own = facets(curve, group.setting)
            series.append(Series(f"{curve.label}: crossing", points, look[curve.label], "crossing", own, key=False))
    return series


def _over_context(
    group: Group,
    look: Look,
    value: Callable[[Row], float | None],
    frame: Chart,
    words: Callable[[Row], str] | None = None,
) -> Chart:
    """The frame with a line for each contestant; a time has its interval."""
    is_time = frame.name == "latency"
    for curve in group.curves:
        points = [
            Point(
                row.ctx,
                y,
                row,
                low=row.ci_low_ms if is_time else None,
                high=row.ci_high_ms if is_time else None,
                words=words(row) if words else "",
            )
            for row in curve.points.values()
            if (y := value(row)) is not None
        ]
        if points:
            frame.series.append(Series(curve.label, points, look[curve.label], "line", facets(curve, group.setting)))
    return frame


def _contexts(group: Group) -> Axis:
    ticks, texts = context_ticks(row.ctx for row in group.rows)
    return Axis("context (tokens)", "log", tuple(zip(ticks, texts, strict=True)))


def _best_rows(group: Group) -> list[Row]:
    return [row for curve in group.curves for row in curve.points.values()]
