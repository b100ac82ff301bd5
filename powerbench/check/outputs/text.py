"""What the outputs share: numbers and sentences of a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from powerbench.check.model import COMPARED, CaseVerdict, Comparison, Demand
from powerbench.check.words import change, percent
from powerbench.reports.text import significant

SHOWN_IDS = 3
NEXT_STEPS = {
    3: "Measure again, for longer, or with the machine to yourself; `powerbench check --calibrate` measures the noise "
    "of this machine, and --threshold and --allow-inconclusive say what is tolerated.",
    4: "Nothing was compared: see the reasons above; this is not a success.",
}


def interval(case: CaseVerdict) -> str:
    """The ratio's 95 % interval."""
    return "" if case.low is None or case.high is None else f"{change(case.low)} .. {change(case.high)}"


def times(case: CaseVerdict) -> str:
    """Both medians."""
    if case.baseline_ms is None or case.new_ms is None:
        return ""
    return f"{significant(case.baseline_ms)} -> {significant(case.new_ms)} ms"


def words(case: CaseVerdict) -> list[str]:
    """The reason and the triage, a sentence each."""
    cycles = [f"in cycles {change(case.cycles_ratio)}"] if case.cycles_ratio is not None else []
    return [text for text in (case.reason, *case.triage, *cycles) if text]


def compared(comparison: Comparison) -> list[CaseVerdict]:
    """The cases with a verdict on their time or their correctness, worst first, else in their order."""
    return sorted(
        (case for case in comparison.cases if case.verdict in COMPARED), key=lambda case: COMPARED.index(case.verdict)
    )


def lost(comparison: Comparison) -> list[CaseVerdict]:
    """The cases that count as regressions because they are missing."""
    return [case for case in comparison.cases if case.lost]


def demands(comparison: Comparison) -> list[Demand]:
    """Those that failed first."""
    order = [*COMPARED, "missing"]
    return sorted(comparison.demands, key=lambda demand: order.index(demand.verdict))


def not_compared(comparison: Comparison) -> list[str]:
    """One line for all cases that share verdict and reason: how many and which; those that count against it first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for case in sorted(comparison.cases, key=lambda case: not case.lost):
        if case.verdict not in COMPARED:
            groups.setdefault((case.verdict, case.reason), []).append(case.case_id)
    return [_group(verdict, reason, ids) for (verdict, reason), ids in groups.items()]


def _group(verdict: str, reason: str, ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    why = f" ({reason})" if reason else ""
    return f"{len(ids)} {verdict}{why}: {', '.join(ids[:SHOWN_IDS])}{more}"


def noise_line(comparison: Comparison) -> str:
    """How noisy it was, and how that is known: largest floor and detectable change of the compared cases."""
    known = [case for case in comparison.cases if case.noise is not None and case.detectable is not None]
    if not known:
        return ""
    noises = sorted(case.noise or 0.0 for case in known)
    seen = sorted(case.detectable or 0.0 for case in known)
    sources = ", ".join(dict.fromkeys(case.noise_source or "" for case in known))
    said = f"Noise between runs of one code {percent(noises[0])} to {percent(noises[-1])} ({sources})"
    if math.isinf(seen[0]):
        return f"{said}; no slowdown would be seen."
    worst = f"{percent(seen[-1])} on" if math.isfinite(seen[-1]) else "none at all"
    threshold = percent(comparison.policy.threshold)
    return f"{said}; slowdowns would be seen from {percent(seen[0])} to {worst}, by case; threshold {threshold}."
