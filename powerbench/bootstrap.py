"""How far a time may be off, judged by the samples themselves: resampled times of one case. numpy only.

Within a visit samples hang together, and from one visit to the next times differ by more than the samples of either
show: memory lands elsewhere, other load comes and goes, a GPU is warmer. So with several visits the spread of their
medians is what counts, and Student's t. With one visit there is only the bootstrap of its samples, which knows nothing
of the next one. The median of n independent draws from the samples is one of the samples; which one follows from a
beta-distributed share (Maritz and Jarrett 1978), so a resample costs one draw, not n.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from powerbench.results.statistics import MIN_SAMPLES, median, typical

RESAMPLES = 1000

Array = NDArray[np.float64]
Visits = Sequence[Sequence[float]]  # the samples of each visit, in the order taken


def interval(visits: Visits) -> tuple[float, float] | None:
    """95 % interval of `typical(visits)`, in the samples' unit; None where nothing is known of it.

    That takes two visits, or five samples.
    """
    return _interval(tuple(tuple(samples) for samples in visits))


@lru_cache(maxsize=1 << 15)  # a page asks several times for each of its cases, of which there may be ten thousand
def _interval(visits: tuple[tuple[float, ...], ...]) -> tuple[float, float] | None:
    found = _resampled(visits)
    if found is None:
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    time = typical(visits)
    return min(float(low), time), max(float(high), time)


def resampled(visits: Visits) -> Array | None:
    """RESAMPLES times of resampled visits, in the samples' unit; None for a single visit of less than five samples."""
    return _resampled(tuple(tuple(samples) for samples in visits))


def resampled_log_speedups(a: Visits, b: Visits) -> Array | None:
    """Logarithms of RESAMPLES resampled ratios, b's time over a's; None where one of them is not known.

    Of contestants with as many visits, each visit is one ratio: they took turns in it, and what a machine did to both
    drops out.
    """
    if len(a) == len(b) > 1:
        return _of_logs([math.log(median(theirs) / median(ours)) for ours, theirs in zip(a, b, strict=True)], (*a, *b))
    ours, theirs = resampled(a), resampled(b)
    return None if ours is None or theirs is None else np.log(theirs / ours)


@lru_cache(maxsize=2048)
def _resampled(visits: tuple[tuple[float, ...], ...]) -> Array | None:
    if len(visits) > 1:
        found = np.exp(_of_logs([math.log(median(samples)) for samples in visits], visits))
    else:
        alone = _of_one_visit(visits[0]) if visits else None
        if alone is None:
            return None
        found = alone
    found.flags.writeable = False  # it is shared by all who ask for this case
    return found


def _of_logs(logs: Sequence[float], seeds: Iterable[Sequence[float]]) -> Array:
    """Their mean, as far off as Student's t says: one value a visit, visits taken for independent and normal."""
    values = np.asarray(logs)
    error = values.std(ddof=1) / math.sqrt(len(values))
    drawn: Array = values.mean() + error * _generator(seeds).permutation(_student(len(values) - 1))
    return drawn


@lru_cache(maxsize=64)
def _student(freedom: int) -> Array:
    """RESAMPLES values of Student's t, evenly over its quantiles: the tails of few draws would be chance."""
    number = 100 * RESAMPLES
    values: Array = np.quantile(
        np.random.default_rng(freedom).standard_t(freedom, number), (np.arange(RESAMPLES) + 0.5) / RESAMPLES
    )
    symmetric: Array = (values - values[::-1]) / 2
    return symmetric


def _of_one_visit(samples: tuple[float, ...]) -> Array | None:
    """Medians of resamples, each of as many draws as `effective_size` says: correlated samples say less."""
    if len(samples) < MIN_SAMPLES:
        return None
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    middle = (effective_size(samples) + 1) / 2
    share = _generator([samples]).beta(middle, middle, RESAMPLES)
    chosen: Array = ordered[np.minimum((share * len(ordered)).astype(int), len(ordered) - 1)]
    return chosen


def _generator(seeds: Iterable[Sequence[float]]) -> np.random.Generator:
    """Seeded by the samples: the same on every reading, wherever the case stands."""
    seed = 0
    for samples in seeds:
        seed = zlib.crc32(np.asarray(samples).tobytes(), seed)
    return np.random.default_rng(seed)


def effective_size(samples: Sequence[float]) -> float:
    """How many independent samples tell as much of the median as these, at least 1 and at most all.

    n / (1 + 2 sum of autocorrelations), summed in pairs while a pair's sum is positive (Geyer 1992): successive times
    hang together (clocks, temperature), also across the rounds of an interleaved measurement, since rounds are short.
    What is correlated is on which side of the median a sample lies: a rare long time does not hide it.
    """
    times = np.asarray(samples, dtype=np.float64)
    side = np.sign(times - np.median(times))
    n = len(side)
    side -= side.mean()
    spread = float(side @ side)
    if spread == 0.0:
        return float(n)
    size = 1 << (2 * n - 1).bit_length()  # padded, so that the end does not meet the beginning
    spectrum = np.abs(np.fft.rfft(side, size)) ** 2
    correlation = np.fft.irfft(spectrum, size)[:n] / spread
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    kept = pairs[: ends[0]] if len(ends) else pairs
    lost = 4 * len(kept) / n  # of the sum, because the samples' own median stands for the true one
    time = (2 * float(kept.sum()) - 1) / max(1 - lost, 1 / n)
    return max(1.0, n / max(1.0, time))
