"""When sampling stops, on samples that are made up."""

from __future__ import annotations

import numpy as np
import pytest

from powerbench.cli import sweep
from powerbench.results.model import Round
from powerbench.stopping import ROUND_SAMPLES, VISITS, Stopping, relative_error

RULE = Stopping()


def noisy(ms, n, noise, seed=0):
    return list(ms * (1 + noise * np.random.default_rng(seed).standard_normal(n)))


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], None),
        ([50.0] * 9, None),  # 0.45 s and perfectly precise, but too few
        ([50.0] * 10, "precise"),
        ([10.0] * 29, None),  # precise, but 0.29 s
        ([10.0] * 30, "precise"),
        (noisy(40.0, 11, 0.1), None),  # 0.4 s, far from precise
        (noisy(50.0, 22, 0.1), "time"),
        ([1001.0] * 4, None),
        ([1001.0] * 5, "precise"),
        (noisy(2000.0, 5, 0.1), "time"),
        ([999.0] * 5, None),
        ([0.01] * 499, None),
        ([0.01] * 500, "samples"),
        ([30.0] * 2000, "precise"),
    ],
)
def test_reasons(samples, reason):
    assert RULE.reason(samples) == reason


def test_it_always_stops():
    """At the latest at the cap of samples, and not long after that of time."""
    for ms in (1e-4, 0.1, 3.0, 70.0, 900.0, 1500.0):
        samples = []
        draw = np.random.default_rng(1)
        while RULE.reason(samples) is None:
            for _ in range(RULE.next_round(samples)):
                samples.append(ms * draw.lognormal(0, 0.5))
        assert 5 <= len(samples) <= RULE.max_samples
        assert sum(samples) < 1e3 * RULE.max_seconds + 12 * max(50, ms) * 3


def test_rounds_are_short_and_never_empty():
    assert RULE.next_round([]) == 1
    assert RULE.next_round([0.001]) == ROUND_SAMPLES
    assert RULE.next_round([10.0]) == 5
    assert RULE.next_round([5000.0]) == 1
    assert RULE.next_round([0.001] * (RULE.max_samples - 1)) == 1


@pytest.mark.parametrize("skewed", [False, True])
def test_the_error_is_that_of_the_median(skewed):
    """Against the spread of medians actually drawn; for normal and for long-tailed samples alike."""
    draw = np.random.default_rng(2)
    shape = (2000, 41)
    samples = 10 * (draw.lognormal(0, 0.4, shape) if skewed else 1 + 0.05 * draw.standard_normal(shape))
    medians = np.median(samples, axis=1)
    estimates = [relative_error(tuple(row)) for row in samples[:300]]
    assert np.median(estimates) == pytest.approx(medians.std() / medians.mean(), rel=0.2)


def test_one_outlier_does_not_spoil_it():
    samples = noisy(10.0, 40, 0.005)
    assert RULE.reason([*samples, 1e4]) == "precise"


def test_expected_seconds():
    assert RULE.expected_seconds(0.001) == pytest.approx(0.3)
    assert RULE.expected_seconds(0.1) == pytest.approx(1.0)
    assert RULE.expected_seconds(2.0) == pytest.approx(10.0)
    assert RULE.expected_seconds(1e-6) == pytest.approx(RULE.max_samples * 1e-6)


def test_retakes():
    good, capped, slow = Round(5, 1980.0), Round(5, reasons=("sw power cap",)), Round(5, reasons=("hw power brake",))
    assert not RULE.retake(Round(5), [])
    assert not RULE.retake(good, [])
    assert not RULE.retake(capped, [])
    assert RULE.retake(slow, [slow] * (RULE.max_retakes - 1))
    assert not RULE.retake(slow, [slow] * RULE.max_retakes)


def test_the_help_of_sweep_knows_the_number_of_visits():
    """The command line does not import this module for its help."""
    (visits,) = [option for option in sweep.params if option.name == "visits"]
    assert visits.help.endswith(f"[{VISITS}].")
