"""Two runs, or several pairs of runs of one session, to verdicts. Needs neither torch nor a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from powerbench.check.evidence import Side
from powerbench.check.judge import allow_for_controls, judge, verdict
from powerbench.check.model import COMPARED, CaseVerdict, Comparison, Policy, Verdict
from powerbench.check.noise import Calibration
from powerbench.check.pairing import Pair, cases_differ, contestant_version, pair, runs_differ, without_tiling
from powerbench.check.statistics import false_discovery
from powerbench.check.triage import UNFINISHED, alike, environment_changes, unfinished, unphased
from powerbench.results.model import Measurement, Run
from powerbench.results.statistics import MIN_SAMPLES

ById = dict[str, Measurement]  # a run's measurements by case id

LOST = {
    "wrong": "correctness lost",
    "failed": "fails now",
    "oom": "runs out of memory now",
    "timeout": "takes too long now",
}


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
    cases: dict[str, CaseVerdict] = {}
    measured: list[tuple[Pair, Side, Side]] = []
    by_id = [(_by_id(old), _by_id(one)) for old, one in runs]
    pairs = [_worst(found, by_id) for found in pair(baseline, new)]
    for found in pairs:
        early = _unmeasured(found, baseline, new, policy, refused)
        if early:
            cases[found.case_id] = early
        else:
            measured.append((found, *_sides(found, by_id)))
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
    uncompared = _uncompared(pairs, cases, policy)
    header = new.header
    device, started = header.environment.device, header.started
    return Comparison(
        baseline.path, new.path, device, started, policy, verdicts, notes=tuple(notes), uncompared=uncompared
    )


def _controls(kernels: Collection[str], baseline: Run, new: Run, policy: Policy) -> list[str]:
    """The kernels that are not on trial by name or family, and did not change."""
    named = [kernel for kernel in kernels if not policy.on_trial(kernel)]
    return [kernel for kernel in named if contestant_version(baseline, kernel) == contestant_version(new, kernel)]


def _uncompared(pairs: Sequence[Pair], cases: Mapping[str, CaseVerdict], policy: Policy) -> tuple[str, ...]:
    """Kernels on trial with times on both sides none of which could be compared: of them nothing is known."""
    timed: dict[str, list[bool]] = {}
    for found in pairs:
        if all(one is not None and one.status == "ok" for one in found) and found.new:
            compared = cases[found.case_id].verdict in COMPARED
            timed.setdefault(found.new.case.kernel, []).append(compared)
    return tuple(kernel for kernel, compared in timed.items() if policy.on_trial(kernel) and not any(compared))


def _worst(found: Pair, runs: Sequence[tuple[ById, ById]]) -> Pair:
    """The pair as it stands in the first run where one of its sides has no time; the first pair where none lacks it.

    A case that the new side of a later pair does not hold, and the baseline there does, has gone with that run.
    """
    for baseline, new in runs:
        here = Pair(_in(baseline, found.baseline), _in(new, found.new))
        if any(one is not None and one.status != "ok" for one in here):
            return here
        if here.baseline and found.new and not here.new and not _elsewhere(new, found.new):
            return Pair(here.baseline, None)
    return found


def _elsewhere(run: ById, like: Measurement) -> bool:
    """Whether the run holds the case under another d_tile or chunk."""
    return any(without_tiling(one.case) == without_tiling(like.case) for one in run.values())


def _by_id(run: Run) -> ById:
    """Looked up once a run: a case's id takes as long to make as all else that is done with it."""
    return {one.case_id: one for one in run.measurements}


def _in(run: ById, like: Measurement | None) -> Measurement | None:
    return None if like is None else run.get(like.case_id)


def _unmeasured(found: Pair, baseline: Run, new: Run, policy: Policy, refused: str | None) -> CaseVerdict | None:
    """The verdict of a case that has no time on both sides, or none that may be compared; None: it has."""
    old, one = found

    def early(what: Verdict, reason: str) -> CaseVerdict:
        return CaseVerdict(found.case_id, what, reason)

    if refused and old is not None:
        return early("not comparable", refused)
    if one is None:
        assert old
        return _missing(old, "in the baseline only", policy)
    if old is None:
        return early("new", "" if one.status == "ok" else f"{one.status}: {one.message}")
    if old.status != "ok":
        if one.status == "ok":
            return early("new", f"in the baseline {old.status}: {old.message}")
        return early("not comparable", f"no time on either side; {one.status}: {one.message}")
    if one.status == "unsupported":
        return _missing(old, f"unsupported now: {one.message}", policy)
    if one.status != "ok":
        return early("regression", f"{LOST[one.status]}: {one.message}")
    reason = cases_differ(old, one, baseline, new, ignore_versions=policy.ignore_versions)
    if reason:
        return early("not comparable", reason)
    few = min(len(old.samples_ms), len(one.samples_ms))
    if few < MIN_SAMPLES:
        return early("inconclusive", f"{few} samples; the gate needs at least {MIN_SAMPLES}")
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


def _sides(found: Pair, runs: Sequence[tuple[ById, ById]]) -> tuple[Side, Side]:
    """The case in all runs that measured it; a pair of which one side has stopped before it does not count."""
    measured = [(_in(baseline, found.baseline), _in(new, found.new)) for baseline, new in runs]
    both = [(old, one) for old, one in measured if old and one]
    return Side.of([old for old, _ in both]), Side.of([one for _, one in both])
