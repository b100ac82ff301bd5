"""Resampled times: as wide as those of new samples, or new visits, would spread, whatever hangs together in time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from powerbench import bootstrap
from powerbench.bootstrap import RESAMPLES, effective_size, interval, resampled, resampled_log_speedups


def correlated(generator, n, correlation):
    white = generator.standard_normal(n)
    values = [white[0]]
    for step in white[1:]:
        values.append(correlation * values[-1] + math.sqrt(1 - correlation**2) * step)
    return tuple(10 + np.array(values))


def test_the_spread_is_that_of_the_median_of_resamples():
    """Against resampling as the textbook does it."""
    samples = tuple(np.random.default_rng(0).exponential(size=31))
    drawn = np.random.default_rng(1).choice(samples, size=(20_000, 31))
    expected = np.quantile(np.median(drawn, axis=1), [0.025, 0.25, 0.5, 0.75, 0.975])
    independent = [n for n in [effective_size(samples)] if n == pytest.approx(31, rel=0.3)]
    assert independent
    found = np.quantile(resampled((samples,)), [0.025, 0.25, 0.5, 0.75, 0.975])
    assert found == pytest.approx(expected, rel=0.2)
    assert set(resampled((samples,))) <= set(samples)


def test_the_same_on_every_reading_and_none_below_five():
    samples = (1.0, 2.0, 3.0, 4.0, 5.0)
    first = resampled((samples,)).copy()
    bootstrap._resampled.cache_clear()
    assert (resampled((samples,)) == first).all()
    assert len(first) == RESAMPLES
    assert resampled((samples[:4],)) is None
    assert interval((samples[:4],)) is None
    assert resampled(()) is None
    with pytest.raises(ValueError, match="read-only"):
        resampled((samples,))[0] = 0.0


def test_visits_count_and_not_their_samples():
    """Student's t over the logarithms of their medians, whatever the samples of each say."""
    visits = ((1.0, 1.0, 1.0), (1.1,) * 40, (0.9, 0.9), (1.05,))
    logs = np.log([1.0, 1.1, 0.9, 1.05])
    half = 3.182 * logs.std(ddof=1) / 2  # t of three degrees of freedom
    low, high = interval(visits)
    assert np.log([low, high]) == pytest.approx([logs.mean() - half, logs.mean() + half], abs=0.02 * half)
    assert low < math.exp(logs.mean()) < high
    assert interval(((2.0,), (2.0,))) == (2.0, 2.0)


def test_what_both_share_in_a_visit_drops_out():
    machine = np.array([1.0, 1.4, 0.7, 1.1, 0.9])
    a = [(x,) for x in machine]
    b = [(2 * x * wobble,) for x, wobble in zip(machine, (1.0, 1.001, 0.999, 1.002, 0.998), strict=True)]
    paired = resampled_log_speedups(a, b)
    assert np.median(paired) == pytest.approx(math.log(2), abs=0.005)
    assert paired.std() < 0.01
    apart = resampled_log_speedups(a, b[:4])  # one visit is missing: nothing to pair
    assert apart.std() > 0.1
    assert resampled_log_speedups(a, [(1.0,) * 4]) is None


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_effective_size_of_a_known_process(correlation):
    """Of a normal process with correlations r^k, the signs have 2 / pi asin(r^k)."""
    lags = np.arange(1, 400)
    time = 1 + 2 * np.sum(2 / math.pi * np.arcsin(correlation**lags))
    generator = np.random.default_rng(3)
    found = np.median([effective_size(correlated(generator, 800, correlation)) for _ in range(30)])
    assert found == pytest.approx(800 / time, rel=0.25)


def test_effective_size_at_the_ends():
    assert effective_size((1.0,) * 8) == 8
    assert effective_size(tuple(float(i) for i in range(50))) == 1  # one long drift
    assert effective_size((1.0, 2.0) * 20) == 40  # turns: no more than all
