"""Resampled medians: as wide as the medians of new samples would spread, whatever hangs together in time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from powerbench.bootstrap import RESAMPLES, bootstrap_medians, effective_size


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
    found = np.quantile(bootstrap_medians(samples), [0.025, 0.25, 0.5, 0.75, 0.975])
    assert found == pytest.approx(expected, rel=0.2)
    assert set(bootstrap_medians(samples)) <= set(samples)


def test_the_same_on_every_reading_and_none_below_five():
    samples = (1.0, 2.0, 3.0, 4.0, 5.0)
    first = bootstrap_medians(samples).copy()
    bootstrap_medians.cache_clear()
    assert (bootstrap_medians(samples) == first).all()
    assert len(first) == RESAMPLES
    assert bootstrap_medians(samples[:4]) is None
    with pytest.raises(ValueError, match="read-only"):
        bootstrap_medians(samples)[0] = 0.0


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
