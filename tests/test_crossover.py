"""Crossovers of curves whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerbench.crossover import context_text, crossover, percent_text, ratio_text

CONTEXTS = tuple(1024 << i for i in range(7))


def quadratic(ctx):
    return 2e-7 * ctx**2


def linear(at):
    """A straight line that meets `quadratic` at one context."""
    return {ctx: quadratic(at) / at * ctx for ctx in CONTEXTS}


SOFTMAX = {ctx: quadratic(ctx) for ctx in CONTEXTS}


@pytest.mark.parametrize("at", [1500.0, 5325.3, 8192.0, 40000.0])
def test_powers_of_the_context_are_met_exactly(at):
    found = crossover(linear(at), SOFTMAX)
    assert found.verdict == "crosses"
    assert found.at == (pytest.approx(at),)
    assert found.faster_from == pytest.approx(at)
    assert found.speedup == pytest.approx(65536 / at)
    assert found.contexts == CONTEXTS
    back = crossover(SOFTMAX, linear(at))
    assert back.verdict == "crosses"
    assert back.at == (pytest.approx(at),)
    assert back.faster_from is None


def test_in_words():
    assert crossover(linear(5325.3), SOFTMAX).text == "from 5.2k on"
    assert crossover(SOFTMAX, linear(5325.3)).text == "only up to 5.2k"
    assert crossover(linear(100.0), SOFTMAX).text == "at every measured context (1k..64k)"
    assert crossover(linear(1e6), SOFTMAX).text == "not within 1k..64k"
    assert crossover({65536: 1.0}, {65536: 6.1}).text == "6.1x faster at 64k; a crossover needs more contexts"
    assert crossover({65536: 6.1}, {65536: 1.0}).text == "6.1x slower at 64k; a crossover needs more contexts"
    assert crossover({1024: 1.0}, {2048: 1.0}).text == "no context was measured for both"
    assert crossover({}, {}).verdict == "unknown"


def test_always_and_never():
    assert crossover(linear(100.0), SOFTMAX).verdict == "always"
    assert crossover(linear(100.0), SOFTMAX).faster_from == 1024
    never = crossover(linear(1e6), SOFTMAX)
    assert (never.verdict, never.at, never.faster_from) == ("never", (), None)


def test_several():
    b = dict.fromkeys(CONTEXTS[:5], 1.0)
    a = dict(zip(CONTEXTS, [2.0, 0.5, 2.0, 0.5, 0.5], strict=False))
    found = crossover(a, b)
    assert found.verdict == "several"
    assert found.at == pytest.approx((1024 * math.sqrt(2), 2048 * math.sqrt(2), 4096 * math.sqrt(2)))
    assert found.faster_from == found.at[-1]
    assert found.text == "the lead changes at 1.4k, 2.8k, 5.7k; faster at 16k"
    assert crossover(b, a).text.endswith("slower at 16k")
    assert crossover(b, a).faster_from is None


@pytest.mark.parametrize(
    ("a", "verdict", "at"),
    [
        ([2, 1, 2], "never", ()),  # touches from above
        ([0.5, 1, 0.5], "always", ()),  # touched from above
        ([1, 1, 1], "never", ()),
        ([1, 0.5, 0.5], "crosses", (1024,)),
        ([2, 1, 0.5], "crosses", (2048,)),
        ([2, 2, 1], "never", ()),
        ([0.5, 1, 2], "crosses", (2048,)),
        ([0.5, 0.5, 1], "always", ()),
    ],
)
def test_equal_times_do_not_change_the_lead(a, verdict, at):
    contexts = CONTEXTS[:3]
    found = crossover(dict(zip(contexts, a, strict=True)), dict.fromkeys(contexts, 1.0))
    assert (found.verdict, found.at) == (verdict, at)


def test_only_shared_contexts_count():
    a = {1024: 2.0, 2048: 1.0, 4096: 0.1}
    assert crossover(a, {1024: 1.0, 2048: 0.5, 8192: 9.0}).contexts == (1024, 2048)
    assert crossover(a, {1024: 1.0, 2048: 0.5, 8192: 9.0}).verdict == "never"


@pytest.mark.parametrize("ms", [0.0, -1.0, math.nan, math.inf])
def test_impossible_times_are_refused(ms):
    with pytest.raises(ValueError, match="positive and finite"):
        crossover({1024: ms}, {1024: 1.0})


TIMES = st.floats(1e-6, 1e6)
CURVES = st.dictionaries(st.integers(1, 2**24), st.tuples(TIMES, TIMES), max_size=8)


@given(CURVES)
def test_any_curves_agree_with_their_mirror(both):
    a = {ctx: pair[0] for ctx, pair in both.items()}
    b = {ctx: pair[1] for ctx, pair in both.items()}
    there, back = crossover(a, b), crossover(b, a)
    assert there.contexts == tuple(sorted(both))
    assert all(low <= x <= high for x in there.at for low, high in [(min(both), max(both))])
    assert list(there.at) == sorted(there.at)
    assert there.text
    if all(x != y for x, y in both.values()):
        mirror = {"always": "never", "never": "always"}
        assert back.verdict == mirror.get(there.verdict, there.verdict)
        assert back.at == pytest.approx(there.at)


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
