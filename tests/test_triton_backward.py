"""The Triton kernels' gradients against float64 autograd through the definition: under Triton's interpreter, or on the
GPU where there is one.

Everything that torch.empty hands out is filled with nan first, so that an element nobody wrote shows.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from power_oracle import error, inputs, state_oracle  # noqa: E402

from powerbench.kernels.power.contract import contract_gradient  # noqa: E402
from powerbench.kernels.power.feature_map import feature_map  # noqa: E402
from powerbench.kernels.power.gates import LOG_GATE_MIN, gate_gradient  # noqa: E402
from powerbench.kernels.power.reference import attention_form  # noqa: E402
from powerbench.kernels.power.state import PowerState  # noqa: E402
from powerbench.kernels.power.triton_backend import forward_launches  # noqa: E402
from powerbench.kernels.power.triton_backward import triton_backward  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3 if DEVICE == "cpu" else 1e-2}
SLOW = pytest.mark.skipif(DEVICE == "cpu", reason="a minute each under the interpreter")
NAMES = "q", "k", "v", "log_g", "s", "z"


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch):
    def poisoned(make):
        def made(*args, **options):
            x = make(*args, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def gradients(q, k, v, log_g, dy, dstate=None, state=None, *, p, chunk_size, d_tile=16, normalize=None, scale=None):
    """Gradients of q, k, v, log_g, s, z by the kernels, None where there is none."""
    options = {"p": p, "chunk_size": chunk_size, "d_tile": d_tile}
    options["scale"] = q.shape[-1] ** -0.5 if scale is None else scale
    options["normalize"] = p % 2 == 0 if normalize is None else normalize
    options["return_state"] = dstate is not None
    done = forward_launches(q, k, v, log_g, initial_state=state, save=True, **options)
    *found, d_initial = triton_backward(
        dy, dstate, q, k, v, log_g, done.y, done.den, done.r, done.a, done.state,
        initial=state is not None, **options,
    )  # fmt: skip
    assert [x.dtype for x in found[:3]] == [q.dtype] * 3
    return *found, *((None, None) if d_initial is None else d_initial)


def expected(q, k, v, log_g, dy, dstate=None, state=None, *, p, d_tile=16, normalize=None, scale=None, **_):
    """The same in float64, by autograd through the definition."""
    leaves = [
        None if x is None else x.detach().double().requires_grad_() for x in (q, k, v, log_g, *(state or [None] * 2))
    ]
    y, final = attention_form(
        *leaves[:4], p=p, d_tile=d_tile, scale=scale, normalize=p % 2 == 0 if normalize is None else normalize,
        initial_state=None if state is None else PowerState(*leaves[4:]), return_state=dstate is not None,
    )  # fmt: skip
    loss = (y * dy.double()).sum()
    if dstate is not None:
        loss = loss + sum((x * dx.double()).sum() for x, dx in zip(final, dstate, strict=True))
    wanted = torch.autograd.grad(loss, [x for x in leaves if x is not None], allow_unused=True)
    found = iter(wanted)
    return [None if x is None else next(found) for x in leaves]


def class_means(gradient, d, p, d_tile):
    """What a gradient of a state says of a state whose rows of one multiset are equal: the mean over each multiset."""
    _, row_class = np.unique(np.sort(feature_map(d, p, d_tile).indices, axis=1), axis=0, return_inverse=True)
    row_class = torch.from_numpy(row_class.reshape(-1)).to(gradient.device)
    sums = gradient.new_zeros(*gradient.shape[:2], int(row_class.max()) + 1, *gradient.shape[3:])
    sums = sums.index_add(2, row_class, gradient).index_select(2, row_class)
    counts = row_class.bincount()[row_class]
    return sums / counts.reshape(-1, *[1] * (gradient.dim() - 3))


def check(*args, tolerance=None, **options):
    """The kernels' gradients agree with the definition's."""
    q, dy = args[0], args[4]
    tolerance = TOLERANCE[q.dtype] if tolerance is None else tolerance
    for name, got, want in zip(NAMES, gradients(*args, **options), expected(*args, **options), strict=True):
        if got is None or want is None:
            assert want is None
            assert got is None or not got.any(), name
            continue
        if name in "sz":
            want = class_means(want, q.shape[-1], options["p"], options.get("d_tile", 16))  # noqa: PLW2901
        assert got.shape == want.shape
        off = float((got.double() - want).norm() / max(want.norm(), dy.double().norm() / 4))  # a row alone has dq = 0
        assert off < tolerance, (name, off)


def case(B, T, H, Hk, d, e, *, p, d_tile=16, dtype=torch.float32, gated=True, states=False):
    """Inputs, dy and, with `states`, gradients of the final state and an initial state that 30 tokens left.

    The first row of a normalised output is v_0, whatever q_0 and k_0: their gradients are 0 by cancellation, within
    eps |dy| |v| / s_00. The first key is such that s_00 is not small.
    """
    q, k, v, log_g = inputs(B, T, H, Hk, d, e, dtype, gated=gated, device=DEVICE)
    k[:, 0] = q[:, 0].unflatten(1, (Hk, -1)).sum(2)
    dy = normal(B, T, H, e).to(dtype)
    if not states:
        return q, k, v, log_g, dy
    _, *kvg = inputs(B, 30, H, Hk, d, e, gated=gated, device=DEVICE, seed=2)
    before = PowerState(*(x.float() for x in state_oracle(*kvg, p, d_tile)))
    return q, k, v, log_g, dy, PowerState(*(normal(*x.shape) for x in before)), before


@pytest.mark.parametrize(("T", "chunk_size"), [(1, 1), (1, 64), (3, 1), (47, 16), (65, 64), (85, 37), (40, 4096)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_any_length_and_any_chunk(T, chunk_size, gated):
    check(*case(1, T, 2, 1, 16, 16, p=2, gated=gated), p=2, d_tile=4, chunk_size=chunk_size)


@pytest.mark.parametrize("d_tile", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("p", [1, 2])
def test_every_d_tile_through_both_states(p, d_tile):
    check(*case(1, 40, 1, 1, 16, 16, p=p, d_tile=d_tile, states=True), p=p, d_tile=d_tile, chunk_size=16)


@pytest.mark.parametrize(("T", "chunk_size"), [(1, 1), (20, 64), (16, 16), (33, 16)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("p", [1, 2])
def test_states_and_chunks(T, chunk_size, gated, p):
    check(*case(1, T, 2, 1, 16, 32, p=p, gated=gated, d_tile=8, states=True), p=p, d_tile=8, chunk_size=chunk_size)


@pytest.mark.parametrize("p", [1, 2])
def test_only_one_of_the_states(p):
    *args, dstate, state = case(1, 40, 1, 1, 16, 16, p=p, states=True)
    check(*args, dstate, p=p, chunk_size=16)
    check(*args, None, state, p=p, chunk_size=16)


@pytest.mark.parametrize(("d_tile", "chunk_size", "states"), [(1, 2, False), (4, 16, True)])
def test_degree_3(d_tile, chunk_size, states):
    check(*case(1, 4, 1, 1, 16, 16, p=3, d_tile=d_tile, states=states), p=3, d_tile=d_tile, chunk_size=chunk_size)


@pytest.mark.parametrize("p", [3, 4])
def test_high_degree_in_one_chunk(p):
    check(*case(1, 40, 2, 1, 16, 16, p=p), p=p, d_tile=1, chunk_size=64)


@SLOW
@pytest.mark.parametrize("d_tile", [1, 2, 8])
def test_degree_4(d_tile):
    check(*case(1, 40, 1, 1, 16, 16, p=4, d_tile=d_tile, states=True), p=4, d_tile=d_tile, chunk_size=16)


@triton.jit
def contract_gradient_kernel(
    x_ptr, dy_ptr, r_ptr, out_ptr, n_prefixes, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr
):
    """contract_gradient of 16 rows."""
    o_t, o_d, o_e = tl.arange(0, 16), tl.arange(0, HEAD), tl.arange(0, E)
    b_dy = tl.load(dy_ptr + o_t[:, None] * E + o_e[None, :])
    b_dx = contract_gradient(
        tl.zeros([16, HEAD], tl.float32), x_ptr + o_t * HEAD, o_t < 16, b_dy, r_ptr, n_prefixes, 1,
        P, HEAD, E, W, tl.float32,
    )  # fmt: skip
    tl.store(out_ptr + o_t[:, None] * HEAD + o_d[None, :], b_dx)


@pytest.mark.parametrize(("p", "d_tile"), [(4, 1), (4, 2), (4, 16), (3, 4)])
def test_first_prefixes_of_a_gradient(p, d_tile):
    """All of degree 4 take the interpreter a minute; these have every order of tiles, on a random symmetric R."""
    d, n_prefixes = 16, 40
    prefixes = brick_order(d, p - 1, d_tile)[:n_prefixes]
    counts = [len(set(permutations(i // d_tile for i in prefix))) for prefix in prefixes]
    indices = np.sort(feature_map(d, p, d_tile).indices, axis=1) @ d ** np.arange(p)
    values = normal(d**p, d)  # of each multiset, by its sorted indices
    x, dy = normal(16, d, seed=2), normal(16, d, seed=3)
    got = x.new_empty(16, d)
    contract_gradient_kernel[(1,)](
        x, dy, values[torch.from_numpy(indices).to(DEVICE)], got, n_prefixes, P=p, HEAD=d, E=d, W=d_tile
    )
    want = torch.zeros(16, d, dtype=torch.float64, device=DEVICE)
    for prefix, count in zip(prefixes, counts, strict=True):
        rows = [int(np.sort([*prefix, b]) @ d ** np.arange(p)) for b in range(d)]
        weight = count * x[:, list(prefix)].double().prod(1)
        want += weight[:, None] * (dy.double() @ values[rows].double().T)
    assert error(got, want) < 1e-5


def brick_order(d, p, d_tile):
    """The tuples of p indices whose tiles do not decrease, the first index running fastest."""
    tuples = [(i,) for i in range(d)]
    for _ in range(p - 1):
        tuples = [(j, *rest) for rest in tuples for j in range((rest[0] // d_tile + 1) * d_tile)]
    return tuples


@pytest.mark.parametrize(("d", "e", "d_tile"), [(64, 64, 64), (32, 16, 8), (16, 128, 16), (128, 16, 8)])
def test_head_dimensions(d, e, d_tile):
    check(*case(1, 4, 1, 1, d, e, p=2), p=2, d_tile=d_tile, chunk_size=2)


@pytest.mark.parametrize(("H", "Hk"), [(4, 2), (3, 1)], ids=["gqa", "mqa"])
@pytest.mark.parametrize("p", [1, 2])
def test_grouped_heads(p, H, Hk):
    check(*case(2 if p == 1 else 1, 40, H, Hk, 16, 32, p=p), p=p, d_tile=8, chunk_size=32)


@pytest.mark.parametrize("p", [1, 2])
def test_half_precision(p):
    check(*case(1, 70, 2, 1, 16, 16, p=p, dtype=torch.float16), p=p, d_tile=16, chunk_size=32)


def test_even_degree_without_normalisation():
    args = case(1, 50, 2, 1, 16, 16, p=2, d_tile=4, states=True)
    check(*args, p=2, d_tile=4, chunk_size=16, normalize=False)
    check(*args[:5], p=2, d_tile=4, chunk_size=16, normalize=False)


@pytest.mark.parametrize("chunk_size", [16, 1000])
def test_extreme_gates(chunk_size):
    q, k, v, log_g, dy = case(1, 45, 1, 1, 16, 16, p=2)
    check(q, k, v, torch.zeros_like(log_g), dy, p=2, chunk_size=chunk_size)
    log_g[:, [9, 30, 31]] = -20.0
    check(q, k, v, log_g, dy, p=2, chunk_size=chunk_size)
    log_g[:, [9, 30, 31]] = -1e-3
    log_g[:, 20] = 2 * LOG_GATE_MIN
    log_g[:, 40] = -torch.inf  # a hard reset: what follows is as if the sequence began here
    found = gradients(q, k, v, log_g, dy, p=2, chunk_size=chunk_size)[:4]
    assert all(x.isfinite().all() for x in found)
    assert not found[3][log_g < LOG_GATE_MIN].any()
    fresh = gradients(*(x[:, 40:] for x in (q, k, v, log_g, dy)), p=2, chunk_size=chunk_size)
    for got, want in zip(found[:3], fresh, strict=False):
        assert error(got[:, 40:], want.double()) < 1e-5
    found = gradients(q, k, v, torch.full_like(log_g, LOG_GATE_MIN), dy, p=2, chunk_size=chunk_size)[:4]
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize(("p", "chunk_size"), [(2, 8), (4, 64), pytest.param(4, 8, marks=SLOW)])
def test_large_inputs_in_half_precision_stay_finite(p, chunk_size):
    """Of norm 16, without scale: powers of s up to 256 and states beyond fp16's range."""
    q, k, v, log_g, dy = case(1, 20, 1, 1, 16, 16, p=p, dtype=torch.float16)
    q, k = (16 * torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype) for x in (q, k))
    check(q, k, v, log_g, dy, p=p, chunk_size=chunk_size, d_tile=2, scale=1.0, tolerance=2 * TOLERANCE[q.dtype])


