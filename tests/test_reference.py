"""The three forms of the reference agree with each other, and with the formula written as loops."""

from __future__ import annotations

import math

import pytest
import torch
from power_inputs import make_inputs, relative_error

from powerbench.kernels.power.feature_map import d_tiles, feature_map
from powerbench.kernels.power.reference import attention_form, attention_rows, chunked_form, features, recurrent_form
from powerbench.kernels.power.state import PowerState


def loops(q, k, v, log_g, *, p, scale, normalize):
    """Section 1 of docs/mathematics.md, one number at a time, for one batch and heads as they come."""
    _, T, H, d = q.shape
    groups = H // k.shape[2]
    y = torch.zeros(1, T, H, v.shape[-1], dtype=torch.float64)
    for h in range(H):
        for i in range(T):
            total = 0.0
            for j in range(i + 1):
                decay = 1.0 if log_g is None else math.exp(log_g[0, j + 1 : i + 1, h // groups].sum().item())
                score = scale * sum(q[0, i, h, c].item() * k[0, j, h // groups, c].item() for c in range(d))
                y[0, i, h] += decay * score**p * v[0, j, h // groups]
                total += decay * score**p
            if normalize:
                y[0, i, h] /= total
    return y


@pytest.mark.parametrize(("p", "normalize"), [(1, False), (2, True), (2, False), (3, False), (4, True)])
@pytest.mark.parametrize("gates", ["none", "fast"])
def test_attention_form_is_the_formula(p, normalize, gates):
    inputs = make_inputs(6, d=3, e=2, heads=4, kv_heads=2, gates=gates)
    y, state = attention_form(*inputs, p=p, scale=0.7, normalize=normalize)
    assert state is None
    assert relative_error(y, loops(*inputs, p=p, scale=0.7, normalize=normalize)) < 1e-13


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("gates", ["none", "slow", "fast", "zero", "-20"])
@pytest.mark.parametrize("T", [1, 63, 65])
def test_three_forms_agree(p, gates, T):
    d = {1: 8, 2: 8, 3: 6, 4: 4}[p]
    inputs = make_inputs(T, d=d, e=5, heads=4, kv_heads=2, batch=2, gates=gates)
    options = {"p": p, "d_tile": 2, "normalize": p % 2 == 0, "return_state": True}
    y, state = attention_form(*inputs, **options)
    for other_y, other_state in (
        recurrent_form(*inputs, **options),
        chunked_form(*inputs, chunk_size=16, **options),
        chunked_form(*inputs, chunk_size=100, **options),
    ):
        assert relative_error(other_y, y) < 1e-12
        assert relative_error(other_state.s, state.s) < 1e-13
        assert relative_error(other_state.z, state.z) < 1e-13


@pytest.mark.parametrize("d_tile", d_tiles(6))
@pytest.mark.parametrize("p", [2, 3])
def test_the_tile_only_reorders_the_state(p, d_tile):
    inputs = make_inputs(20, d=6, e=4)
    y, _ = recurrent_form(*inputs, p=p, d_tile=d_tile)
    assert relative_error(y, attention_form(*inputs, p=p)[0]) < 1e-13


def test_the_state_is_what_power_state_says():
    """Unweighted products of k, rows as in the feature map, decayed to the end."""
    _, k, v, log_g = inputs = make_inputs(9, d=4, e=3, gates="fast")
    _, state = recurrent_form(*inputs, p=3, d_tile=2, return_state=True)
    indices = feature_map(4, 3, 2).indices
    row = 11
    products = k[0, :, 0, indices[row, 0]] * k[0, :, 0, indices[row, 1]] * k[0, :, 0, indices[row, 2]]
    decay = torch.stack([log_g[0, j + 1 :, 0].sum().exp() for j in range(9)])
    torch.testing.assert_close(state.s[0, 0, row], (decay * products) @ v[0, :, 0], rtol=1e-13, atol=0)
    torch.testing.assert_close(state.z[0, 0, row], (decay * products).sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("form", [attention_form, recurrent_form, chunked_form])
def test_an_initial_state_continues_the_sequence(form):
    q, k, v, log_g = make_inputs(40, d=4, e=3, heads=2, kv_heads=1, gates="slow")
    options = {"p": 2, "d_tile": 2, "normalize": True, "return_state": True}
    if form is chunked_form:
        options["chunk_size"] = 8
    whole, final = form(q, k, v, log_g, **options)
    first, state = form(q[:, :23], k[:, :23], v[:, :23], log_g[:, :23], **options)
    second, end = form(q[:, 23:], k[:, 23:], v[:, 23:], log_g[:, 23:], initial_state=state, **options)
    assert relative_error(torch.cat([first, second], dim=1), whole) < 1e-13
    assert relative_error(end.s, final.s) < 1e-13
    assert relative_error(end.z, final.z) < 1e-13


def test_gates_of_minus_infinity_reset():
    q, k, v, _ = make_inputs(12, d=4, e=3)
    log_g = torch.zeros(1, 12, 1, dtype=torch.float64)
    log_g[:, [0, 7]] = -torch.inf
    y, _ = attention_form(q, k, v, log_g, p=2, normalize=True)
    alone, _ = attention_form(q[:, 7:], k[:, 7:], v[:, 7:], None, p=2, normalize=True)
    assert relative_error(y[:, 7:], alone) < 1e-13
    rows = attention_rows(q, k, v, log_g, torch.arange(12), p=2, normalize=True)
    assert relative_error(rows, y) < 1e-13


@pytest.mark.parametrize(("p", "normalize"), [(1, False), (2, True), (3, False), (4, True)])
@pytest.mark.parametrize("gates", ["none", "slow", "-20"])
def test_rows_and_their_gradients_are_those_of_the_attention_form(p, normalize, gates):
    rows = torch.tensor([49, 0, 7, 8])
    inputs = make_inputs(50, d=4, e=3, heads=4, kv_heads=2, batch=2, gates=gates)
    leaves = [x for x in inputs if x is not None]
    for x in leaves:
        x.requires_grad_()
    expected = attention_form(*inputs, p=p, scale=0.4, normalize=normalize)[0][:, rows]
    actual = attention_rows(*inputs, rows, p=p, scale=0.4, normalize=normalize)
    assert actual.shape == (2, 4, 4, 3)
    assert relative_error(actual, expected) < 1e-13
    weight = torch.randn_like(expected)
    for got, want in zip(
        torch.autograd.grad(actual, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
    ):
        # with gates of -20 a step, gradients of log_g are differences of e^-20 and have no digits to compare
        assert relative_error(got, want) < (1e-12 if gates != "-20" else 1e-5)


def test_rows_of_low_precision_inputs_are_exact():
    """bfloat16 inputs are cast, not multiplied, in bfloat16; and the default scale is 1 / sqrt(d)."""
    q, k, v, log_g = make_inputs(30, d=16, e=8, heads=2, kv_heads=1)
    low = q.bfloat16(), k.bfloat16(), v.bfloat16(), log_g.float()
    rows = torch.arange(30)
    actual = attention_rows(*low, rows, p=2, normalize=True)
    assert actual.dtype == torch.float64
    expected, _ = attention_form(*(x.double() for x in low), p=2, scale=0.25, normalize=True)
    assert relative_error(actual, expected) < 1e-13


def test_fast_gates_over_a_long_context_stay_finite():
    """exp(G_i - G_j) would overflow for keys after the query if it were masked too late."""
    q, k, v, log_g = make_inputs(300, d=4, e=3, gates="-20")
    log_g.requires_grad_()
    y = attention_rows(q, k, v, log_g, torch.tensor([0, 299]), p=2, normalize=True)
    y.sum().backward()
    assert y.isfinite().all()
    assert log_g.grad.isfinite().all()


def test_features_are_products():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert features(x, 2, 1).tolist() == [[1, 2, 3, 4, 6, 9]]
    assert features(x, 2, 3).tolist() == [[1, 2, 3, 2, 4, 6, 3, 6, 9]]


def test_power_state_is_a_plain_pair():
    s, z = state = PowerState(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3))
    assert state.s is s
    assert state.z is z
