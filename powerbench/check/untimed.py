"""Verdicts that are not on times: a case is missing, fails, is impossibly fast, or is another question on each side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from powerbench.check.model import COMPARED, CaseVerdict, Policy
from powerbench.check.pairing import Pair, cases_differ, runs_differ, without_tiling
from powerbench.reports.rows import impossible
from powerbench.results.model import Environment, Measurement, Run
from powerbench.results.statistics import MIN_SAMPLES, typical
from powerbench.roofline import Ceilings

LOST = {
    "wrong": "correctness lost",
    "failed": "fails now",
    "oom": "runs out of memory now",
    "timeout": "takes too long now",
}


class Looked(NamedTuple):
    """A run with its measurements by case id, and environments and their ceilings by id, looked up once."""

    run: Run
    by_id: dict[str, Measurement]
    environments: dict[str, Environment]
    ceilings: dict[str, Ceilings]

    @classmethod
    def at(cls, run: Run) -> Looked:
        """From the run."""
        by_id = {one.case_id: one for one in run.measurements}
        return cls(run, by_id, run.environments, run.ceilings_by_environment)

    def find(self, like: Measurement | None) -> Measurement | None:
        """The case as this run has it."""
        return None if like is None else self.by_id.get(like.case_id)

    def holds(self, like: Measurement) -> bool:
        """Whether the case is there, perhaps under another d_tile or chunk."""
        return like.case_id in self.by_id or any(
            without_tiling(one.case) == without_tiling(like.case) for one in self.by_id.values()
        )

    def impossible(self, like: Measurement | None) -> str | None:
        """Why its time here cannot be; None where it can, or there is none."""
        found = self.find(like)
        return impossible(found, self.ceilings[found.environment]) if found else None

    def where(self, measurement: Measurement) -> Environment:
        """The environment of one of its measurements."""
        return self.environments[measurement.environment]


Sides = Sequence[tuple[Looked, Looked]]  # baseline and new of each pair of runs


def worst(found: Pair, sides: Sides) -> Pair:
    """The pair as it stands in the first run where one of its sides has no time; the first pair where none lacks it.

    A case that the new side of a later pair does not hold, and the baseline there does, has gone with that run.
    """
    for baseline, new in sides:
        here = Pair(baseline.find(found.baseline), new.find(found.new))
        if any(one is not None and one.status != "ok" for one in here):
            return here
        if here.baseline and found.new and not new.holds(found.new):
            return Pair(here.baseline, None)
    return found


def untimed(found: Pair, sides: Sides, policy: Policy) -> CaseVerdict | None:
    """The verdict of a case that has no time on both sides, or none that may be compared; None: it has.

    What is wrong with the new side is said first, so that nothing in the baseline can excuse it.
    """
    old, one = found
    impossibly = next((why for _, new in sides if (why := new.impossible(one))), None)
    if impossibly and one is not None:
        return CaseVerdict(found.case_id, "invalid", impossibly, baseline_ms=_ms(old), new_ms=_ms(one))
    refused = next((why for before, new in sides if (why := runs_differ(before.run, new.run))), None)
    if refused and old is not None:
        return CaseVerdict(found.case_id, "not comparable", refused)
    if one is None:
        assert old
        return _missing(old, "in the baseline only", policy)
    if old is None:
        return CaseVerdict(found.case_id, "new", "" if one.status == "ok" else f"{one.status}: {one.message}")
    if old.status != "ok":
        if one.status == "ok":
            return CaseVerdict(found.case_id, "new", f"in the baseline {old.status}: {old.message}")
        reason = f"no time on either side; {one.status}: {one.message}"
        return CaseVerdict(found.case_id, "not comparable", reason)
    if one.status == "unsupported":
        return _missing(old, f"unsupported now: {one.message}", policy)
    if one.status != "ok":
        return CaseVerdict(found.case_id, "regression", f"{LOST[one.status]}: {one.message}")
    return _incomparable(found.case_id, old, one, sides, policy)


def _incomparable(case_id: str, old: Measurement, one: Measurement, sides: Sides, policy: Policy) -> CaseVerdict | None:
    """The verdict of a case with a time on both sides that says nothing; None: the times may be compared."""
    impossibly = next((why for before, _ in sides if (why := before.impossible(old))), None)
    if impossibly:
        return CaseVerdict(case_id, "not comparable", f"in the baseline {impossibly}")
    baseline, new = sides[0]
    places = baseline.where(old), new.where(one)
    reason = cases_differ(old, one, places, ignore_versions=policy.ignore_versions)
    if reason:
        return CaseVerdict(case_id, "not comparable", reason)
    few = min(len(old.samples_ms), len(one.samples_ms))
    if few < MIN_SAMPLES:
        return CaseVerdict(case_id, "inconclusive", f"{few} samples; the gate needs at least {MIN_SAMPLES}")
    return None


def _missing(old: Measurement, reason: str, policy: Policy) -> CaseVerdict:
    """The verdict of a case that only the baseline may have a time of: a loss, unless something excuses it."""
    excuse = None
    if old.status != "ok":
        excuse = f"{old.status} there"
    elif not policy.on_trial(old.case.kernel):
        excuse = "not on trial"
    elif policy.allow_missing:
        excuse = "allowed"
    return CaseVerdict(old.case_id, "missing", f"{reason}; {excuse}" if excuse else reason, lost=excuse is None)


def uncompared(pairs: Sequence[Pair], cases: Mapping[str, CaseVerdict], policy: Policy) -> tuple[str, ...]:
    """Kernels on trial with times on both sides none of which could be compared: of them nothing is known."""
    timed: dict[str, list[bool]] = {}
    for found in pairs:
        if all(one is not None and one.status == "ok" for one in found) and found.new:
            compared = cases[found.case_id].verdict in COMPARED
            timed.setdefault(found.new.case.kernel, []).append(compared)
    return tuple(kernel for kernel, compared in timed.items() if policy.on_trial(kernel) and not any(compared))


def _ms(measurement: Measurement | None) -> float | None:
    """The case's time in milliseconds; None where there is none."""
    return typical(measurement.visits) if measurement and measurement.visits else None
