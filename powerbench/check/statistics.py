"""The statistics of the gate, on raw samples, in numpy alone. Nothing is drawn: the same samples, the same answer.

Samples of one run are not independent (clocks and temperature wander), so each series counts for as many samples as
it is worth, `effective_size`. docs/gate.md says how the parts are put together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

EXACT_SAMPLES = 25  # of both sides together; above, the normal approximation is good to a few percent of p

IQR_OF_NORMAL = 1.349  # in standard deviations
MEDIAN_OF_NORMAL = 1.2533  # standard error of the median of n normal samples, times sqrt(n), in standard deviations


class Median(NamedTuple):
    """The median of a series of logarithms, or the mean of several such, and how far it can be trusted."""

    log_median: float
    standard_error: float
    low: float  # 95 % percentile interval
    high: float
    effective_size: float


def median_of_visits(visits: Sequence[Sequence[float]]) -> Median:
    """The mean over the visits of a run, whose spread is its error; of a single visit `bootstrap_median`.

    Each visit counts for one sample.
    """
    if len(visits) == 1:
        return bootstrap_median(visits[0])
    logs = np.array([float(np.median(np.log(np.asarray(samples, dtype=np.float64)))) for samples in visits])
    mean, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
    half = quantile(0.05, len(logs) - 1) * error
    return Median(mean, error, mean - half, mean + half, float(len(logs)))


def bootstrap_median(samples: Sequence[float]) -> Median:
    """Bootstrap of the median of log(samples), positive times in order of measurement.

    A resample is m of the n samples, m the effective size: m out of n, because n correlated samples say no more. The
    distribution of an order statistic of resamples is known exactly (Maritz and Jarrett 1978), so none are drawn.
    """
    logs = np.log(np.asarray(samples, dtype=np.float64))
    size = effective_size(logs)
    ordered = np.sort(logs)
    chances = _chances(len(logs), _odd_at_most(size))
    mean = float(chances @ ordered)
    error = math.sqrt(max(0.0, float(chances @ (ordered - mean) ** 2)))
    reached = np.cumsum(chances)
    low, high = (float(ordered[min(int(np.searchsorted(reached, at)), len(logs) - 1)]) for at in (0.025, 0.975))
    return Median(float(np.median(ordered)), error, low, high, size)


def effective_size(series: Sequence[float] | Floats) -> float:
    """How many independent samples a series in order of measurement is worth: between 1 and its length.

    The smaller of two estimates. Length over 1 + 2 * the sum of its autocorrelations, summed while they are positive in
    pairs (Geyer 1992), sees any shape but stops early in short series. n (1 - r) / (1 + r), with r the correlation of
    neighbours less its bias (Kendall 1954), sees a slow wander even there. Both of ranks and not of values, so that one
    outlier does not hide that the rest wanders.
    """
    n = len(series)
    if n < 4:
        return float(n)
    ranks = np.argsort(np.argsort(np.asarray(series), kind="stable"), kind="stable") - (n - 1) / 2.0
    spectrum = np.fft.rfft(ranks, 2 * n)
    covariance = np.fft.irfft(spectrum * spectrum.conj())[: n - n % 2]
    correlation = covariance / covariance[0]
    pairs = correlation.reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    summed = 2.0 * float(pairs[: negative[0] if len(negative) else len(pairs)].sum()) - 1.0
    neighbours = float(correlation[1])
    neighbours = (
        min(neighbours + (1.0 + 3.0 * neighbours) / n, 1.0 - 1.0 / n) if neighbours > 2.0 / math.sqrt(n) else 0.0
    )
    time = max(summed, (1.0 + neighbours) / (1.0 - neighbours), 1.0)
    return n / min(time, float(n))


def wander(samples: Sequence[float]) -> float:
    """How far the median moves within a run: the variance of the log ratio of its halves, beyond independent samples'.

    Two clocks or a slow drift show here, and may differ from run to run by as much. Not negative.
    """
    logs = np.log(np.asarray(samples, dtype=np.float64))
    half = len(logs) // 2
    moved = float(np.median(logs[half:]) - np.median(logs[:half]))
    deviations = [
        float(np.subtract(*np.quantile(part, (0.75, 0.25)))) / IQR_OF_NORMAL for part in (logs[:half], logs[half:])
    ]
    independent = sum(MEDIAN_OF_NORMAL**2 * deviation**2 / half for deviation in deviations)
    return max(0.0, moved**2 - independent)


def rank_test(base: Sequence[float], new: Sequence[float]) -> float:
    """Two-sided p-value of the Mann-Whitney U test that neither side tends to be larger.

    Exact for few samples without ties, else by the normal approximation with corrections for ties and continuity. It
    takes samples for independent, so its p-value alone proves nothing: the gate asks for it beside its other test.
    """
    a, b = np.asarray(base, dtype=np.float64), np.asarray(new, dtype=np.float64)
    n, m = len(a), len(b)
    both = np.concatenate((a, b))
    values, where, counts = np.unique(both, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2.0
    u = float(midranks[where[n:]].sum()) - m * (m + 1) / 2.0
    if len(values) == n + m <= EXACT_SAMPLES:
        chances = _u_distribution(n, m)
        extreme = round(min(u, n * m - u))
        return float(min(1.0, 2.0 * chances[: extreme + 1].sum()))
    total = n + m
    ties = float((counts.astype(np.float64) ** 3 - counts).sum())
    variance = n * m / 12.0 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:  # all samples are the same
        return 1.0
    z = max(0.0, abs(u - n * m / 2.0) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0))


def false_discovery(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg (1995): the smallest false discovery rate at which each of the tests is rejected."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    return [float(value) for value in adjusted]


def two_sided(t: float, freedom: float) -> float:
    """P(|T| >= |t|) of Student's t; `freedom` a whole number, or infinite for the normal distribution.

    The finite series of Abramowitz and Stegun 26.7.3 and 26.7.4, exact for whole degrees of freedom. It loses its
    digits in the far tail, where p is below 1e-12: that is 0 to any gate.
    """
    if math.isinf(freedom):
        return math.erfc(abs(t) / math.sqrt(2.0))
    degrees = int(freedom)
    theta = math.atan(abs(t) / math.sqrt(degrees))
    cos2 = math.cos(theta) ** 2
    odd = degrees % 2
    term, total = (math.cos(theta), math.cos(theta)) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cos2
        total += term
    inside = math.sin(theta) * total
    if odd:
        inside = 2.0 / math.pi * (theta + (inside if degrees > 1 else 0.0))
    return max(0.0, 1.0 - inside)


@lru_cache(maxsize=4096)
def quantile(p_two_sided: float, freedom: float) -> float:
    """The t that `two_sided` gives this p-value: 1.96 for 0.05 and infinite degrees of freedom."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > p_two_sided:
        high *= 2.0
        if high > 1e9:
            return math.inf
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (middle, high) if two_sided(middle, freedom) > p_two_sided else (low, middle)
    return high


