"""Crossovers of curves whose answer is known, exactly and with noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench.crossover import Crossing, context_text, crossover, percent_text, ratio_text

CONTEXTS = tuple(1024 << i for i in range(7))


def exact(times):
    """A curve of single samples, so without noise and without intervals."""
    return {ctx: ((ms,),) for ctx, ms in times.items()}


def quadratic(ctx):
    return 2e-7 * ctx**2


def linear(at):
    """A straight line that meets `quadratic` at one context."""
    return exact({ctx: quadratic(at) / at * ctx for ctx in CONTEXTS})


SOFTMAX = exact({ctx: quadratic(ctx) for ctx in CONTEXTS})


@pytest.mark.parametrize("at", [1500.0, 5325.3, 8192.0, 40000.0])
def test_powers_of_the_context_are_met_exactly(at):
    found = crossover(linear(at), SOFTMAX)
    assert found.verdict == "crosses"
    assert found.crossings == (Crossing(pytest.approx(at, rel=1e-6), 1),)
    assert found.faster_from == pytest.approx(at, rel=1e-6)
    assert found.speedup == pytest.approx(65536 / at)
    assert found.contexts == CONTEXTS
    back = crossover(SOFTMAX, linear(at))
    assert back.verdict == "crosses"
    assert back.crossings == (Crossing(pytest.approx(at, rel=1e-6), -1),)
    assert back.faster_from is None


def test_in_words():
    assert crossover(linear(5325.3), SOFTMAX).text == "from 5.2k on"
    assert crossover(linear(5325.3), SOFTMAX).sentence == "from 5.2k tokens on"
    assert crossover(SOFTMAX, linear(5325.3)).text == "only up to 5.2k"
    assert crossover(linear(100.0), SOFTMAX).text == "at every measured context (1k..64k)"
    assert crossover(linear(1e6), SOFTMAX).text == "not within 1k..64k"
    assert (
        crossover(exact({65536: 1.0}), exact({65536: 6.1})).text
        == "6.1x faster at 64k; a crossover needs more contexts"
    )
    assert (
        crossover(exact({65536: 6.1}), exact({65536: 1.0})).text
        == "6.1x slower at 64k; a crossover needs more contexts"
    )
    assert crossover(exact({1024: 1.0}), exact({2048: 1.0})).text == "no context was measured for both"
    assert crossover({}, {}).verdict == "unknown"
    level = "as fast within the noise at every measured context (1k..64k)"
    assert crossover(SOFTMAX, SOFTMAX).text == level


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (4900.0, 5700.5, "5.2k (4900..5.6k)"),
        (5300.4, 5350.4, "5.20k (5.18k..5.22k)"),
        (5320.4, 5330.4, "5.200k (5.196k..5.205k)"),
        (4096.0, 5325.3, "5.2k (4k..5.2k)"),  # the place itself is an end
        (None, None, "5.2k"),
    ],
)
def test_an_interval_has_as_many_digits_as_it_takes(low, high, text):
    assert Crossing(5325.3, 1, low, high).text == text


def test_always_and_never():
    assert crossover(linear(100.0), SOFTMAX).verdict == "always"
    assert crossover(linear(100.0), SOFTMAX).faster_from == 1024
    never = crossover(linear(1e6), SOFTMAX)
    assert (never.verdict, never.crossings, never.faster_from) == ("never", (), None)


def test_several():
    b = exact(dict.fromkeys(CONTEXTS[:5], 1.0))
    a = exact(dict(zip(CONTEXTS, [2.0, 0.5, 2.0, 0.5, 0.5], strict=False)))
    found = crossover(a, b)
    assert found.verdict == "several"
    places = [crossing.at for crossing in found.crossings]
    assert [crossing.leader for crossing in found.crossings] == [1, -1, 1]
    for place, low in zip(places, CONTEXTS, strict=False):
        assert low < place < 2 * low
    assert places[1] == pytest.approx(2048 * math.sqrt(2), rel=1e-5)  # midway between two turning points
    assert found.faster_from == places[-1]
    assert found.text == f"the lead changes at {', '.join(map(context_text, places))}; faster at 16k"
    assert crossover(b, a).text.endswith("slower at 16k")
    assert crossover(b, a).faster_from is None


@pytest.mark.parametrize(
    ("a", "verdict", "text"),
    [
        ([2, 1, 2], "never", "not within 1k..4k, level at 2k"),
        ([0.5, 1, 2], "crosses", "only up to 2k"),
        ([2, 1, 0.5], "crosses", "from 2k on"),
        ([0.5, 1, 0.5], "always", "at 1k, 4k, level at 2k"),
        ([1, 0.5, 0.5], "always", "at 2k, 4k, level at 1k"),
        ([2, 2, 1], "never", "not within 1k..4k, level at 4k"),
        ([1, 1, 1], "level", "as fast within the noise at every measured context (1k..4k)"),
    ],
)
def test_equal_times_do_not_change_the_lead(a, verdict, text):
    contexts = CONTEXTS[:3]
    found = crossover(exact(dict(zip(contexts, a, strict=True))), exact(dict.fromkeys(contexts, 1.0)))
    assert (found.verdict, found.text) == (verdict, text)


def test_only_shared_contexts_count():
    a = exact({1024: 2.0, 2048: 1.0, 4096: 0.1})
    assert crossover(a, exact({1024: 1.0, 2048: 0.5, 8192: 9.0})).contexts == (1024, 2048)
    assert crossover(a, exact({1024: 1.0, 2048: 0.5, 8192: 9.0})).verdict == "never"


@pytest.mark.parametrize(
    "visits", [((0.0,),), ((-1.0,),), ((math.nan,),), ((math.inf,),), ((1.0,), (math.nan,)), ((),), ()]
)
def test_impossible_times_are_refused(visits):
    with pytest.raises(ValueError, match="positive and finite"):
        crossover({1024: visits}, exact({1024: 1.0}))


TIMES = st.floats(1e-6, 1e6)
CURVES = st.dictionaries(st.integers(1, 2**24), st.tuples(TIMES, TIMES), max_size=8)


@given(CURVES)
def test_any_curves_agree_with_their_mirror(both):
    a = exact({ctx: pair[0] for ctx, pair in both.items()})
    b = exact({ctx: pair[1] for ctx, pair in both.items()})
    there, back = crossover(a, b), crossover(b, a)
    assert there.contexts == tuple(sorted(both))
    places = [crossing.at for crossing in there.crossings]
    assert all(min(both) <= place <= max(both) for place in places)
    assert places == sorted(places)
    assert there.text
    mirror = {"always": "never", "never": "always"}
    assert back.verdict == mirror.get(there.verdict, there.verdict)
    assert [(x.at, -x.leader) for x in back.crossings] == [(pytest.approx(x.at), x.leader) for x in there.crossings]


# Speedups of B over A against context, and where they pass 1: A's time is 1, so B's time is the speedup.
FEW = CONTEXTS[1:6]
TURN = math.log(8192.0)


def one(ctx):
    """Launch + linear + quadratic over launch + linear, equal at 5325.3 tokens."""
    at = 5325.3

    def softmax(x):
        return 0.02 + 1e-5 * x + 2e-7 * x**2

    return softmax(ctx) / (0.3 + (softmax(at) - 0.3) / at * ctx)


def several(ctx):
    """A parabola in log-log: 1 at 8192 / e^0.8 and 8192 e^0.8."""
    return math.exp(0.3 * ((math.log(ctx) - TURN) ** 2 - 0.64))


def none(ctx):
    return 1.15 + 1e-5 * ctx


def touching(ctx):
    return math.exp(0.2 * (math.log(ctx) - TURN) ** 2)


def drawn(generator, trials, n, noise, correlation, tail):
    """Relative deviations [trials, contexts, sides, n], autocorrelated as clocks make times; `tail`: skewed."""
    white = generator.standard_normal((trials, len(FEW), 2, n))
    steps = [white[..., 0]]
    for i in range(1, n):
        steps.append(correlation * steps[-1] + math.sqrt(1 - correlation**2) * white[..., i])
    deviation = np.stack(steps, axis=-1)
    return noise * (np.expm1(deviation) if tail else deviation)


@pytest.mark.parametrize(
    ("speedup", "truth", "n", "noise", "correlation", "tail", "widest"),
    [
        (one, (5325.3,), 12, 0.01, 0.0, False, 0.05),
        (one, (5325.3,), 40, 0.04, 0.7, False, 0.15),  # noisy, and each sample tells less than it seems
        (one, (5325.3,), 10, 0.03, 0.0, True, 0.2),  # long tail
        (several, (8192 * math.exp(-0.8), 8192 * math.exp(0.8)), 12, 0.01, 0.0, False, 0.3),
        (none, (), 12, 0.02, 0.0, False, None),
        (touching, (), 12, 0.01, 0.0, False, None),
    ],
)
def test_the_interval_covers_the_truth_in_93_percent_of_1000_trials(
    speedup, truth, n, noise, correlation, tail, widest
):  # and is narrow enough to say something
    trials = 1000
    deviations = drawn(np.random.default_rng(7), trials, n, noise, correlation, tail)
    covered, widths = 0, []
    for trial in deviations:
        a = {ctx: (tuple(1 + trial[i, 0]),) for i, ctx in enumerate(FEW)}
        b = {ctx: (tuple(speedup(ctx) * (1 + trial[i, 1])),) for i, ctx in enumerate(FEW)}
        found = crossover(a, b).crossings
        covered += len(found) == len(truth) and all(c.low <= x <= c.high for c, x in zip(found, truth, strict=True))
        widths += [c.width for c in found]
    assert covered >= 0.93 * trials
    assert widest is None or np.median(widths) < widest


@pytest.mark.parametrize("together", [True, False])
def test_it_covers_the_truth_where_visits_differ(together):
    """By 20 %, and within a visit times hardly do. What both sides share in a visit, as in turns, drops out."""
    generator = np.random.default_rng(3)
    trials, visits = 1000, 5
    drift = 0.2 * generator.standard_normal((trials, len(FEW), 1 if together else 2, visits))
    levels = np.exp(drift + 0.01 * generator.standard_normal((trials, len(FEW), 2, visits)))
    noise = 1 + 1e-3 * generator.standard_normal((trials, len(FEW), 2, visits, 6))
    times = levels[..., None] * noise
    covered, widths = 0, []
    for trial in times:
        a = {ctx: tuple(map(tuple, trial[i, 0])) for i, ctx in enumerate(FEW)}
        b = {ctx: tuple(map(tuple, one(ctx) * trial[i, 1])) for i, ctx in enumerate(FEW)}
        found = crossover(a, b)
        crossing = found.crossings[0] if len(found.crossings) == 1 else None
        covered += crossing is not None and crossing.low <= 5325.3 <= crossing.high
        widths += [crossing.width] if crossing else []
    assert covered >= 0.93 * trials
    assert np.median(widths) < (0.1 if together else 2.0)


def test_sparse_contexts_make_a_wide_interval_and_dense_ones_a_narrow_one():
    """The noise is nothing here: what is not known is how the curve bends between the contexts."""
    noise = 1 + 1e-4 * np.random.default_rng(1).standard_normal(10)

    def found(contexts):
        (crossing,) = crossover(
            {ctx: (tuple(noise),) for ctx in contexts}, {ctx: (tuple(one(ctx) * noise[::-1]),) for ctx in contexts}
        ).crossings
        assert crossing.low <= 5325.3 <= crossing.high
        return crossing

    assert (found((1024, 65536)).low, found((1024, 65536)).high) == (1024, 65536)
    wide, narrow = found((256, 2048, 16384, 65536)), found((2048, 4096, 5120, 6144, 8192))
    assert wide.width > 0.1
    assert narrow.width < 0.01


@pytest.mark.parametrize(
    ("context", "text"),
    [(1, "1"), (1000, "1000"), (1024, "1k"), (5325.3, "5.2k"), (65536, "64k"), (700.4, "700"), (2**20, "1m"),
     (1536, "1536"), (200000.5, "195k"), (3.3e6 + 0.5, "3.1m")],
)  # fmt: skip
def test_contexts_in_the_notation_of_the_command_line(context, text):
    assert context_text(context) == text


def test_ratios_and_percentages():
    texts = [ratio_text(x) for x in (2.9, 0.5, 1.25, 1.001, 130.0, 1 / 1.25)]
    assert texts == ["2.9x faster", "2.0x slower", "1.25x faster", "as fast", "130x faster", "1.25x slower"]
    assert [percent_text(x) for x in (0.41, 0.031, 1.5, 0.0)] == ["41 %", "3.1 %", "150 %", "0.0 %"]
