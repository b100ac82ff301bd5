"""The roofline of a run: its measured ceilings, every case with a time, and the phases that operators are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from powerbench.reports.chart import Axis, Chart, Draw, Point, Rule, Series
from powerbench.reports.curves import Curve, Group
from powerbench.reports.facets import facets
from powerbench.reports.phases import PhaseRow, PhasesByCase, curves_with_phases
from powerbench.reports.rows import Row
from powerbench.reports.style import RoofAxes, Style, roof_axes
from powerbench.reports.text import si, significant
from powerbench.roofline import Ceilings

_CAPTION = (
    "Executed work over its compulsory bytes, and the rate at which it is done. Every case with a time; small pale "
    "points are slower choices of d_tile and chunk, a dot inside means with a backward pass. A red cross is above the "
    "roof (at the edge: beyond it): the time, the ledger or the ceiling is wrong. The axes are the machine's, so that "
    "pages of one machine lie over each other."
)
_PHASES = " Hollow: phases timed alone, tied to the operator they make up; one without matrix products has no place."

_NAME_SIZE = (0.26, 0.07)  # about what a name of the memory covers, with a margin for markers: shares of the axes
_NAME_PLACES = 24  # that are tried for it


def roofline(
    found: Sequence[Group], ceilings: Ceilings, look: Mapping[str, Style], phases: PhasesByCase
) -> Chart | None:
    """Executed TFLOP/s against intensity, over all settings of a run; None where no case has a place."""
    series: list[Series] = []
    for group in found:
        for curve in group.curves:
            series += _operators(curve, group, look[curve.label])
        for curve, points in curves_with_phases(group, phases):
            series += _phases(curve, group, look[curve.label], points)
        series += _invalid(group)
    if not series:
        return None
    dtypes = sorted({group.setting.dtype for group in found} & ceilings.matmul_flops_per_s.keys())
    peak = max(ceilings.matmul_flops_per_s.values(), default=0.0) / 1e12
    if not dtypes or not peak:
        return None
    trusted = [(point.x, point.y) for one in series if one.draw != "cross" for point in one.points]
    axes = roof_axes(peak, ceilings.memory_bytes_per_s, trusted)
    series = [_within(one, axes) if one.draw == "cross" else one for one in series]
    return Chart(
        "roofline",
        "Roofline",
        _CAPTION + (_PHASES if any(one.draw == "hollow" for one in series) else ""),
        Axis("executed FLOP per byte", "log", range=axes.intensity),
        Axis("executed TFLOP/s", "log", range=axes.tflops),
        series,
        (*_memory_rules(ceilings, axes, peak, trusted), *(_compute_rule(dtype, ceilings, axes) for dtype in dtypes)),
        wide=True,
        height=520,
    )


def _operators(curve: Curve, group: Group, style: Style) -> list[Series]:
    own = facets(curve, group.setting)
    best = {row.case_id for row in curve.points.values()}
    members = [row for row in group.rows if (row.kernel, row.p) == (curve.kernel, curve.p) and row.valid]
    filled: Draw = "points" if group.setting.pass_ == "fwd" else "dotted"
    parts: tuple[tuple[Draw, list[Point]], ...] = (
        ("faint", _places([row for row in members if row.case_id not in best])),
        (filled, _places([row for row in members if row.case_id in best])),
    )
    return [Series(curve.label, points, style, draw, own, key=draw == filled) for draw, points in parts if points]


def _phases(curve: Curve, group: Group, style: Style, points: Sequence[Sequence[PhaseRow]]) -> list[Series]:
    """The phases of a contestant, and a line from each operator's point to each of them."""
    own = facets(curve, group.setting)
    hollow, links = [], []
    for members in points:
        whole = _places([members[0].case])
        for place in _places(members):
            hollow.append(place)
            links += [*whole, place] if whole else []
    parts: tuple[tuple[Draw, list[Point]], ...] = (("links", links), ("hollow", hollow))
    return [Series(f"{curve.label}: phases", some, style, draw, own, key=False) for draw, some in parts if some]


