"""Where the time of a call goes, for the terminal and for markdown: its phases, a line each, then the whole call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from powerbench.crossover import context_text, percent_text
from powerbench.reports.curves import Group
from powerbench.reports.phases import PhaseRow, PhasesByCase, curves_with_phases
from powerbench.reports.rows import Row
from powerbench.reports.text import Column, or_empty, significant, telling

PHASE_LEGEND = (
    "Phases: each launch timed alone, for the fastest d_tile and chunk. share: of the time of the whole call; measured "
    "apart, the shares need not add up to 100 %."
)

# What a case is called stands in its first line only.
_NAMES: tuple[Column[PhaseRow], ...] = (
    Column("ctx", lambda phase: context_text(phase.case.ctx)),
    Column("kernel", lambda phase: phase.case.kernel, is_number=False),
    Column("p", lambda phase: or_empty(phase.case.p)),
)
_COLUMNS: tuple[Column[PhaseRow], ...] = (
    *_NAMES,
    Column("phase", lambda phase: phase.phase, is_number=False),
    Column("ms", lambda phase: or_empty(phase.median_ms, significant) if phase.valid else phase.state),
    Column("share", lambda phase: or_empty(phase.share, percent_text)),
    # a phase without matrix products, such as a scan, has no FLOPs to speak of
    Column("TFLOP/s", lambda phase: or_empty(phase.useful_tflops or None, significant)),
    Column("GB/s", lambda phase: or_empty(phase.gb_per_s, significant)),
    Column("FLOP/B", lambda phase: or_empty(phase.intensity or None, significant)),
    Column("roof", lambda phase: or_empty(phase.roof_fraction, percent_text)),
    Column("bound", lambda phase: phase.bound or "", is_number=False),
)


def phase_cases(group: Group, phases: PhasesByCase) -> Iterator[list[PhaseRow]]:
    """For each contestant's fastest choice at each context, its phases and the whole call."""
    for _, points in curves_with_phases(group, phases):
        for members in points:
            yield [*members, _whole_call(members[0].case)]


def phase_columns(group: Group, phases: PhasesByCase) -> list[Column[PhaseRow]]:
    """The columns that say something about the phases of this setting."""
    return telling(_COLUMNS, [phase for case in phase_cases(group, phases) for phase in case])


def phase_cells(shown: Sequence[Column[PhaseRow]], case: Sequence[PhaseRow]) -> list[list[str]]:
    """The lines of one of `phase_cases`, a text for each column."""
    return [["" if i and column in _NAMES else column.text(phase) for column in shown] for i, phase in enumerate(case)]


def phase_reasons(group: Group, phases: PhasesByCase) -> list[str]:
    """Why phases have no number to trust, once for each contestant, phase and reason, with its contexts."""
    where: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for curve, points in curves_with_phases(group, phases):
        for phase in _all(points):
            if phase.reason is not None:
                where[phase.state, curve.label, phase.phase, phase.reason].append(context_text(phase.case.ctx))
    return [
        f"{state}: {phase} of {label} at {', '.join(contexts)}: {reason}"
        for (state, label, phase, reason), contexts in where.items()
    ]


def _all(points: Iterable[Sequence[PhaseRow]]) -> Iterator[PhaseRow]:
    return (phase for members in points for phase in members)


def _whole_call(case: Row) -> PhaseRow:
    """The case itself as the last line under its phases."""
    moved = case.executed_tflops * 1e3 / case.intensity if case.executed_tflops and case.intensity else None
    return PhaseRow(
        case, "whole call", None, case.n, case.median_ms, case.ci_low_ms, case.ci_high_ms, 1.0, case.useful_tflops,
        case.executed_tflops, moved, case.intensity, case.bound, case.roof_fraction, case.valid,
        case.environment,
    )  # fmt: skip
