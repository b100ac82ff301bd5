"""What a run says of one contestant by itself, in sentences: its time, its best choices, where its time goes."""

from __future__ import annotations

from collections.abc import Mapping

from powerbench.crossover import context_text, percent_text, ratio_text
from powerbench.reports.curves import POWER, Group, best_of
from powerbench.reports.rows import Row
from powerbench.reports.text import si, significant
from powerbench.results.statistics import median

_WORTH_NAMING = 0.1  # of the whole call's time


def time_sentence(subject: str, points: Mapping[int, Row]) -> str:
    """Of a contestant without a rival: its time, rate and place under the roof at its largest context."""
    ctx = max(points)
    row = points[ctx]
    roof = f", {percent_text(row.roof_fraction)} of this machine's roof" if row.roof_fraction is not None else ""
    bound = f" ({row.bound} bound)" if roof and row.bound else ""
    return (
        f"{subject} takes {significant(row.median_ms or 0)} ms at {context_text(ctx)}, {si(row.tokens_per_s or 0)} "
        f"tokens/s{roof}{bound}."
    )


def fastest_sentence(group: Group) -> list[str]:
    """Who is fastest at the largest context, and by how much; nothing where no case has a time."""
    ctx = max((ctx for curve in group.curves for ctx in curve.points), default=None)
    if ctx is None:
        return []
    rivals = [(curve.points[ctx].median_ms or 0.0, curve.label) for curve in group.curves if ctx in curve.points]
    (time, label), *others = sorted(rivals)
    sentence = f"At {context_text(ctx)} {label} is fastest, {significant(time)} ms"
    if others:
        sentence += f", {ratio_text(others[0][0] / time)} than {others[0][1]}"
    return [f"{sentence}."]


def choice_sentence(power: Mapping[int, Row], group: Group) -> list[str]:
    """What d_tile and chunk are worth, at the largest context where several were tried."""
    for ctx in sorted(power, reverse=True):
        best = power[ctx]
        tried = [
            row
            for row in group.rows
            if row.valid and (row.kernel, row.p, row.ctx) == (best.kernel, best.p, ctx) and row.median_ms
        ]
        if len(tried) > 1:
            times = sorted(row.median_ms or 0.0 for row in tried)
            own = ", ".join(
                f"{name} = {value}"
                for name, value in (("d_tile", best.d_tile), ("chunk", best.chunk_size))
                if value is not None
            )
            longer = f"takes {percent_text(times[1] / times[0] - 1)} longer"
            others = f"the next best {longer}, the slowest {times[-1] / times[0]:.2g} times as long"
            return [
                f"Of {len(tried)} choices of d_tile and chunk at {context_text(ctx)}, {own} is the fastest; "
                f"{others if len(tried) > 2 else f'the other {longer}'}."
            ]
    return []


def phase_sentence(power: Mapping[int, Row]) -> list[str]:
    """Where the time of a call goes, at the largest context that was taken apart."""
    for ctx in sorted(power, reverse=True):
        row = power[ctx]
        timed = [(median(phase.samples_ms), phase.name) for phase in row.measurement.phases if phase.samples_ms]
        shares = sorted(((ms / row.median_ms, name) for ms, name in timed if row.median_ms), reverse=True)
        named = [f"{name} ({percent_text(share)})" for share, name in shares if share >= _WORTH_NAMING]
        if named:
            return [f"At {context_text(ctx)} the time goes into {', '.join(named)}."]
    return []


def degree_sentence(p: int, power: Mapping[int, Row], group: Group) -> list[str]:
    """What this degree costs over the next lower one, at the largest context of both."""
    lower = sorted({curve.p for curve in group.curves if curve.family in POWER and curve.p and curve.p < p})
    if not lower:
        return []
    below = best_of(group.curves, POWER, lower[-1])
    shared = power.keys() & below.keys()
    if not shared:
        return []
    ctx = max(shared)
    ratio = (below[ctx].median_ms or 0.0) / (power[ctx].median_ms or 1.0)
    return [f"At {context_text(ctx)} p = {p} is {ratio_text(ratio)} {_than(ratio)} p = {lower[-1]}."]


def _than(ratio: float) -> str:
    return "as" if ratio_text(ratio) == "as fast" else "than"
