"""Where the time of a call goes: its phases as stacked bars, against context, chunk and degree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from powerbench.crossover import context_text
from powerbench.reports.chart import Axis, Chart, Point, Series
from powerbench.reports.curves import Curve, Group
from powerbench.reports.facets import facets
from powerbench.reports.phases import PhaseRow, PhasesByCase, curves_with_phases, phase_names
from powerbench.reports.rows import Row
from powerbench.reports.style import Style, tint

_CAPTION = (
    "Each phase alone; the stroke is the whole call. A bar may end before it (gaps between phases, one that failed) "
    "or beyond it (in the call, a phase finds data in the cache)."
)

Stack = tuple[str, Sequence[PhaseRow]]  # what stands before a bar, and the phases it is made of


def time_by_phase(group: Group, look: Mapping[str, Style], phases: PhasesByCase) -> list[Chart]:
    """For each contestant that was taken apart, bars against context, and against chunk and degree where those vary."""
    found = curves_with_phases(group, phases)
    result = []
    for number, (curve, points) in enumerate(found, start=1):
        by_context = [(context_text(members[0].case.ctx), members) for members in points]
        result.append(_bars(f"phases-{number}", curve, group, look, by_context, "context", "fastest choice"))
        by_chunk = _by_chunk(curve, group, phases)
        if len(by_chunk) > 1:
            case = by_chunk[0][1][0].case
            where = f"{context_text(case.ctx)} tokens, d_tile = {case.d_tile}"
            result.append(_bars(f"phases-{number}-chunk", curve, group, look, by_chunk, "chunk", where))
    return [*result, *_by_degree(group, look, found)]


def _by_chunk(curve: Curve, group: Group, phases: PhasesByCase) -> list[Stack]:
    """At the largest context with phases, with the d_tile of the fastest choice there."""
    best = next(row for row in reversed(curve.points.values()) if row.case_id in phases)
    same = [
        row
        for row in group.rows
        if (row.kernel, row.p, row.ctx, row.d_tile) == (best.kernel, best.p, best.ctx, best.d_tile)
        and row.case_id in phases
        and row.chunk_size is not None
    ]
    return [(str(row.chunk_size), phases[row.case_id]) for row in sorted(same, key=lambda row: row.chunk_size or 0)]


def _by_degree(
    group: Group, look: Mapping[str, Style], found: Sequence[tuple[Curve, Sequence[Sequence[PhaseRow]]]]
) -> list[Chart]:
    """For each kernel that was taken apart at several degrees, at the largest context that all of them have."""
    kernels: dict[str, list[tuple[Curve, dict[int, Sequence[PhaseRow]]]]] = {}
    for curve, points in found:
        kernels.setdefault(curve.kernel, []).append((curve, {members[0].case.ctx: members for members in points}))
    result = []
    for number, (kernel, members) in enumerate(kernels.items(), start=1):
        shared = set.intersection(*(set(points) for _, points in members))
        if len(members) < 2 or not shared:
            continue
        ctx = max(shared)
        stacks = [(f"p = {curve.p}", points[ctx]) for curve, points in members]
        whole = Curve(kernel, None, members[0][0].family, {})
        where = f"{context_text(ctx)} tokens, fastest choice"
        looks = {kernel: look[members[0][0].label]}
        result.append(_bars(f"phases-p-{number}", whole, group, looks, stacks, "degree", where))
    return result


def _bars(
    name: str, curve: Curve, group: Group, look: Mapping[str, Style], stacks: Sequence[Stack], axis: str, where: str
) -> Chart:
    own, style = facets(curve, group.setting), look[curve.label]
    series = []
    for number, phase_name in enumerate(phase_names([members for _, members in stacks])):
        points = [
            Point(phase.median_ms, place, phase, words=phase_name)
            for place, (_, members) in enumerate(stacks)
            for phase in members
            if phase.phase == phase_name and phase.median_ms is not None
        ]
        series.append(Series(phase_name, points, style._replace(color=tint(style.color, number)), "bar", own))
    whole = [Point(row.median_ms or 0, i, row) for i, row in enumerate(_cases(stacks))]
    series.append(Series("whole call", whole, style, "mark", own, key=False))
    return Chart(
        name,
        f"Time by phase against {axis}: {curve.label}",
        f"{where[0].upper()}{where[1:]}. {_CAPTION}",
        Axis("time (ms)", "linear"),
        Axis(axis, "category", tuple((i, text) for i, (text, _) in enumerate(stacks))),
        series,
        legend=True,
        height=150 + 34 * len(stacks),
    )


def _cases(stacks: Sequence[Stack]) -> list[Row]:
    return [members[0].case for _, members in stacks]
