"""Rows without weight and values that are not numbers: what they may touch, by every backend.

Triton's kernels run under the interpreter, or on the GPU where there is one.
"""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from power_inputs import make_inputs, relative_error  # noqa: E402

from powerbench import LazyState, PowerState, power_attention, power_attention_step  # noqa: E402
from powerbench.kernels.power.reference import attention_form, attention_rows, recurrent_form  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAN = float("nan")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 1e-2}
BACKENDS = [("torch", torch.float64), ("torch", torch.float32), ("triton", torch.float32)]
ON_HOPPER = [("triton", torch.bfloat16), ("triton", torch.float16)]


def cast(inputs, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [x if x is None else x.to(DEVICE, dtype if i < 3 else wide) for i, x in enumerate(inputs)]


def padded(inputs, n):
    """The inputs with n zeroed tokens on their left; gates stay."""
    return [
        x if i == 3 or x is None else torch.cat([torch.zeros_like(x[:, :n]), x[:, n:]], 1) for i, x in enumerate(inputs)
    ]


def grads(y, leaves, dy, **options):
    return torch.autograd.grad(y, [x for x in leaves if x is not None], dy.to(y.dtype), **options)


def check_left_padding(backend, dtype, *, T, p, chunk_size, gates, d=16, e=16, d_tile=4, n=4, heads=2, tolerance=None):
    """The gradients of real tokens are those of the sequence without its padding."""
    real = make_inputs(T, d=d, e=e, heads=heads, kv_heads=1, gates=gates)
    leaves = [x if x is None else x.requires_grad_() for x in padded(cast(real, dtype), n)]
    y = power_attention(*leaves, p=p, chunk_size=chunk_size, d_tile=d_tile, backend=backend)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    dy[:, :n] = 0
    got = grads(y, leaves, dy)
    alone = [x if x is None else x.detach()[:, n:].double().requires_grad_() for x in leaves]
    want_y = attention_form(*alone, p=p, normalize=True)[0]
    want = grads(want_y, alone, dy[:, n:].double())
    tolerance = tolerance or TOLERANCE[dtype]
    assert not y[:, :n].any()
    assert relative_error(y[:, n:], want_y) < tolerance
    for i, (x, x_want) in enumerate(zip(got, want, strict=True)):
        assert x[:, :n].norm() <= (
            tolerance * x.norm() if i == 3 else 0
        )  # of gates sums over all later tokens: rounding
        # the first real row is its own v: what is left of dq and dlog_g there is rounding
        assert relative_error(x[:, n + (i != 2) :], x_want[:, (i != 2) :]) < 10 * tolerance


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize(("p", "chunk_size"), [(2, 64), (2, 16), (2, 3), (4, 64)])
@pytest.mark.parametrize("gates", ["none", "slow"])
def test_padding_on_the_left_leaves_the_gradients_of_real_tokens(backend, dtype, p, chunk_size, gates):
    check_left_padding(backend, dtype, T=24, p=p, chunk_size=chunk_size, gates=gates)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("backend", "dtype"), ON_HOPPER)
@pytest.mark.parametrize(("p", "d", "d_tile"), [(2, 64, 8), (2, 128, 8), (2, 32, 32), (4, 16, 4), (2, 16, 4)])
@pytest.mark.parametrize("chunk_size", [1024, 256])
@pytest.mark.parametrize("gates", ["none", "slow"])
def test_padding_on_the_left_on_the_gpu(backend, dtype, p, d, d_tile, chunk_size, gates):
    for n in (4, 140):  # within the first tile, and more than one whole tile
        check_left_padding(
            backend, dtype, T=700, p=p, d=d, e=d, d_tile=d_tile, chunk_size=chunk_size, gates=gates, n=n,
        )  # fmt: skip


def rows_without_weight(inputs, rows):
    """Queries of zeros: no weight on any key, wherever they stand."""
    q = inputs[0].clone()
    q[:, rows] = 0
    return [q, *inputs[1:]]


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("chunk_size", [8, 64])
@pytest.mark.parametrize("states", [False, True])
def test_a_row_without_weight_is_zero_and_has_no_gradient(backend, dtype, chunk_size, states):
    """In any place, with a loss on these rows too; through the states that come in and go out as well."""
    rows = [0, 5, 8, 19]
    inputs = rows_without_weight(cast(make_inputs(20, d=16, e=16, heads=2, kv_heads=1), dtype), rows)
    options = {"chunk_size": chunk_size, "d_tile": 1, "backend": backend}
    before = None
    if states:
        past = cast(make_inputs(9, d=16, e=16, seed=3), dtype)
        before = power_attention(*past, return_state=True, **options)[1]

    def run(operator, tensors, **more):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        state = PowerState(*leaves[4:]) if states else None
        y, end = operator(*leaves[:4], initial_state=state, return_state=states, **more)
        outputs = (y, *end) if states else (y,)
        random = torch.Generator().manual_seed(1)
        loss = sum((x * torch.randn(x.shape, generator=random).to(x)).sum() for x in outputs)
        return y.detach(), torch.autograd.grad(loss, leaves)

    def attention(*args, return_state, **more):
        result = power_attention(*args, return_state=return_state, **more)
        return result if return_state else (result, None)

    tensors = [*inputs, *(before or ())]
    y, got = run(attention, tensors, **options)
    want_y, want = run(attention_form, [x.double() for x in tensors], p=2, d_tile=1, normalize=True)
    assert not y[:, rows].any()
    assert relative_error(y, want_y) < TOLERANCE[dtype]
    assert not got[0][:, rows].any()
    for x, x_want in zip(got, want, strict=True):
        assert relative_error(x, x_want) < 10 * TOLERANCE[dtype]


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_powers_that_underflow_are_a_row_without_weight(backend, dtype):
    inputs = cast(make_inputs(20, d=16, e=16), dtype)
    tiny = 1e-50 if dtype == torch.float64 else 1e-7
    with torch.no_grad():
        inputs[0][:, 7] *= tiny
        inputs[1] *= tiny
    leaves = [x.requires_grad_() for x in inputs]
    y = power_attention(*leaves, p=4, chunk_size=64, d_tile=1, backend=backend)
    assert not y[:, 7].any()
    assert all(x.isfinite().all() for x in grads(y, leaves, torch.ones_like(y)))


