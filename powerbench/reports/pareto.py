"""Time against what a kernel has to remember: which contestants no other beats on both."""

from __future__ import annotations

from collections.abc import Mapping

from powerbench.crossover import context_text
from powerbench.reports.chart import Axis, Chart, Point, Rule, Series
from powerbench.reports.curves import Group
from powerbench.reports.facets import facets
from powerbench.reports.rows import Row
from powerbench.reports.states import state_bytes
from powerbench.reports.style import Style

_MIB = 2**20


def pareto(group: Group, look: Mapping[str, Style]) -> list[Chart]:
    """At the largest context that most contestants have: every choice with a time; the stairs join the best."""
    ctx = group.compared_at
    if ctx is None:
        return []
    series, places = [], []
    for curve in group.curves:
        best = curve.points.get(ctx)
        own = [
            row for row in group.rows if row.valid and row.ctx == ctx and (row.kernel, row.p) == (curve.kernel, curve.p)
        ]
        known = [(row, size) for row in own if (size := state_bytes(row)) is not None and row.median_ms]
        places += [(size / _MIB, row.median_ms or 0) for row, size in known]
        for draw, members in (
            ("faint", [(row, size) for row, size in known if row is not best]),
            ("points", [(row, size) for row, size in known if row is best]),
        ):
            if members:
                points = [_point(row, size) for row, size in members]
                series.append(
                    Series(
                        curve.label, points, look[curve.label], draw, facets(curve, group.setting),  # type: ignore[arg-type]
                        key=draw == "points",
                    )
                )  # fmt: skip
    if len({size for size, _ in places}) < 2:
        return []
    return [
        Chart(
            "pareto",
            f"Time against state size at {context_text(ctx)} tokens",
            "What has to be kept of one sequence in one layer: the state in float32, or the KV cache, of a window no "
            "more than its keys. Small pale points are slower choices of d_tile and chunk. Left and low is better: "
            "nothing is below the stairs.",
            Axis("state or KV cache (MiB)"),
            Axis("time (ms)"),
            series,
            (Rule(_stairs(places), dashed=True),),
        )
    ]


def _point(row: Row, size: int) -> Point:
    return Point(size / _MIB, row.median_ms or 0, row, row.ci_low_ms, row.ci_high_ms, f"{size / _MIB:.3g} MiB kept")


def _stairs(places: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The corners between the places that no other beats in both size and time."""
    corners: list[tuple[float, float]] = []
    for size, time in sorted(places):
        if not corners or time < corners[-1][1]:
            corners += [(size, corners[-1][1])] if corners else []
            corners.append((size, time))
    return tuple(corners)
