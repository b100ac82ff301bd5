"""How far a median may be off, judged by the samples themselves: bootstrap medians of one case. numpy only.

The median of n independent draws from the samples is one of the samples; which one follows from a beta-distributed
share (Maritz and Jarrett 1978), so a resample costs one draw, not n.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from powerbench.results.statistics import MIN_SAMPLES

RESAMPLES = 1000

Array = NDArray[np.float64]


@lru_cache(maxsize=2048)
def bootstrap_medians(samples: tuple[float, ...]) -> Array | None:
    """RESAMPLES medians of resampled `samples` (in the order taken), in their unit; None below five samples.

    Each resample has as many draws as `effective_size` says, so that the medians of correlated samples spread as wide
    as they should. The generator is seeded by the samples: the same on every reading, wherever the case stands.
    """
    if len(samples) < MIN_SAMPLES:
        return None
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    generator = np.random.default_rng(zlib.crc32(np.asarray(samples).tobytes()))
    middle = (effective_size(samples) + 1) / 2
    share = generator.beta(middle, middle, RESAMPLES)
    chosen: Array = ordered[np.minimum((share * len(ordered)).astype(int), len(ordered) - 1)]
    chosen.flags.writeable = False  # it is shared by all who ask for this case
    return chosen


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
