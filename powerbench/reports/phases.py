"""Phases: the launches of an operator that a run timed one by one, each under the roof by its own cost.

A phase is timed alone and, on a GPU, with a cold cache; in the whole call it may find in the cache what the one before
it wrote. So shares are of the whole call's time, and need not add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from powerbench.bootstrap import interval
from powerbench.cost import Launch, total
from powerbench.reports.curves import Curve, Group
from powerbench.reports.rows import COLUMNS, Row, above_roof, relative_spread, rows, values
from powerbench.results.model import Phase, Run
from powerbench.results.statistics import median
from powerbench.roofline import Ceilings, roof


class PhaseRow(msgspec.Struct, frozen=True, gc=False):
    """One phase of one case. None: not measured, or unknown. Times in ms, rates per second, fractions of 1.

    The fields after `case` are columns of the tidy frame and a contract, as in `rows.Row`; new ones go to the end.
    """

    case: Row
    phase: str
    reason: str | None  # why there is no number, or why it cannot be trusted
    n: int  # samples
    median_ms: float | None
    ci_low_ms: float | None  # 95 % interval of the median; None below five samples
    ci_high_ms: float | None
    share: float | None  # of the whole call's median time
    useful_tflops: float | None
    executed_tflops: float | None
    gb_per_s: float | None  # the ledger's bytes over the time
    intensity: float | None  # executed FLOPs per byte; 0 for a phase without matrix products
    bound: str | None
    roof_fraction: float | None  # roofline time over measured time
    valid: bool  # a time that can be trusted: measured and not above the roof

    @property
    def interval_ms(self) -> tuple[float, float] | None:
        """95 % interval of the median; None below five samples."""
        return None if self.ci_low_ms is None or self.ci_high_ms is None else (self.ci_low_ms, self.ci_high_ms)

    @property
    def spread(self) -> float | None:
        """The interval's larger half over the median: 0.02 reads as ± 2 %."""
        return relative_spread(self.median_ms, self.interval_ms)

    @property
    def state(self) -> str:
        """What stands in place of a time that cannot be trusted."""
        return "failed" if self.median_ms is None else "invalid"


_CASE_COLUMNS = COLUMNS[: COLUMNS.index("pass") + 1]
PHASE_COLUMNS: tuple[str, ...] = (*_CASE_COLUMNS, *(field.name for field in msgspec.structs.fields(PhaseRow)[1:]))

# case_id -> its phases, in the order of its launches; without the cases that have none
PhasesByCase = Mapping[str, Sequence[PhaseRow]]


def phase_rows(run: Run) -> dict[str, list[PhaseRow]]:
    """The phases of each case that has some, in the order of the file."""
    ceilings = run.ceilings
    apart = msgspec.structs.replace(run, measurements=tuple(m for m in run.measurements if m.phases))
    found = {}
    for measurement, row in zip(apart.measurements, rows(apart), strict=True):
        launches: dict[str, list[Launch]] = {}
        for launch in measurement.launches:
            launches.setdefault(launch.name, []).append(launch)
        found[row.case_id] = [
            _phase_row(phase, launches.get(phase.name, []), row, ceilings) for phase in measurement.phases
        ]
    return found


def phase_values(phase: PhaseRow) -> list[object]:
    """The values in the order of PHASE_COLUMNS."""
    return [*values(phase.case)[: len(_CASE_COLUMNS)], *msgspec.structs.astuple(phase)[1:]]


def curves_with_phases(group: Group, phases: PhasesByCase) -> list[tuple[Curve, list[Sequence[PhaseRow]]]]:
    """The curves of a setting that have phases, each with those of its points (the fastest choice at each context)."""
    found = []
    for curve in group.curves:
        points = [phases[row.case_id] for row in curve.points.values() if row.case_id in phases]
        if points:
            found.append((curve, points))
    return found


def phase_names(points: Sequence[Sequence[PhaseRow]]) -> list[str]:
    """The phases of one contestant at its contexts, in the order of the launches; a short context may lack some."""
    return list(dict.fromkeys(phase.phase for members in sorted(points, key=len, reverse=True) for phase in members))


def _phase_row(phase: Phase, launches: Sequence[Launch], case: Row, ceilings: Ceilings) -> PhaseRow:
    cost = total(launches)
    time_ms = median(phase.samples_ms) if phase.samples_ms else None
    seconds = time_ms / 1e3 if time_ms is not None else None
    low_ms, high_ms = interval((phase.samples_ms,)) or (None, None)
    under = roof(launches, case.dtype, ceilings, seconds) if seconds and cost.bytes > 0 else None
    return PhaseRow(
        case=case,
        phase=phase.name,
        reason=phase.message or above_roof(under),
        n=len(phase.samples_ms),
        median_ms=time_ms,
        ci_low_ms=low_ms,
        ci_high_ms=high_ms,
        share=time_ms / case.median_ms if time_ms is not None and case.median_ms else None,
        useful_tflops=cost.useful_flops / seconds / 1e12 if seconds and launches else None,
        executed_tflops=cost.executed_flops / seconds / 1e12 if seconds and launches else None,
        gb_per_s=cost.bytes / seconds / 1e9 if seconds and launches else None,
        intensity=cost.executed_flops / cost.bytes if cost.bytes > 0 else None,
        bound=under.bound if under else None,
        roof_fraction=under.roof_fraction if under else None,
        valid=time_ms is not None and (under is None or under.valid),
    )
