"""The interval of the median, against brute force and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from powerbench.results.statistics import MIN_SAMPLES, _binomial_tail, median, median_interval


def test_few_samples_have_no_interval():
    assert [median_interval([1.0] * n) for n in range(MIN_SAMPLES)] == [None] * MIN_SAMPLES
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1.0, 5.0)  # five samples say little, and say so
    with pytest.raises(ValueError, match="no samples"):
        median([])


@pytest.mark.parametrize("n", [5, 7, 9, 15, 21, 51, 101])
def test_it_is_the_bootstrap_percentile_interval(n):
    rng = np.random.default_rng(n)
    samples = rng.lognormal(size=n)
    exact = median_interval(list(samples))
    drawn = stats.bootstrap((samples,), np.median, method="percentile", n_resamples=40_000, rng=rng)
    interval = drawn.confidence_interval
    ranks = np.searchsorted(np.sort(samples), [exact[0], interval.low, exact[1], interval.high])
    assert abs(ranks[0] - ranks[1]) <= (n > 51)  # at 2.5 % exactly, a draw may fall on the neighbour
    assert abs(ranks[2] - ranks[3]) <= (n > 51)


@pytest.mark.parametrize("n", [6, 8, 20, 100])
def test_with_an_even_count_it_is_never_too_narrow(n):
    samples = np.random.default_rng(n).lognormal(size=n)
    low, high = median_interval(list(samples))
    interval = stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert low <= interval.low
    assert interval.high <= high


@pytest.mark.parametrize("n", [10, 101, 10_000])
def test_the_binomial_tail(n):
    for rate, least in ((0.5, n // 2), (0.1, n // 8), (1.0, n)):
        assert _binomial_tail(n, rate, least) == pytest.approx(stats.binom.sf(least - 1, n, rate))


@given(st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=60))
def test_laws(samples):
    low, high = median_interval(samples)
    assert min(samples) <= low <= median(samples) <= high <= max(samples)
    assert median_interval(sorted(samples)) == (low, high)
    assert median_interval([2 * x for x in samples]) == (2 * low, 2 * high)
