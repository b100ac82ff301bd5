"""Two runs, or several pairs of runs of one session, to verdicts. Needs neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from powerbench.check.evidence import Side
from powerbench.check.judge import allow_for_controls, judge, verdict
from powerbench.check.model import CaseVerdict, Comparison, Policy
from powerbench.check.noise import Calibration
from powerbench.check.pairing import Pair, contestant_version, pair, runs_differ
from powerbench.check.statistics import false_discovery
from powerbench.check.triage import UNFINISHED, alike, environment_changes, unfinished, unphased
from powerbench.check.untimed import Looked, Sides, uncompared, untimed, worst
from powerbench.results.model import Run


def compare(
    baseline: Run, new: Run, policy: Policy | None = None, calibration: Calibration | None = None
) -> Comparison:
    """Compare two stored runs, case by case. `calibration` counts where both runs were measured on its machine."""
    return compare_pairs([(baseline, new)], policy, calibration)


def compare_pairs(
    runs: Sequence[tuple[Run, Run]], policy: Policy | None = None, calibration: Calibration | None = None
) -> Comparison:
    """Compare pairs (baseline, new) of runs that were measured one after the other, each pair close in time.

    With one pair the noise between runs is the calibrated or assumed floor; with more it is what the pairs show.
    """
    policy = policy or Policy()
    baseline, new = runs[0]
    refused = next((reason for pair_ in runs if (reason := runs_differ(*pair_))), None)
    sides = [(Looked.at(old), Looked.at(one)) for old, one in runs]
    cases: dict[str, CaseVerdict] = {}
    measured: list[tuple[Pair, Side, Side]] = []
    pairs = [worst(found, sides) for found in pair(baseline, new)]
    for found in pairs:
        early = untimed(found, sides, policy)
        if early:
            cases[found.case_id] = early
        else:
            measured.append((found, *_sides(found, sides)))
    judged = judge(measured, runs, calibration)
    judged, moved = allow_for_controls(judged, _controls({case.kernel for case in judged}, baseline, new, policy))
    adjusted = false_discovery([case.evidence.p_value for case in judged])
    for case, q_value in zip(judged, adjusted, strict=True):
        cases[case.pair.case_id] = verdict(case, q_value, len(judged), policy)
    order = [found.case_id for found in pairs]
    notes = [note for note in (refused, moved) if note]
    if len(runs) == 1:  # in a session each run finds the traces of the one before, and the pairs show what it was worth
        notes += [f"{run.path}: {spoiler}" for run in runs[0] for spoiler in run.spoilers]
    notes += [f"environment changed: {change}" for change in environment_changes(baseline, new)]
    common = alike([case.kernel for case in judged], [case.evidence.log_ratio for case in judged], policy.threshold)
    notes += [common] if common else []
    verdicts = tuple(cases[case_id] for case_id in order)
    if any(case.lost for case in verdicts):
        notes += [f"{one.path}: {UNFINISHED}" for _, one in runs if unfinished(one)]
    notes += unphased([found for found, _, _ in measured])
    header = new.header
    device, started = header.environment.device, header.started
    unknown = uncompared(pairs, cases, policy)
    return Comparison(
        baseline.path, new.path, device, started, policy, verdicts, notes=tuple(notes), uncompared=unknown
    )


def _controls(kernels: Collection[str], baseline: Run, new: Run, policy: Policy) -> list[str]:
    """The kernels that are not on trial by name or family, and did not change."""
    named = [kernel for kernel in kernels if not policy.on_trial(kernel)]
    return [kernel for kernel in named if contestant_version(baseline, kernel) == contestant_version(new, kernel)]


def _sides(found: Pair, runs: Sides) -> tuple[Side, Side]:
    """The case in all runs that measured it; a pair of which one side has stopped before it does not count."""
    measured = [(baseline.find(found.baseline), new.find(found.new)) for baseline, new in runs]
    both = [(old, one) for old, one in measured if old and one]
    return Side.of([old for old, _ in both]), Side.of([one for _, one in both])