def test_every_form_of_the_reference_has_rows_without_weight():
    inputs = padded(make_inputs(12, d=6, e=5), 4)
    leaves = [x.requires_grad_() for x in inputs]
    options = {"p": 2, "normalize": True}
    whole, _ = attention_form(*leaves, **options)
    step, _ = recurrent_form(*leaves, **options)
    some = attention_rows(*leaves, torch.arange(12), **options)
    for y in (whole, step, some):
        assert not y[:, :4].any()
        assert relative_error(y, whole) < 1e-12
        assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), leaves, retain_graph=True))


def test_second_derivatives_with_rows_without_weight():
    q, k, v, log_g = padded(make_inputs(6, d=3, e=2), 2)

    def call(*tensors):
        return power_attention(*tensors, chunk_size=4, d_tile=1, backend="torch")[:, 2:]

    leaves = [x.requires_grad_() for x in (q, k, v, log_g)]
    first = torch.autograd.grad(call(*leaves).square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), leaves)
    assert all(x.isfinite().all() for x in second)
    real = [x.detach()[:, 2:].requires_grad_() for x in leaves]
    y = attention_form(*real, p=2, normalize=True)[0]
    first = torch.autograd.grad(y.square().sum(), real, create_graph=True)
    for got, want in zip(second, torch.autograd.grad(sum(x.sum() for x in first), real), strict=True):
        assert (got[:, 2:] - want).norm() < 1e-9 * max(1, want.norm())


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("window", [None, 3])
def test_steps_of_rows_without_weight_are_zero(backend, dtype, window):
    inputs = padded(cast(make_inputs(8, d=16, e=16, heads=2, kv_heads=1, batch=2), dtype), 4)
    want = attention_form(*(x.double() for x in inputs), p=2, normalize=True)[0]
    state, outputs = None, []
    if window:
        state = PowerState(
            *(x.new_zeros(s, dtype=inputs[3].dtype) for x, s in ((want, (2, 1, 136, 16)), (want, (2, 1, 136))))
        )
        state = LazyState.begin(state, 16, dtype, window)
    for t in range(8):
        y, state = power_attention_step(*(x[:, t : t + 1] for x in inputs), state, d_tile=1, backend=backend)
        outputs.append(y)
    y = torch.cat(outputs, 1)
    assert not y[:, :4].any()
    assert relative_error(y, want) < TOLERANCE[dtype]


# --- values that are not numbers ---


def check_nan(backend, dtype, *, name, n, T, chunk_size, d=16, p=2, d_tile=4, gates="slow"):
    """The rows before the tile of 128 tokens that n stands in, counted from its chunk's start, keep their bits."""
    inputs = cast(make_inputs(T, d=d, e=d, heads=2, kv_heads=1, gates=gates), dtype)
    options = {"p": p, "chunk_size": chunk_size, "d_tile": d_tile, "backend": backend}
    want = power_attention(*inputs, **options)
    inputs["qkv".index(name)][:, n:] = NAN
    y = power_attention(*inputs, **options)
    clean = n // chunk_size * chunk_size + n % chunk_size // 128 * 128
    assert clean > 0
    assert torch.equal(y[:, :clean], want[:, :clean])
    assert y[:, n:].isnan().all()


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize(("n", "T", "chunk_size"), [(140, 160, 512), (300, 310, 128), (300, 310, 300), (20, 40, 16)])
@pytest.mark.parametrize("gates", ["none", "slow"])
def test_a_value_that_is_no_number_stays_in_its_tile(backend, dtype, name, n, T, chunk_size, gates):
    check_nan(backend, dtype, name=name, n=n, T=T, chunk_size=chunk_size, gates=gates)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("backend", "dtype"), [*ON_HOPPER, ("torch", torch.bfloat16)])
@pytest.mark.parametrize(("p", "d", "d_tile"), [(1, 64, 64), (2, 64, 8), (2, 128, 8), (3, 32, 8), (2, 16, 4)])
@pytest.mark.parametrize(("n", "chunk_size"), [(300, 1024), (1000, 1024), (700, 512), (700, 500)])
def test_a_value_that_is_no_number_stays_in_its_tile_on_the_gpu(backend, dtype, p, d, d_tile, n, chunk_size):
    for name in "kv":
        check_nan(backend, dtype, name=name, n=n, T=1100, chunk_size=chunk_size, d=d, p=p, d_tile=d_tile)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_an_empty_slot_of_a_window_may_hold_anything(backend):
    inputs = cast(make_inputs(6, d=16, e=16, batch=2), torch.float32)
    _, start = power_attention(*(x[:, :3] for x in inputs), d_tile=1, return_state=True, backend="torch")
    found = []
    for filling in (0.0, NAN):
        state = LazyState.begin(PowerState(*(x.clone() for x in start)), 16, torch.float32, 2)
        for x in (state.k, state.v, state.a):
            x.fill_(filling)
        steps = []
        for t in (3, 4, 5):
            token = [x[:, t : t + 1] for x in inputs]
            steps.append(power_attention_step(*token, state, d_tile=1, in_place=True, backend=backend)[0])
        found.append([torch.cat(steps, 1), *state.state])
    assert all(x.isfinite().all() for x in found[1])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
