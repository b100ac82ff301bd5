"""From raw samples of both sides to one number with its uncertainty: the log of the ratio of medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from powerbench.check.clocks import log_cycles
from powerbench.check.noise import Floor
from powerbench.check.statistics import Median, median_of_visits, quantile, rank_test, two_sided
from powerbench.results.model import Measurement

CONFIDENCE_P = 0.05  # of the interval that is shown
NEARLY_NORMAL = 300.0  # degrees of freedom
POWER_Z = 1.645  # of a normal distribution, for a detection in 95 % of runs


class Side(NamedTuple):
    """One case in the runs of one side: the samples in ms of each run, in order, their medians, and those in cycles."""

    samples_ms: tuple[Sequence[float], ...]
    medians: tuple[Median, ...]
    log_cycles: tuple[float | None, ...]  # None: the clock of this run is not known

    @classmethod
    def of(cls, measured: Sequence[Measurement]) -> Side:
        """From the case's measurement in each run."""
        return cls(
            tuple(one.samples_ms for one in measured),
            tuple(median_of_visits(one.visits) for one in measured),
            tuple(log_cycles(one) for one in measured),
        )

    @property
    def first(self) -> Side:
        """The first run alone."""
        return Side(self.samples_ms[:1], self.medians[:1], self.log_cycles[:1])

    @property
    def log_median(self) -> float:
        """The mean over the runs."""
        return fmean(median.log_median for median in self.medians)


def cycles_ratio(baseline: Side, new: Side) -> float | None:
    """The log of the ratio in cycles, the mean over the runs; None where a clock is not known."""
    known = [[cycles for cycles in side.log_cycles if cycles is not None] for side in (baseline, new)]
    if any(len(cycles) < len(baseline.medians) for cycles in known):
        return None
    return fmean(known[1]) - fmean(known[0])


class Evidence(NamedTuple):
    """How new stands to baseline, in logarithms: above 0 is slower. `noise`: sd of one pair of runs of one code."""

    log_ratio: float
    low: float  # 95 % interval
    high: float
    p_value: float
    error: float  # standard error of log_ratio
    freedom: float
    noise: float

    def detectable(self, p_value: float, threshold: float) -> float:
        """The smallest slowdown, as a fraction, that is called one in 95 % of runs by a test at this p-value.

        Infinite where it would have to be a hundredfold: then nothing can be seen.
        """
        least = max(quantile(p_value, self.freedom) * self.error, math.log1p(threshold)) + POWER_Z * self.error
        return math.expm1(least) if least < math.log(100.0) else math.inf

    def widened(self, sd: float, freedom: float) -> Evidence:
        """The same difference with one more source of noise, of this standard deviation, known to these degrees."""
        error, freedom = math.hypot(self.error, sd), min(self.freedom, freedom)
        half = quantile(CONFIDENCE_P, freedom) * error
        low, high = min(self.low, self.log_ratio - half), max(self.high, self.log_ratio + half)
        p_value = max(self.p_value, two_sided(self.log_ratio / error, freedom))
        return Evidence(self.log_ratio, low, high, p_value, error, freedom, math.hypot(self.noise, sd))


def of_two_runs(baseline: Side, new: Side, floor: Floor) -> Evidence:
    """One run a side: what the samples cannot show, the noise between runs, comes from the floor."""
    (old,), (one,) = baseline.medians, new.medians
    ratio = one.log_median - old.log_median
    error = math.sqrt(old.standard_error**2 + one.standard_error**2 + floor.sd**2)
    freedom = _freedom((old, one), floor, error)
    between = quantile(CONFIDENCE_P, floor.freedom) * floor.sd
    low = ratio - math.hypot(one.log_median - one.low, old.high - old.log_median, between)
    high = ratio + math.hypot(one.high - one.log_median, old.log_median - old.low, between)
    p_value = max(two_sided(ratio / error, freedom), _rank_p(baseline, new))
    return Evidence(ratio, low, high, p_value, error, freedom, floor.sd)


def of_pairs(baseline: Side, new: Side, variance: float, freedom: float) -> Evidence:
    """Several runs a side, in pairs measured one after the other: their own spread is the noise between runs.

    `variance` is that of the pairs' log ratios as `noise.moderated` gives it, with its degrees of freedom.
    """
    pairs = pair_ratios(baseline, new)
    ratio, error = sum(pairs) / len(pairs), math.sqrt(variance / len(pairs))
    half = quantile(CONFIDENCE_P, freedom) * error
    p_value = max(two_sided(ratio / error, freedom), _rank_p(baseline, new))
    return Evidence(ratio, ratio - half, ratio + half, p_value, error, freedom, math.sqrt(variance))


def pair_ratios(baseline: Side, new: Side) -> list[float]:
    """The log ratio of each pair of runs: what drifts slowly is the same in both and drops out."""
    return [one.log_median - old.log_median for old, one in zip(baseline.medians, new.medians, strict=True)]


def _freedom(medians: Sequence[Median], floor: Floor, error: float) -> float:
    """Degrees of freedom of the error (Welch 1947, Satterthwaite 1946): one less than each side's effective size."""
    parts = [median.standard_error**4 / max(median.effective_size - 1.0, 1.0) for median in medians]
    unsure = sum(parts) + floor.sd**4 / floor.freedom
    freedom = error**4 / unsure if unsure > 0 else math.inf
    return math.floor(max(freedom, 1.0)) if freedom < NEARLY_NORMAL else math.inf


def _rank_p(baseline: Side, new: Side) -> float:
    """The rank test over all samples: no p-value is smaller than the samples, taken one by one, bear out."""
    before, after = ([ms for series in side.samples_ms for ms in series] for side in (baseline, new))
    return rank_test(before, after)
