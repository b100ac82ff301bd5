"""Statistics of raw samples, computed when a run is read. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MIN_SAMPLES = 5  # below this no interval is given: five samples can barely carry one


def median(samples: Sequence[float]) -> float:
    """The sample median. Raises ValueError when there are no samples."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)  # of the few hundred numbers that a case has, four times as fast as numpy
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def typical(visits: Sequence[Sequence[float]]) -> float:
    """The time of a case: the geometric mean of its visits' medians, in the samples' unit.

    Of a single visit the median itself. Raises ValueError where a visit, or the whole, is empty.
    """
    if len(visits) == 1:
        return median(visits[0])
    if not visits:
        raise ValueError("no samples")
    return math.exp(math.fsum(math.log(median(samples)) for samples in visits) / len(visits))


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % bootstrap percentile interval of the median of independent samples; None below five.

    The bootstrap distribution of an order statistic is known exactly (Maritz and Jarrett 1978), so nothing is drawn:
    the result is the limit of infinitely many resamples, the same on every reading. With an even count the bounds are
    those of the lower and of the upper middle sample, so that the interval is never too narrow.
    """
    if len(samples) < MIN_SAMPLES:
        return None
    low, high = _interval_ranks(len(samples))
    ordered = sorted(samples)
    return ordered[low], ordered[high]


@lru_cache(maxsize=4096)
def _interval_ranks(n: int) -> tuple[int, int]:
    """Zero-based ranks of the two samples that bound the 95 % interval of the median of n.

    A resample's m-th smallest is at most the k-th smallest sample with probability P(Bin(n, k / n) >= m).
    """
    middle = (n + 1) // 2
    low, high = 1, middle
    while low < high:  # the smallest k whose probability reaches 2.5 %
        k = (low + high) // 2
        low, high = (low, k) if _binomial_tail(n, k / n, middle) >= 0.025 else (k + 1, high)
    return low - 1, n - low


def _binomial_tail(n: int, rate: float, least: int) -> float:
    """P(Bin(n, rate) >= least), summed in logarithms so that large n do not overflow."""
    if rate >= 1.0:
        return 1.0
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    hits = np.arange(least, n + 1)
    log_terms = (
        log_factorial[n]
        - log_factorial[hits]
        - log_factorial[n - hits]
        + hits * np.log(rate)
        + (n - hits) * np.log1p(-rate)
    )
    return float(np.exp(log_terms).sum())
