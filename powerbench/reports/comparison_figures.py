"""Figures over several runs: their curves in one figure, and the change of every case with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from powerbench.crossover import context_text
from powerbench.reports.chart import Axis, Chart, Point, Rule, Series
from powerbench.reports.comparison import Change, Comparison
from powerbench.reports.curves import Group
from powerbench.reports.facets import facets, row_facets
from powerbench.reports.style import DASHES, MARKERS, Style, context_ticks

# verdict -> look: marker and colour say the same
_VERDICTS = {
    "regression": Style("#D55E00", MARKERS[3], DASHES[0]),
    "improvement": Style("#009E73", MARKERS[4], DASHES[0]),
    "inconclusive": Style("#E69F00", MARKERS[2], DASHES[0]),
    "ok": Style("#8C8C8C", MARKERS[0], DASHES[0]),
    "not comparable": Style("#8C8C8C", MARKERS[7], DASHES[0]),
    "": Style("#0072B2", MARKERS[0], DASHES[0]),
}


def overlay(members: Sequence[tuple[str, Group]], look: Mapping[str, Style]) -> Chart:
    """Median time against context of one setting in several runs, (name, group) each; a run has its own dash."""
    series = []
    for number, (run, group) in enumerate(members):
        for curve in group.curves:
            style = look[curve.label]._replace(dash=DASHES[number % len(DASHES)])
            points = [
                Point(row.ctx, row.median_ms, row, row.ci_low_ms, row.ci_high_ms, run)
                for row in curve.points.values()
                if row.median_ms is not None
            ]
            series.append(
                Series(f"{curve.label} ({run})", points, style, "line", facets(curve, group.setting), run=run)
            )
    ticks, texts = context_ticks(row.ctx for _, group in members for row in group.rows)
    dashes = ", ".join(f"{run} {DASHES[i % len(DASHES)][0]}" for i, (run, _) in enumerate(members))
    return Chart(
        "overlay",
        "Time against context, all runs",
        f"A contestant looks as everywhere else; {dashes}.",
        Axis("context (tokens)", "log", tuple(zip(ticks, texts, strict=True))),
        Axis("time (ms)"),
        series,
    )


def change_chart(found: Comparison) -> Chart | None:
    """The time of every shared case over the baseline's, the most slowed down first; None where there is none."""
    if not found.changes:
        return None
    places = {id(change): i for i, change in enumerate(found.changes)}
    series = []
    for verdict, style in _VERDICTS.items():
        members = [change for change in found.changes if change.verdict == verdict]
        by_facets: dict[tuple[tuple[str, str], ...], list[Change]] = {}
        for change in members:
            by_facets.setdefault(tuple(row_facets(change.row).items()), []).append(change)
        for number, (own, changes) in enumerate(by_facets.items()):
            points = [_point(change, places[id(change)]) for change in changes]
            series.append(
                Series(verdict or "case", points, style, "points", dict(own), key=number == 0 and bool(verdict))
            )
    end = len(found.changes) - 0.5
    return Chart(
        "changes",
        "What changed",
        "Time over the baseline's, a point a case, with its 95 % interval, noise between runs included. Above the "
        "line: slower.",
        Axis("case, by change", "linear", _ends(len(found.changes)), range=(-0.5, end)),
        _ratio_axis(found.changes),
        series,
        (Rule(((-0.5, 1.0), (end, 1.0))),),
        legend=any(change.verdict for change in found.changes),
        wide=True,
        height=380,
    )


def _ratio_axis(changes: Sequence[Change]) -> Axis:
    """Linear around small changes, where a logarithmic axis would have a single tick."""
    ends = [end for change in changes for end in (change.ratio, *(change.interval or ()))]
    low, high = min(*ends, 1.0), max(*ends, 1.0)
    room = 0.05 * (high - low) or 0.01
    title = "times as long as before"
    return Axis(title) if high > 3 * low else Axis(title, "linear", range=(low - room, high + room))


def _ends(count: int) -> tuple[tuple[float, str], ...]:
    return ((0, "slower"), (count - 1, "faster")) if count > 2 else ()


def _point(change: Change, place: int) -> Point:
    low, high = change.interval or (None, None)
    words = f"{change.verdict or 'ratio'}: {change.ratio_text}"
    if change.interval:
        words += f" ({change.interval_text})"
    where = f"at {context_text(change.row.ctx)}"
    return Point(place, change.ratio, change.row, low, high, f"{words} {where}")
