"""Runs beside each other: what differs between their machines, and which cases became faster or slower.

The verdicts, with the noise between runs in them, are those of the gate (`powerbench check`). Runs of different devices
have ratios, but no verdicts: there a difference is no change of code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from powerbench.check.compare import compare
from powerbench.check.model import CaseVerdict, Policy
from powerbench.crossover import percent_text
from powerbench.reports.curves import PASS_WORDS
from powerbench.reports.machine import ceiling_lines, environment_lines
from powerbench.reports.rows import Row
from powerbench.reports.text import significant
from powerbench.results.model import Run


@dataclass(frozen=True)
class Change:
    """One case that both runs measured. `verdict` is empty between different devices."""

    row: Row  # of the newer run
    baseline_ms: float
    new_ms: float
    ratio: float  # new over baseline: above 1 is slower
    interval: tuple[float, float] | None  # 95 % of the ratio, noise between runs included
    verdict: str
    reason: str

    @property
    def ratio_text(self) -> str:
        """`+4.0 %` is slower, `-4.0 %` faster."""
        return f"{'+' if self.ratio >= 1 else '-'}{percent_text(abs(self.ratio - 1))}"

    @property
    def interval_text(self) -> str:
        """As `ratio_text`, from the low end to the high one."""
        ends = self.interval or ()
        return " to ".join(f"{'+' if end >= 1 else '-'}{percent_text(abs(end - 1))}" for end in ends)


@dataclass(frozen=True)
class Comparison:
    """The first run of the page against another one."""

    title: str
    summary: str
    notes: tuple[str, ...]
    changes: list[Change]  # the most slowed down first
    machines: list[tuple[str, str, str]]  # (what, the baseline's, the other's), only what differs


def comparison(
    baseline: Run, new: Run, names: tuple[str, str], sides: tuple[Sequence[Row], Sequence[Row]]
) -> Comparison:
    """Two runs, called by `names`; `sides` are their rows."""
    found = compare(baseline, new, Policy(allow_missing=True))  # runs of two suites are no gate's business
    rows = {row.case_id: row for row in sides[1]}
    same_device = baseline.header.environment.device == new.header.environment.device
    if same_device:
        changes = [
            _judged(case, rows[case.case_id]) for case in found.cases if case.ratio is not None and case.case_id in rows
        ]
    else:
        changes = _ratios(sides[0], rows)
    summary = f"{found.summary[:1].upper()}{found.summary[1:]}." if same_device else _device_summary(changes)
    return Comparison(
        f"{names[1]} against {names[0]}",
        summary,
        tuple(note for note in found.notes if same_device and not note.startswith("environment changed")),
        sorted(changes, key=lambda change: -change.ratio),
        machines(baseline, new),
    )


def machines(baseline: Run, new: Run) -> list[tuple[str, str, str]]:
    """What their machines, versions and ceilings differ in, side by side; measured ceilings differ always a little."""
    sides = []
    for run in (baseline, new):
        facts = dict(environment_lines(run))
        facts |= {name: text for name, text in ceiling_lines(run.ceilings, "") if not name.startswith("Measured")}
        sides.append(facts)
    first, second = sides
    names = [*first, *(name for name in second if name not in first)]
    return [(name, first.get(name, ""), second.get(name, "")) for name in names if first.get(name) != second.get(name)]


def _judged(case: CaseVerdict, row: Row) -> Change:
    interval = (case.low, case.high) if case.low is not None and case.high is not None else None
    reason = "; ".join(text for text in (case.reason, *case.triage) if text)
    return Change(row, case.baseline_ms or 0.0, case.new_ms or 0.0, case.ratio or 1.0, interval, case.verdict, reason)


def _ratios(old: Sequence[Row], rows: dict[str, Row]) -> list[Change]:
    before = {row.case_id: row.median_ms for row in old if row.valid}
    pairs = [(row, before.get(row.case_id), row.median_ms) for row in rows.values() if row.valid]
    return [Change(row, then, now, now / then, None, "", "") for row, then, now in pairs if then and now]


def _device_summary(changes: Sequence[Change]) -> str:
    if not changes:
        return "The runs are of different devices and share no case; their machines are side by side below."
    ratios = sorted(change.ratio for change in changes)
    return (
        f"The runs are of different devices: {len(changes)} shared cases take from {significant(ratios[0])} to "
        f"{significant(ratios[-1])} times as long. No verdicts: those are for changes of code."
    )


def case_words(row: Row) -> str:
    """A case in a few words, for an axis or a table."""
    params = f" {row.params_text}" if row.params_text else ""
    return f"{row.kernel}{params}, {PASS_WORDS.get(row.pass_, row.pass_).lower()}"
