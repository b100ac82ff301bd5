"""The gate's statistics against values worked out by hand, by counting all orders, and by drawing."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from powerbench.check.evidence import Side, pair_ratios
from powerbench.check.statistics import (
    bootstrap_median,
    effective_size,
    false_discovery,
    quantile,
    rank_test,
    two_sided,
)


def by_counting(base, new):
    """P(U at least as far from its middle), over all ways to choose which of the values are new."""
    both = sorted([*base, *new])
    n, m = len(base), len(new)

    def u(chosen):
        return sum(both.index(value) for value in chosen) - m * (m - 1) / 2

    far = abs(u(new) - n * m / 2)
    all_of_them = [u(chosen) for chosen in combinations(both, m)]
    return sum(abs(one - n * m / 2) >= far - 1e-9 for one in all_of_them) / len(all_of_them)


def test_rank_test_of_five_against_five_that_do_not_overlap():
    """Two of the C(10, 5) = 252 orders are as extreme."""
    assert rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert rank_test([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)


@pytest.mark.parametrize(("n", "m"), [(3, 4), (5, 5), (6, 3), (7, 6), (2, 9)])
def test_rank_test_is_exact_for_few_samples(n, m):
    generator = np.random.default_rng(n * 10 + m)
    for _ in range(20):
        values = generator.permutation(n + m) + generator.random()
        base, new = values[:n].tolist(), values[n:].tolist()
        assert rank_test(base, new) == pytest.approx(by_counting(base, new))


def test_rank_test_of_many_samples_holds_its_level():
    """p is uniform where nothing changed, ties included."""
    generator = np.random.default_rng(0)
    p = [rank_test(*generator.integers(0, 40, (2, 60)).tolist()) for _ in range(2000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.012)
    assert np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.035)


def test_rank_test_agrees_with_textbook_normal_approximation():
    """U = 0 of 20 x 20 without ties: z = (200 - 0.5) / sqrt(20 * 20 * 41 / 12)."""
    z = 199.5 / math.sqrt(20 * 20 * 41 / 12)
    want = math.erfc(z / math.sqrt(2))
    assert rank_test(list(range(20)), list(range(20, 40))) == pytest.approx(want)


def test_rank_test_of_constant_samples_rejects_nothing():
    assert rank_test([3.0] * 30, [3.0] * 30) == 1.0


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (10, 2.2281), (30, 2.0423), (math.inf, 1.9600)],
)
def test_students_t_table(freedom, t):
    assert two_sided(t, freedom) == pytest.approx(0.05, abs=2e-5)
    assert two_sided(-t, freedom) == two_sided(t, freedom)
    assert quantile(0.05, freedom) == pytest.approx(t, abs=2e-4)


def test_students_t_far_out():
    """Tables: t = 9.6103 for p = 0.0002 two-sided... of 5 degrees of freedom it is 9.6776; of 4, 13.0337."""
    assert quantile(0.0002, 4) == pytest.approx(13.0337, abs=1e-3)
    assert quantile(0.0002, 5) == pytest.approx(9.6776, abs=1e-3)


def test_false_discovery_by_hand():
    """Benjamini and Hochberg: p m / rank, made monotone from the largest down."""
    assert false_discovery([0.04, 0.01, 0.03, 0.8]) == pytest.approx([0.04 * 4 / 3, 0.04, 0.04 * 4 / 3, 0.8])
    assert false_discovery([]) == []


def test_effective_size_of_independent_samples_is_nearly_their_number():
    generator = np.random.default_rng(1)
    sizes = [effective_size(generator.standard_normal(200)) for _ in range(200)]
    assert 160 < np.mean(sizes) <= 200


@pytest.mark.parametrize("correlation", [0.5, 0.9])
def test_effective_size_of_correlated_samples(correlation):
    """An AR(1) series of n is worth n (1 - r) / (1 + r)."""
    generator = np.random.default_rng(2)
    sizes = []
    for _ in range(100):
        series = [0.0]
        for _ in range(999):
            series.append(correlation * series[-1] + generator.standard_normal())
        sizes.append(effective_size(series))
    assert np.mean(sizes) == pytest.approx(1000 * (1 - correlation) / (1 + correlation), rel=0.15)


def test_effective_size_of_a_ramp_and_of_few():
    assert effective_size(list(range(100))) < 5
    assert effective_size([1.0, 2.0, 3.0]) == 3


@pytest.mark.parametrize("n", [5, 31, 400])
def test_the_bootstrap_is_the_limit_of_drawing(n):
    generator = np.random.default_rng(n)
    samples = np.exp(0.1 * generator.standard_normal(n))
    found = bootstrap_median(samples.tolist())
    m = int(found.effective_size)
    m -= 1 - m % 2
    drawn = np.median(generator.choice(np.log(samples), (20_000, m)), axis=1)
    assert found.log_median == pytest.approx(np.log(np.median(samples)))
    assert found.standard_error == pytest.approx(drawn.std(), rel=0.03)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.15 * drawn.std())
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.15 * drawn.std())


def in_rounds(logs):
    """A side with one run whose rounds have these log medians, three samples each."""
    samples = tuple(math.exp(log) * factor for log in logs for factor in (0.999, 1.0, 1.001))
    median_of_run = bootstrap_median(samples)
    return Side((samples,), (median_of_run,), (None,), (tuple(logs),))


def test_runs_in_turns_are_compared_turn_by_turn():
    """A machine that becomes slower by half, and turns that something else disturbs on one side, leave 5 % at 5 %."""
    generator = np.random.default_rng(5)
    drift = np.linspace(0.0, 0.4, 24)
    base, new = (drift + 0.002 * generator.standard_normal(24) for _ in range(2))
    base[3] += 0.5
    new[[7, 20]] += 0.3
    (ratio,) = pair_ratios(in_rounds(base), in_rounds(new + math.log(1.05)))
    assert math.exp(ratio) == pytest.approx(1.05, abs=0.003)
    (short,) = pair_ratios(in_rounds(base[:10]), in_rounds(new + math.log(1.05)))  # one side needed fewer turns
    assert math.exp(short) == pytest.approx(1.05, abs=0.005)


def test_runs_without_turns_are_compared_by_their_medians():
    few = [0.0, 0.1, 0.2]
    (ratio,) = pair_ratios(in_rounds(few), in_rounds([log + 0.03 for log in few]))
    assert ratio == pytest.approx(0.03)
