"""From the samples of a case to its verdict, and what may explain a difference other than the code."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import NamedTuple

from powerbench.check.evidence import Evidence, Side, cycles_ratio, of_pairs, of_two_runs, pair_ratios
from powerbench.check.model import CaseVerdict, Policy, Verdict
from powerbench.check.noise import Calibration, floor_of, moderated, sample_variance
from powerbench.check.pairing import Pair
from powerbench.check.statistics import wander
from powerbench.check.triage import clock_changes, config_changes, machine_ratio, phase_changes
from powerbench.check.untimed import Sides
from powerbench.check.words import change
from powerbench.results.statistics import median

PRIOR_CONTROLS = 4  # what the noise as assumed or measured is worth, in unchanged cases


class Judged(NamedTuple):
    """A case that both sides measured: what is known of it before all cases are looked at together."""

    pair: Pair
    baseline: Side
    new: Side
    evidence: Evidence
    noise_source: str
    machine: float | None  # log of the machine's ratio
    cycles: float | None  # log of the ratio in cycles
    environments: tuple[str, str]  # ids of the baseline's and of the new run's

    @property
    def kernel(self) -> str:
        """Its name."""
        assert self.pair.new
        return self.pair.new.case.kernel


def judge(measured: Sequence[tuple[Pair, Side, Side]], runs: Sides, calibration: Calibration | None) -> list[Judged]:
    """The evidence for each case that both sides measured, each for itself."""
    baseline, new = runs[0]
    spreads = {
        found.case_id: sample_variance(pair_ratios(old, one))
        for found, old, one in measured
        if len(old.medians) == len(runs) > 1
    }
    variances, freedom = moderated(spreads, len(runs) - 1) if spreads else ({}, 0)
    wandering = _wandering(measured)
    judged = []
    for found, old, one in measured:
        before, after = found
        assert before
        assert after
        if found.case_id in variances:
            evidence, source = of_pairs(old, one, variances[found.case_id], freedom), f"{len(runs)} pairs of runs"
        else:
            floor = floor_of(found.case_id, baseline.where(before), new.where(after), calibration)
            floor = floor.at_least(wandering[found.case_id], "as it wanders within the runs")
            evidence, source = of_two_runs(old.first, one.first, floor), floor.source
        environments = before.environment, after.environment
        ceilings = baseline.ceilings[environments[0]], new.ceilings[environments[1]]
        machine = machine_ratio(after, *ceilings) if len(runs) == 1 else None
        by_ceilings = math.log(machine) if machine else None
        judged.append(Judged(found, old, one, evidence, source, by_ceilings, cycles_ratio(old, one), environments))
    return judged


def _wandering(measured: Sequence[tuple[Pair, Side, Side]]) -> dict[str, float]:
    """By case, how far the median moves within a run: that of its own two runs, or of its kernel's if that is more."""
    own: dict[str, float] = {}
    by_kernel: dict[str, list[float]] = {}
    for found, old, one in measured:
        assert found.new
        own[found.case_id] = (wander(old.samples_ms[0]) + wander(one.samples_ms[0])) / 2
        by_kernel.setdefault(found.new.case.kernel, []).append(own[found.case_id])
    return {
        found.case_id: math.sqrt(max(own[found.case_id], fmean(by_kernel[found.new.case.kernel])))
        for found, _, _ in measured
        if found.new
    }


def allow_for_controls(judged: list[Judged], controls: Collection[str]) -> tuple[list[Judged], str | None]:
    """Widen every uncertainty where contestants that cannot have changed moved more than theirs allows, and say so.

    `controls` are kernels: other people's, of the same version on both sides, an A/A test within the comparison.
    """
    known = [case.evidence for case in judged if case.kernel in controls]
    unexplained = _unexplained(known)
    if not unexplained:
        return judged, None
    source = f"{len(known)} unchanged cases"
    freedom = PRIOR_CONTROLS + len(known)
    wider = [
        case._replace(evidence=case.evidence.widened(unexplained, freedom), noise_source=source) for case in judged
    ]
    moved = change(math.exp(math.sqrt(fmean(one.log_ratio**2 for one in known))))
    return wider, (
        f"the machine was not quiet: {len(known)} cases of contestants that are not on trial moved by {moved} "
        "(root mean square), more than expected; so all uncertainties are taken larger"
    )


