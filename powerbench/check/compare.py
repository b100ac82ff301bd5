"""Two runs, or several pairs of runs of one session, to verdicts. Needs neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from powerbench.check.evidence import Side
from powerbench.check.judge import Judged, allow_for_controls, judge, verdict
from powerbench.check.model import CaseVerdict, Comparison, Policy
from powerbench.check.noise import Calibration
from powerbench.check.pairing import Pair, pair, runs_differ
from powerbench.check.statistics import false_discovery
from powerbench.check.triage import UNFINISHED, alike, environment_changes, unfinished, unphased
from powerbench.check.untimed import Looked, Sides, uncompared, untimed, worst
from powerbench.results.environments import contestant_version, mixture
from powerbench.results.model import FIRST, Run


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
    judged, moved = _allowing(judge(measured, sides, calibration), sides[0], policy)
    adjusted = false_discovery([case.evidence.p_value for case in judged])
    for case, q_value in zip(judged, adjusted, strict=True):
        cases[case.pair.case_id] = verdict(case, q_value, len(judged), policy)
    order = [found.case_id for found in pairs]
    notes = [*([refused] if refused else []), *moved]
    notes += [f"{run.path}: {said}" for run in runs[0] if (said := mixture(run))]
    if len(runs) == 1:  # in a session each run finds the traces of the one before, and the pairs show what it was worth
        notes += [f"{run.path}: {spoiler}" for run in runs[0] for spoiler in run.spoilers]
    notes += _changes([found for found, _, _ in measured], sides[0])
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


def _allowing(judged: list[Judged], sides: tuple[Looked, Looked], policy: Policy) -> tuple[list[Judged], list[str]]:
    """The cases allowed for what moved that nobody changed, and the words for it.

    What contestants show that are not on trial holds for the environments in which they were measured.
    """
    places = list(dict.fromkeys(case.environments for case in judged))
    found: dict[str, Judged] = {}
    notes = []
    for place in places:
        here = [case for case in judged if case.environments == place]
        wider, moved = allow_for_controls(here, _controls(here, sides, policy))
        found |= {case.pair.case_id: case for case in wider}
        notes += [f"{_between(place)}{moved}" if len(places) > 1 else moved] if moved else []
    return [found[case.pair.case_id] for case in judged], notes


def _controls(judged: Sequence[Judged], sides: tuple[Looked, Looked], policy: Policy) -> list[str]:
    """Of cases in one environment a side: the kernels not on trial, by name or family, that did not change."""
    named = {case.kernel: case.environments for case in judged if not policy.on_trial(case.kernel)}
    return [
        kernel
        for kernel, place in named.items()
        if len({contestant_version(side.environments[id_], kernel) for side, id_ in zip(sides, place, strict=True)})
        == 1
    ]


def _changes(compared: Sequence[Pair], sides: tuple[Looked, Looked]) -> list[str]:
    """What changed between the environments of the cases that are compared; of the headers' where none is."""
    places = dict.fromkeys((old.environment, one.environment) for old, one in compared if old and one)
    places = places or {(FIRST, FIRST): None}
    notes = []
    for place in places:
        before, after = (side.environments[id_] for side, id_ in zip(sides, place, strict=True))
        between = _between(place) if len(places) > 1 else ""
        notes += [f"{between}environment changed: {change}" for change in environment_changes(before, after)]
    return notes


def _between(place: tuple[str, str]) -> str:
    return f"{place[0]} of the baseline against {place[1]}: "


def _sides(found: Pair, runs: Sides) -> tuple[Side, Side]:
    """The case in all runs that measured it; a pair of which one side has stopped before it does not count."""
    measured = [(baseline.find(found.baseline), new.find(found.new)) for baseline, new in runs]
    both = [(old, one) for old, one in measured if old and one]
    return Side.of([old for old, _ in both]), Side.of([one for _, one in both])