def _invalid(group: Group) -> list[Series]:
    """Cases above the roof, a series for each contestant so that the selectors find them."""
    found: dict[str, list[Row]] = {}
    curves = {}
    for row in group.rows:
        if row.status == "ok" and not row.valid:
            curve = Curve(row.kernel, row.p, row.family, {})
            curves[curve.label] = curve
            found.setdefault(curve.label, []).append(row)
    style = Style("#D00000", ("x-thin", "x", ""), ("solid", "-", ""))
    return [
        Series(f"{label}: above the roof", points, style, "cross", facets(curves[label], group.setting), key=False)
        for label, members in found.items()
        if (points := _places(members))
    ]


def _within(series: Series, axes: RoofAxes) -> Series:
    """What cannot be does not move the axes: it is shown at their edge."""
    (left, right), (bottom, top) = axes.intensity, axes.tflops
    points = [
        replace(point, x=min(max(point.x, left), right), y=min(max(point.y, bottom), top)) for point in series.points
    ]
    return replace(series, points=points)


def _places(members: Sequence[Row | PhaseRow]) -> list[Point]:
    return [
        Point(about.intensity, about.executed_tflops, about)
        for about in members
        if about.intensity and about.executed_tflops
    ]


def _memory_rules(ceilings: Ceilings, axes: RoofAxes, peak: float, points: Sequence[tuple[float, float]]) -> list[Rule]:
    """Device memory by the better of copy and read, as the roofline, and L2 by the read where it was measured.

    Under the roofline its name gives way to the points; over the L2's end there are none.
    """
    memory = ceilings.memory_bytes_per_s
    how = "copy" if memory == ceilings.copy_bytes_per_s else "read"
    rates = [(f"memory ({how}) {si(memory, ' ')}B/s", memory, False)]
    l2 = _l2_rate(ceilings)
    if l2:
        rates.append((f"L2 (read) {si(l2, ' ')}B/s", l2, True))
    low, bottom = axes.intensity[0], axes.tflops[0]
    rules = []
    for text, rate, dashed in rates:
        start = max(low, bottom * 1e12 / rate)
        end = peak * 1e12 / rate
        if start < end:
            at = end if dashed else _quiet_intensity((start, end), rate / 1e12, points, axes)
            along = sorted({start, at, end})
            places = tuple((x, x * rate / 1e12) for x in along)
            rules.append(Rule(places, text, named=along.index(at), below=not dashed, dashed=dashed))
    return rules


def _quiet_intensity(
    ends: tuple[float, float], slope: float, points: Sequence[tuple[float, float]], axes: RoofAxes
) -> float:
    """Where on the line y = slope x, between these x, a name right of it and below covers the fewest points.

    Of several such places the lowest.
    """
    width, height = (
        (high / low) ** share for (low, high), share in zip((axes.intensity, axes.tflops), _NAME_SIZE, strict=True)
    )
    ratio = ends[1] / ends[0]
    tried = [ends[0] * math.pow(ratio, step / _NAME_PLACES) for step in range(_NAME_PLACES + 1)]
    covered = [sum(x <= a <= x * width and slope * x / height <= b <= slope * x for a, b in points) for x in tried]
    return tried[covered.index(min(covered))]


def _compute_rule(dtype: str, ceilings: Ceilings, axes: RoofAxes) -> Rule:
    rate = ceilings.matmul_flops_per_s[dtype] / 1e12
    start = max(axes.intensity[0], rate * 1e12 / max(ceilings.memory_bytes_per_s, _l2_rate(ceilings) or 0.0))
    text = f"{dtype} matmul {significant(rate)} TFLOP/s"
    return Rule(((start, rate), (axes.intensity[1], rate)), text, facets={"dtype": dtype})


def _l2_rate(ceilings: Ceilings) -> float | None:
    return max((ceiling.best_rate for ceiling in ceilings.measured if ceiling.kind == "l2_read"), default=None)