def _odd_at_most(size: float) -> int:
    """So that a resample has one middle sample."""
    whole = max(1, int(size))
    return whole if whole % 2 else whole - 1


@lru_cache(maxsize=4096)
def _chances(n: int, m: int) -> Floats:
    """Of each of n ordered samples, how probable it is that it is the median of m (odd) drawn with replacement.

    The median of the draws is at most the k-th smallest when at least (m + 1) / 2 of them are:
    P(Bin(m, k / n) >= (m + 1) / 2).
    """
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, m + 1)))))
    hits = np.arange((m + 1) // 2, m + 1)
    rates = np.arange(1, n)[:, None] / n
    log_terms = log_factorial[m] - log_factorial[hits] - log_factorial[m - hits]
    log_terms = log_terms + hits * np.log(rates) + (m - hits) * np.log1p(-rates)
    at_most = np.concatenate(([0.0], np.exp(log_terms).sum(axis=1), [1.0]))
    return np.diff(at_most)


@lru_cache(maxsize=1024)
def _u_distribution(n: int, m: int) -> Floats:
    """Probabilities of U = 0 .. n * m where both sides are alike.

    The numbers of orders are the coefficients of the Gaussian binomial, the product of (1 - q^(n + i)) / (1 - q^i)
    over i = 1 .. m: whole numbers, in Python's own integers.
    """
    size = n * m + 1
    ways = [1] + [0] * (size - 1)
    for i in range(1, m + 1):
        for u in range(size - 1, n + i - 1, -1):
            ways[u] -= ways[u - n - i]
        for u in range(i, size):
            ways[u] += ways[u - i]
    total = math.comb(n + m, m)
    return np.array([way / total for way in ways])