def _unexplained(known: Sequence[Evidence]) -> float:
    """Standard deviation of what cases that did not change moved beyond their errors; 0 where those explain it.

    The estimate of Paule and Mandel (1982): with it, the squares of the deviations in standard errors average 1. A few
    more cases that moved as expected stand for what was assumed or measured before.
    """
    if not known:
        return 0.0
    usual = median([one.error for one in known])
    # the square of Student's t is f / (f - 2) on average
    expected = [1.0 if math.isinf(one.freedom) else one.freedom / max(1.0, one.freedom - 2.0) for one in known]

    def surplus(variance: float) -> float:
        moved = sum(
            one.log_ratio**2 / (one.error**2 * factor + variance) for one, factor in zip(known, expected, strict=True)
        )
        return moved + PRIOR_CONTROLS * usual**2 / (usual**2 + variance) - len(known) - PRIOR_CONTROLS

    low, high = 0.0, sum(one.log_ratio**2 for one in known) + usual**2
    if surplus(low) <= 0:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if surplus(middle) > 0 else (low, middle)
    return math.sqrt(high)


def verdict(case: Judged, q_value: float, number: int, policy: Policy) -> CaseVerdict:
    """Regression or improvement: beyond the threshold and sure; ok: surely not slower by more than the threshold."""
    evidence, limit = case.evidence, math.log1p(policy.threshold)
    detectable = evidence.detectable(policy.false_discovery_rate / number, policy.threshold)
    sure = q_value <= policy.false_discovery_rate
    what: Verdict
    if sure and abs(evidence.log_ratio) > limit:
        what = "regression" if evidence.log_ratio > 0 else "improvement"
        reason = _otherwise_explained(case, limit)
        what = "inconclusive" if reason else what
    elif evidence.high < limit:
        what, reason = "ok", ""
        if case.cycles is not None and case.cycles > limit:
            what, reason = (
                "inconclusive",
                f"in cycles {change(math.exp(case.cycles))}: a higher clock hides it",
            )
    else:
        what, reason = "inconclusive", f"may be slower, by up to {change(math.exp(evidence.high))}"
    return _row(case, what, reason, q_value, detectable, policy)


def _otherwise_explained(case: Judged, limit: float) -> str:
    """Why a sure difference in time is perhaps none of the code; empty where nothing else explains it."""
    ratio = case.evidence.log_ratio
    sign = math.copysign(1.0, ratio)
    if case.cycles is not None and sign * case.cycles <= limit:
        return "not confirmed in cycles: the clock changed, and explains the difference"
    if case.machine is not None and sign * case.machine > limit and sign * (ratio - case.machine) <= limit:
        return f"the machine itself took {change(math.exp(case.machine))} for such work, by its measured ceilings"
    return ""


def _row(
    case: Judged, what: Verdict, reason: str, q_value: float, detectable: float, policy: Policy
) -> CaseVerdict:  # fmt: skip
    old, one = case.pair
    assert old
    assert one
    evidence = case.evidence
    triage = [*config_changes(old, one), *clock_changes(old, one), *phase_changes(old, one, policy.threshold)]
    return CaseVerdict(
        case_id=one.case_id,
        verdict=what,
        reason=reason,
        triage=tuple(triage),
        baseline_ms=math.exp(case.baseline.log_median),
        new_ms=math.exp(case.new.log_median),
        ratio=math.exp(evidence.log_ratio),
        low=math.exp(evidence.low),
        high=math.exp(evidence.high),
        p_value=evidence.p_value,
        q_value=q_value,
        noise=evidence.noise,
        noise_source=case.noise_source,
        detectable=detectable,
        cycles_ratio=None if case.cycles is None else math.exp(case.cycles),
        machine_ratio=None if case.machine is None else math.exp(case.machine),
    )
