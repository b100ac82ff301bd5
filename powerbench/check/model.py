"""What a comparison says: a verdict a case, the words beside it, and one exit status. Plain data, fit for JSON."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

Verdict = Literal["ok", "regression", "invalid", "improvement", "inconclusive", "not comparable", "missing", "new"]

COMPARED: tuple[Verdict, ...] = ("regression", "invalid", "inconclusive", "improvement", "ok")
OTHER: tuple[Verdict, ...] = ("not comparable", "missing", "new")

OK, REGRESSION, INCONCLUSIVE, NOTHING = 0, 1, 3, 4  # exit statuses; 2 is bad usage


class Policy(msgspec.Struct, frozen=True):
    """When a difference counts. Fractions of 1."""

    threshold: float = 0.03  # a smaller change is none in practice, however sure
    false_discovery_rate: float = 0.01  # of the changes that the run reports
    allow_inconclusive: int = 0  # cases
    ignore_versions: bool = False  # compare contestants although their packages differ
    controls: tuple[str, ...] = ("sdpa", "flash", "fla")  # families and kernels whose code is not on trial
    allow_missing: bool = False  # cases that the baseline has a time of may be gone

    def on_trial(self, kernel: str) -> bool:
        """Whether the kernel's code is what the comparison is about; that of the controls is not."""
        return not {kernel, kernel.partition("-")[0]} & set(self.controls)


class CaseVerdict(msgspec.Struct, frozen=True):
    """One case, baseline against new. Ratios are new over baseline: above 1 is slower. None: not known.

    `low` and `high` are the 95 % interval of `ratio`, noise between runs included. `noise` is the standard deviation,
    as a fraction, of the ratio of two runs of the same code; `detectable` the smallest slowdown that would be called a
    regression in 95 % of comparisons as noisy as this one (infinite: none; null in JSON).
    `cycles_ratio` is the ratio of medians in cycles, `machine_ratio` how much slower
    the machine itself was at this work, by its measured ceilings.
    """

    case_id: str  # of the new run, or of the baseline where there is no new one
    verdict: Verdict
    reason: str  # why, in one sentence; empty where the numbers say it all
    triage: tuple[str, ...] = ()  # what else changed, in words
    baseline_ms: float | None = None  # medians
    new_ms: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    q_value: float | None = None  # the p-value, adjusted for all cases of the run
    noise: float | None = None
    noise_source: str | None = None
    detectable: float | None = None
    cycles_ratio: float | None = None
    machine_ratio: float | None = None
    lost: bool = False  # missing, of a kernel on trial, and not allowed to be: it counts as a regression

    @property
    def fails(self) -> bool:
        """Whether it counts against the new run."""
        return self.lost or self.verdict in ("regression", "invalid")


class Demand(msgspec.Struct, frozen=True):
    """An absolute demand on the new run, and whether it is met."""

    demand: str  # as it was given: --min-roof 0.5
    of: str  # the case, or the two of them, that it is held against; empty where there is none
    verdict: Literal["ok", "regression", "inconclusive", "missing"]
    reason: str  # what was measured


class Comparison(msgspec.Struct, frozen=True):
    """Everything the gate has to say. `baseline` and `new` name the two sides; `notes` concern the whole run.

    `baseline` None: absolute demands alone. `started` is when the new run was, UTC. `uncompared` are kernels on trial
    that both runs have times of, and none that could be compared.
    """

    baseline: str | None
    new: str
    device: str
    started: str
    policy: Policy
    cases: tuple[CaseVerdict, ...] = ()
    demands: tuple[Demand, ...] = ()
    notes: tuple[str, ...] = ()
    uncompared: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases and demands by verdict, those that occur, worst first."""
        found = Counter([case.verdict for case in self.cases] + [demand.verdict for demand in self.demands])
        return {verdict: found[verdict] for verdict in (*COMPARED, *OTHER) if found[verdict]}

    @property
    def exit_status(self) -> int:
        """1 a regression, a lost case or an impossible time; 4 nothing was compared, as a whole or of a kernel.

        4 too where a demand names no case; 3 more inconclusive than allowed; else 0.
        """
        counts = self.counts
        if counts.get("regression") or any(case.fails for case in self.cases):
            return REGRESSION
        unmet = any(demand.verdict == "missing" for demand in self.demands)
        if unmet or self.uncompared or not any(counts.get(verdict) for verdict in COMPARED):
            return NOTHING
        return INCONCLUSIVE if counts.get("inconclusive", 0) > self.policy.allow_inconclusive else OK

    @property
    def summary(self) -> str:
        """The outcome in one line; of missing cases it says whether they count."""
        some = any(case.verdict in COMPARED for case in self.cases)
        of = f" of {', '.join(self.uncompared)}" if some and self.uncompared else ""
        said = {
            OK: "no regression",
            REGRESSION: self._failure,
            INCONCLUSIVE: "inconclusive",
            NOTHING: f"nothing comparable{of} was measured",
        }
        counts = ", ".join(self._counted(verdict, number) for verdict, number in self.counts.items())
        return f"{said[self.exit_status]}: {counts}" if counts else said[self.exit_status]

    @property
    def _failure(self) -> str:
        """What made the status 1: impossible times alone are no regression, and no evidence of anything."""
        failing = {case.verdict for case in self.cases if case.fails}
        return "INVALID" if failing == {"invalid"} and not self.counts.get("regression") else "REGRESSION"

    def _counted(self, verdict: str, number: int) -> str:
        cases = [case for case in self.cases if case.verdict == verdict == "missing"]
        if not cases:
            return f"{number} {verdict}"
        lost = sum(case.lost for case in cases)
        which = "" if lost == number else f"{lost} " if lost else "not "
        return f"{number} missing ({which}counted as regressions)"
