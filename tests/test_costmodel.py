"""The cost model on times made by a known one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from powerbench.cost import Cost
from powerbench.costmodel import HORIZON, Point, fit, nonnegative_fit, predict

CONTEXTS = (1024, 2048, 4096, 8192, 16384)


def points(launch, linear, quadratic, batch=lambda ctx: 1, noise=0.0):
    """Softmax with a quadratic ledger, or a linear operator where `quadratic` is 0; times from its own coefficients."""
    rng = np.random.default_rng(0)
    found = []
    for ctx in CONTEXTS:
        flops = 128 * ctx * (ctx + 128) if quadratic else 10**6 * ctx
        ms = launch + batch(ctx) * (linear * 1024 * ctx + quadratic * 128 * ctx**2)
        ms *= 1 + noise * rng.standard_normal()
        found.append(Point(ctx, batch(ctx), Cost(flops, batch(ctx) * flops, batch(ctx) * 1024 * ctx), ms))
    return found


def test_the_terms_come_back():
    model = fit(points(0.5, 1e-7, 2e-9))
    assert model.launch_ms == pytest.approx(0.5, rel=1e-3)
    assert model.linear_ms_per_byte == pytest.approx(1e-7, rel=1e-2)
    assert model.quadratic_ms_per_flop == pytest.approx(2e-9, rel=1e-3)
    assert model.error < 1e-3
    assert model.time_ms(10**6, 1) == pytest.approx(0.5 + 1e-7 * 1024e6 + 2e-9 * 128e12, rel=1e-3)


def test_noise_does_not_make_a_linear_operator_quadratic():
    model = fit(points(0.5, 1e-6, 0.0, noise=0.05))
    assert model.quadratic_ms_per_flop == 0
    assert model.launch_ms >= 0
    assert 0.005 < model.error < 0.15
    assert set(model.residuals) == set(CONTEXTS)


def test_at_constant_tokens_launch_and_linear_are_one():
    model = fit(points(0.5, 1e-7, 2e-9, batch=lambda ctx: 16384 // ctx))
    assert model.launch_ms == 0
    assert model.time_ms(16384, 1) == pytest.approx(0.5 + 1e-7 * 1024 * 16384 + 2e-9 * 128 * 16384**2, rel=1e-3)


def test_bytes_that_do_not_grow_are_one_term():
    """A state that is read for every token: its time is a rate of bytes, and stays so at every context and batch."""
    made = [Point(ctx, 4, Cost(1, 1, 4 * 10**6), 0.01) for ctx in CONTEXTS]
    model = fit(made)
    assert model.launch_ms == 0
    assert model.time_ms(16 * CONTEXTS[-1], 4) == pytest.approx(0.01)
    assert model.time_ms(CONTEXTS[-1], 8) == pytest.approx(0.02)


def test_too_few_points_or_no_ledger_is_no_model():
    found = points(0.5, 1e-7, 2e-9)
    assert fit([]) is None
    assert fit(found[:2]) is None
    assert fit(found[:3]) is None  # three terms
    assert fit(found[:4]) is not None
    assert fit([point._replace(cost=Cost(0, 0, 0)) for point in found]) is None


def test_nonnegative_fit_is_the_best_of_all_that_are():
    """Against a search over a fine grid of directions: nothing without a negative is nearer."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        columns = rng.uniform(-1, 1, (6, 2))
        found = nonnegative_fit(columns)
        assert (found >= 0).all()
        least = np.sum((columns @ found - 1) ** 2)
        for x in itertools.product(np.linspace(0, 3, 61), repeat=2):
            assert least <= np.sum((columns @ np.array(x) - 1) ** 2) + 1e-12


def test_a_prediction_beyond_the_range():
    """Softmax leads at 16k; a linear operator of 1e-3 ms a token, launch 0.1, passes it where the times are equal."""
    softmax, power = fit(points(0.0, 1e-9, 1e-10)), fit(points(0.1, 1e-6, 0.0))
    found = predict(softmax, power, 16384, None, 1)
    truth = (1.024e-3 - 1.024e-6) / 1.28e-8  # the launch of 0.1 ms is nothing there
    assert found.at == pytest.approx(truth, rel=0.02)
    assert found.low <= found.at <= (found.high or np.inf)
    assert found.error < 1e-3
    assert predict(power, softmax, 16384, None, 1) is None, "contradicts who leads"
    assert predict(softmax, power, 1024, None, 1) is None, f"beyond {HORIZON} times the range"


def test_models_that_are_far_off_predict_nothing():
    softmax, power = fit(points(0.0, 1e-9, 1e-10)), fit(points(0.1, 1e-6, 0.0, noise=0.6))
    assert power.error > 0.25
    assert predict(softmax, power, 16384, None, 1) is None