@pytest.mark.parametrize("layout", ["heads-first", "features-first", "expanded"])
def test_any_strides(layout):
    args = case(2, 30, 2, 1, 16, 16, p=2)
    if layout == "expanded":  # the gradient of a sum
        args = *args[:4], torch.ones((), device=DEVICE).expand(args[4].shape)
    want = gradients(*args, p=2, chunk_size=16)
    if layout == "heads-first":
        args = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in args]
    elif layout == "features-first":
        args = [x.movedim(-1, 0).contiguous().movedim(0, -1) for x in args]
    else:
        args = *args[:4], args[4].contiguous()
    for x, y in zip(gradients(*args, p=2, chunk_size=16)[:4], want, strict=False):
        assert torch.equal(x, y)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize(("T", "H", "Hk", "C"), [(1, 1, 1, 1), (700, 6, 3, 64), (5000, 1, 1, 2048), (600, 17, 17, 600)])
def test_gate_gradient(T, H, Hk, C, initial):
    """Sums to each chunk's end and what scan says of everything behind it, adjusted to what it says of the start."""
    N = -(-T // C)
    qdq, kdk, last = normal(2, T, H), normal(2, T, Hk, seed=2), normal(2, Hk, seed=3)
    flux = normal(2, Hk, N, 3, seed=4)
    log_g = -normal(2, Hk, T).abs().mT
    log_g[:, 3::7] = 2 * LOG_GATE_MIN
    q_terms, k_terms = qdq.double().unflatten(2, (Hk, -1)), kdk.double()
    dG = (q_terms.sum(3) - k_terms) / 2
    squares = (q_terms**2).sum(3) + k_terms**2
    into = flux.double().sum(-1)
    if not initial:
        into[..., 0] = 0
    behind = torch.cat([into[..., 1:], last.double()[..., None]], -1)  # [B, Hk, N]
    want = []
    for n, (terms, mass) in enumerate(zip(dG.split(C, dim=1), squares.split(C, dim=1), strict=True)):
        gap = into[..., n] - behind[..., n] - terms.sum(1)
        adjusted = terms + mass * (gap / mass.sum(1))[:, None]
        want.append(adjusted.flip(1).cumsum(1).flip(1) + behind[:, None, :, n])
    want = torch.cat(want, 1)
    got = gate_gradient(qdq, kdk, flux if N > 1 or initial else None, last, log_g, 2, C, initial=initial)
    want = want.masked_fill(log_g < LOG_GATE_MIN, 0.0)
    if T == 1 and not initial:  # one token that nothing came before: zero, exactly
        assert not want.any()
        assert not got.any()
    else:
        assert error(got, want) < 1e-6
