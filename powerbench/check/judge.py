"""From the samples of a case to its verdict, and what may explain a difference other than the code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from powerbench.check.clocks import log_cycles, sample_mhz
from powerbench.check.evidence import Evidence, Side, of_pairs, of_two_runs, pair_ratios
from powerbench.check.model import CaseVerdict, Policy, Verdict
from powerbench.check.noise import Calibration, floor_of, moderated, sample_variance
from powerbench.check.pairing import Pair
from powerbench.check.triage import clock_changes, config_changes, machine_ratio, phase_changes
from powerbench.results.model import Run

CONTROLS_MOVED = 2.0  # in standard errors


class Judged(NamedTuple):
    """A case that both sides measured: what is known of it before all cases are looked at together."""

    pair: Pair
    baseline: Side
    new: Side
    evidence: Evidence
    noise_source: str
    machine: float | None  # log of the machine's ratio
    cycles: float | None  # log of the ratio in cycles

    @property
    def kernel(self) -> str:
        """Its name."""
        assert self.pair.new
        return self.pair.new.case.kernel


def judge(
    measured: Sequence[tuple[Pair, Side, Side]], runs: Sequence[tuple[Run, Run]], calibration: Calibration | None
) -> list[Judged]:
    """The evidence for each case that both sides measured, each for itself."""
    baseline, new = runs[0]
    spreads = {
        found.case_id: sample_variance(pair_ratios(old, one))
        for found, old, one in measured
        if len(old.medians) == len(runs) > 1
    }
    variances, freedom = moderated(spreads, len(runs) - 1) if spreads else ({}, 0)
    judged = []
    for found, old, one in measured:
        assert found.new
        if found.case_id in variances:
            evidence, source = of_pairs(old, one, variances[found.case_id], freedom), f"{len(runs)} pairs of runs"
        else:
            floor = floor_of(found.case_id, baseline, new, calibration)
            evidence, source = of_two_runs(old.first, one.first, floor), floor.source
        machine = machine_ratio(found.new, baseline.ceilings, new.ceilings) if len(runs) == 1 else None
        judged.append(Judged(found, old, one, evidence, source, math.log(machine) if machine else None, _cycles(found)))
    return judged


def allow_for_controls(judged: list[Judged], controls: Sequence[str]) -> tuple[list[Judged], str | None]:
    """Widen every uncertainty where contestants that cannot have changed moved more than theirs allows, and say so.

    Other people's kernels of the same version are an A/A test within the comparison. Their root mean square deviation
    in standard errors (the Birge ratio) is 1 where the noise is known; from CONTROLS_MOVED on it is not, and scales it.
    """
    known = [case.evidence for case in judged if set(controls) & {case.kernel, case.kernel.partition("-")[0]}]
    if not known:
        return judged, None
    scale = math.sqrt(sum((one.log_ratio / one.error) ** 2 for one in known) / len(known))
    if scale < CONTROLS_MOVED:
        return judged, None
    source = f"{len(known)} unchanged cases"
    wider = [case._replace(evidence=case.evidence.scaled(scale, len(known)), noise_source=source) for case in judged]
    moved = math.expm1(math.sqrt(sum(one.log_ratio**2 for one in known) / len(known)))
    return wider, (
        f"the machine was not quiet: {len(known)} cases of contestants that are not on trial moved by {moved:.0%} "
        f"(root mean square), {scale:.1f} times what their noise allows; all uncertainties are widened by that factor"
    )


def _cycles(found: Pair) -> float | None:
    """The log ratio of medians in cycles, where both sides know their clocks."""
    assert found.baseline
    assert found.new
    before, after = sample_mhz(found.baseline), sample_mhz(found.new)
    if not before or not after:
        return None
    return log_cycles(found.new.samples_ms, after) - log_cycles(found.baseline.samples_ms, before)


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
                f"in cycles it is {math.expm1(case.cycles):.1%} slower: a higher clock hides it",
            )
    else:
        high = math.expm1(evidence.high)
        what = "inconclusive"
        reason = f"may be up to {high:.1%} slower; what can be seen here is {detectable:.1%} and more"
    return _row(case, what, reason, q_value, detectable, policy)


def _otherwise_explained(case: Judged, limit: float) -> str:
    """Why a sure difference in time is perhaps none of the code; empty where nothing else explains it."""
    ratio = case.evidence.log_ratio
    sign = math.copysign(1.0, ratio)
    if case.cycles is not None and sign * case.cycles <= limit:
        return "not confirmed in cycles: the clock changed, and explains the difference"
    if case.machine is not None and sign * case.machine > limit and sign * (ratio - case.machine) <= limit:
        word = "slower" if sign > 0 else "faster"
        return f"the machine itself was {abs(math.expm1(case.machine)):.1%} {word} at such work, by its ceilings"
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
