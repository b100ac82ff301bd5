"""`power_attention` with the PyTorch backend: values, gradients, streaming, precision, memory and refusals."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from power_inputs import make_inputs, relative_error
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import powerbench
from powerbench.kernels.power import op, tables, torch_backend
from powerbench.kernels.power.choose import choose, choose_d_tile
from powerbench.kernels.power.feature_map import d_tiles, tspow_dim
from powerbench.kernels.power.op import PowerState, power_attention
from powerbench.kernels.power.reference import attention_form, recurrent_form

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HEAD_DIM = {1: 16, 2: 12, 3: 8, 4: 4}  # small where the state is large
GATES = ["none", "slow", "fast", "zero", "-20"]


def refused(message):
    """Expects a ValueError with exactly this message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def reference(inputs, *, p, **options):
    """The attention form in float64, with power_attention's defaults."""
    options.setdefault("normalize", p % 2 == 0)
    double = [x if x is None else x.double() for x in inputs]
    return attention_form(*double, p=p, **options)[0]


def leaves_of(inputs):
    """The tensors of the inputs, now asking for gradients."""
    return [x.requires_grad_() for x in inputs if x is not None]


# --- values ---


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("T", "chunk_size"), [(1, 1), (1, 64), (63, 64), (65, 64), (65, 1), (200, 7), (1000, 300)])
def test_any_length_and_chunk_is_the_attention_form(p, gates, T, chunk_size):
    inputs = make_inputs(T, d=HEAD_DIM[p], e=5, heads=4, kv_heads=2, gates=gates)
    y = power_attention(*inputs, p=p, chunk_size=chunk_size, backend="torch")
    assert relative_error(y, reference(inputs, p=p)) < 1e-12


@pytest.mark.parametrize(("p", "normalize"), [(1, False), (2, False), (2, True), (3, False), (4, False), (4, True)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 6), (6, 2), (6, 1)])
def test_any_tile_and_grouping_is_the_recurrent_form(p, heads, kv_heads, normalize):
    inputs = make_inputs(70, d=HEAD_DIM[p], e=3, heads=heads, kv_heads=kv_heads, batch=2)
    for d_tile in d_tiles(HEAD_DIM[p]):
        options = {"p": p, "d_tile": d_tile, "normalize": normalize, "scale": 0.3, "return_state": True}
        y, state = power_attention(*inputs, chunk_size=32, backend="torch", **options)
        expected, final = recurrent_form(*inputs, **options)
        assert relative_error(y, expected) < 1e-12
        assert relative_error(state.s, final.s) < 1e-12
        assert relative_error(state.z, final.z) < 1e-12


def test_blocks_of_attention_inside_a_chunk():
    """More than one block of queries in a chunk, the last one cut short."""
    T = 2 * torch_backend.ATTENTION_BLOCK + 40
    for gates in ("none", "slow", "-20"):
        inputs = make_inputs(T, d=4, e=3, heads=2, gates=gates, kv_heads=1)
        y = power_attention(*inputs, chunk_size=T - 10, backend="torch")
        assert relative_error(y, reference(inputs, p=2)) < 1e-12


def test_defaults():
    """scale is 1 / sqrt(d), even p is normalised, odd p is not, p is 2; the package exports the operator."""
    inputs = make_inputs(50, d=16, e=4)
    assert powerbench.power_attention is power_attention
    assert powerbench.PowerState is PowerState
    assert relative_error(power_attention(*inputs), reference(inputs, p=2, scale=0.25, normalize=True)) < 1e-13
    assert relative_error(power_attention(*inputs, p=3), reference(inputs, p=3, scale=0.25, normalize=False)) < 1e-13


def test_output_has_the_dtype_and_shape_of_the_contract():
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        q, k, v, log_g = make_inputs(10, d=8, e=6, heads=4, kv_heads=2, batch=3)
        y, state = power_attention(q.to(dtype), k.to(dtype), v.to(dtype), log_g.float(), d_tile=4, return_state=True)
        assert (y.dtype, y.shape) == (dtype, (3, 10, 4, 6))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert (state.s.dtype, state.s.shape) == (wide, (3, 2, 48, 6))
        assert (state.z.dtype, state.z.shape) == (wide, (3, 2, 48))


def test_inputs_may_have_any_strides_and_are_left_alone():
    inputs = make_inputs(40, d=8, e=4, heads=2, kv_heads=2)
    strided = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs)
    before = [x.clone() for x in strided]
    assert torch.equal(power_attention(*strided, chunk_size=16), power_attention(*inputs, chunk_size=16))
    assert all(torch.equal(x, y) for x, y in zip(strided, before, strict=True))


def test_the_initial_state_is_left_alone():
    inputs = make_inputs(40, d=8, e=4)
    _, state = power_attention(*inputs, return_state=True)
    before = PowerState(state.s.clone(), state.z.clone())
    power_attention(*inputs, initial_state=state, return_state=True, chunk_size=16)
    assert torch.equal(state.s, before.s)
    assert torch.equal(state.z, before.z)


# --- streaming ---


@settings(max_examples=60, deadline=None)
@given(
    p=st.integers(1, 4),
    T=st.integers(2, 90),
    where=st.floats(0, 1),
    chunks=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kv_heads=st.integers(1, 2),
    groups=st.integers(1, 3),
    d=st.integers(1, 6),
    e=st.integers(1, 5),
    gates=st.sampled_from(GATES),
    data=st.data(),
)
def test_a_sequence_split_anywhere_is_the_whole(p, T, where, chunks, kv_heads, groups, d, e, gates, data):
    cut = min(1 + int(where * (T - 1)), T - 1)
    inputs = make_inputs(T, d=d, e=e, heads=kv_heads * groups, kv_heads=kv_heads, gates=gates)
    first, second = zip(*[(None, None) if x is None else (x[:, :cut], x[:, cut:]) for x in inputs], strict=True)
    d_tile = data.draw(st.sampled_from(d_tiles(d)))
    options = {"p": p, "d_tile": d_tile, "return_state": True, "backend": "torch"}
    y1, state = power_attention(*first, chunk_size=chunks[0], **options)
    y2, final = power_attention(*second, chunk_size=chunks[1], initial_state=state, **options)
    expected, whole = recurrent_form(*inputs, p=p, d_tile=d_tile, normalize=p % 2 == 0, return_state=True)
    assert relative_error(torch.cat([y1, y2], dim=1), expected) < 1e-11
    assert relative_error(final.s, whole.s) < 1e-12
    assert relative_error(final.z, whole.z) < 1e-12


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_decoding_one_token_at_a_time(p):
    """State in float32, as low precision inputs have it, and sizes left to the operator: calls agree on them."""
    q, k, v, log_g = (x.float() for x in make_inputs(80, d=HEAD_DIM[p], e=4, heads=2, kv_heads=1))
    y, state = power_attention(q[:, :60], k[:, :60], v[:, :60], log_g[:, :60], p=p, return_state=True)
    outputs = [y]
    for t in range(60, 80):
        at = slice(t, t + 1)
        y, state = power_attention(
            q[:, at], k[:, at], v[:, at], log_g[:, at], p=p, initial_state=state, return_state=True
        )
        outputs.append(y)
    assert relative_error(torch.cat(outputs, dim=1), reference((q, k, v, log_g), p=p)) < 1e-6


def test_a_state_serves_both_normalised_and_plain_outputs():
    """z is kept when the output is not normalised, and scale is not part of the state."""
    inputs = make_inputs(30, d=4, e=3)
    _, state = power_attention(*inputs, normalize=False, scale=3.0, return_state=True)
    for normalize in (True, False):
        y = power_attention(*inputs, normalize=normalize, initial_state=state)
        twice = [torch.cat([x, x], dim=1) for x in inputs]
        assert relative_error(y, reference(twice, p=2, normalize=normalize)[:, 30:]) < 1e-12


# --- gradients ---


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("gates", ["none", "slow"])
def test_gradcheck(p, gates):
    """Against finite differences, through y and through the state, with and without normalisation."""
    d, d_tile = (4, 2) if p < 3 else (2, 1)
    q, k, v, log_g = make_inputs(5, d=d, e=2, heads=2, kv_heads=1, gates=gates)
    before = make_inputs(9, d=d, e=2)[1:3]
    dim = tspow_dim(d, p, d_tile)
    _, initial = recurrent_form(before[0], *before, None, p=p, d_tile=d_tile, return_state=True)
    assert initial.z.shape == (1, 1, dim)

    def call(q, k, v, log_g, s, z):
        y, state = power_attention(
            q, k, v, log_g, p=p, chunk_size=3, d_tile=d_tile, initial_state=PowerState(s, z), return_state=True
        )
        return y, *state

    leaves_of((q, k, v, log_g, *initial))
    assert torch.autograd.gradcheck(call, (q, k, v, log_g, *initial), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("chunk_size", [16, 100])
def test_gradients_are_those_of_the_attention_form(p, gates, chunk_size):
    inputs = make_inputs(70, d=HEAD_DIM[p], e=3, heads=4, kv_heads=2, batch=2, gates=gates)
    leaves = leaves_of(inputs)
    y = power_attention(*inputs, p=p, chunk_size=chunk_size)
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(reference(inputs, p=p), leaves, weight)
    for got, want in zip(torch.autograd.grad(y, leaves, weight), expected, strict=True):
        # With gates of -20 a step y is v up to e^-20, and what is left of the other gradients is mostly rounding.
        size = max(want.norm(), weight.norm()) if gates == "-20" else want.norm()
        assert (got - want).norm() < 1e-11 * size


def test_gradients_through_blocks_of_attention():
    inputs = make_inputs(torch_backend.ATTENTION_BLOCK + 30, d=4, e=3, heads=2, kv_heads=1)
    leaves = leaves_of(inputs)
    y = power_attention(*inputs, chunk_size=torch_backend.ATTENTION_BLOCK + 20)
    weight = torch.randn_like(y)
    expected = torch.autograd.grad(reference(inputs, p=2), leaves, weight)
    for got, want in zip(torch.autograd.grad(y, leaves, weight), expected, strict=True):
        assert relative_error(got, want) < 1e-11


@pytest.mark.parametrize("wanted", range(6))
def test_any_single_input_may_ask_for_gradients(wanted):
    inputs = make_inputs(40, d=4, e=3)
    state = PowerState(torch.randn(1, 1, 10, 3).double(), torch.rand(1, 1, 10).double())
    arguments = [*inputs, *state]
    arguments[wanted].requires_grad_()
    y = power_attention(*arguments[:4], d_tile=1, chunk_size=16, initial_state=PowerState(*arguments[4:]))
    y.sum().backward()
    assert arguments[wanted].grad.isfinite().all()
    assert arguments[wanted].grad.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_without_gradients_do_not_spoil_later_ones(mode):
    """What the backend keeps between calls must serve autograd also when it was first made without it."""
    tables._kept.cache_clear()
    inputs = make_inputs(40, d=4, e=3)
    with mode():
        assert not power_attention(*inputs, chunk_size=16).requires_grad
    leaves = leaves_of(inputs)
    power_attention(*inputs, chunk_size=16).sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)


def test_compiles():
    """One graph without breaks, and the same values and gradients, also at another length; traced only."""
    compiled = torch.compile(power_attention, backend="aot_eager", fullgraph=True)
    for T in (40, 50):
        inputs = make_inputs(T, d=4, e=3, heads=2, kv_heads=1)
        leaves = leaves_of(inputs)
        eager = power_attention(*inputs, chunk_size=16)  # first: puts what is kept between calls on the device
        traced = compiled(*inputs, chunk_size=16)
        assert relative_error(traced, eager) < 1e-13
        for got, want in zip(
            torch.autograd.grad(traced.sum(), leaves), torch.autograd.grad(eager.sum(), leaves), strict=True
        ):
            assert relative_error(got, want) < 1e-12


# --- autocast ---


def test_autocast():
    """q, k, v run in autocast's dtype, log_g and the state in float32; gradients have the dtypes of the inputs."""
    q, k, v, log_g = (x.float() for x in make_inputs(40, d=8, e=6, heads=2, kv_heads=1))
    k = k.half()
    leaves = leaves_of((q, k, v, log_g))
    _, state = power_attention(q.detach(), k.detach().float(), v.detach(), None, return_state=True)
    options = {"chunk_size": 16, "initial_state": state, "return_state": True, "backend": "torch"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, end = power_attention(q, k, v, log_g, **options)
    assert (y.dtype, end.s.dtype, end.z.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    low = leaves_of([*(x.detach().bfloat16() for x in (q, k, v)), log_g])
    by_hand, state_by_hand = power_attention(*low, **options)
    assert torch.equal(y, by_hand)
    assert torch.equal(end.s, state_by_hand.s)
    found = torch.autograd.grad(y.float().square().sum(), leaves)
    wanted = torch.autograd.grad(by_hand.float().square().sum(), low)
    for x, got, want in zip(leaves, found, wanted, strict=True):
        assert got.dtype == x.dtype
        assert torch.equal(got, want.to(got.dtype))


def test_autocast_widens_gates_and_leaves_float64_alone():
    inputs = make_inputs(40, d=8, e=6)
    low = [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, double = power_attention(*low), power_attention(*inputs)
    assert torch.equal(y, power_attention(*low[:3], low[3].float()))
    assert torch.equal(double, power_attention(*inputs))
    with (
        torch.autocast("cpu", enabled=False),
        refused("log_g is torch.bfloat16; with torch.bfloat16 q it must be torch.float32"),
    ):
        power_attention(*low)


# --- precision ---

# Relative errors against float64 on standard normal inputs, largest over p: measured 3.1e-7, 2.1e-4, 3.7e-3 for y and
# 5.2e-7, 2.1e-4, 6.9e-3 for gradients. The bounds are about 1.3 times that.
BOUNDS = {torch.float32: 4e-7, torch.float16: 2.8e-4, torch.bfloat16: 4.8e-3}
GRADIENT_BOUNDS = {torch.float32: 7e-7, torch.float16: 2.8e-4, torch.bfloat16: 9e-3}


def normal_inputs(T, d, dtype, norm=None):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, T, 2, d, generator=random) for _ in range(3))
    if norm is not None:
        q, k = (norm * x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    log_g = torch.nn.functional.logsigmoid(torch.randn(1, T, 2, generator=random) + 6.9)
    return q.to(dtype), k.to(dtype), v.to(dtype), log_g


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("p", "d"), [(1, 64), (2, 64), (3, 16), (4, 16)])
@pytest.mark.parametrize("gated", [True, False])
def test_error_of_each_dtype(dtype, p, d, gated):
    inputs = normal_inputs(1500, d, dtype)
    inputs = inputs if gated else (*inputs[:3], None)
    y = power_attention(*inputs, p=p, chunk_size=256)
    assert relative_error(y, reference(inputs, p=p)) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", GRADIENT_BOUNDS)
@pytest.mark.parametrize(("p", "d"), [(1, 32), (2, 32), (3, 16), (4, 16)])
def test_gradient_error_of_each_dtype(dtype, p, d):
    inputs = normal_inputs(600, d, dtype)
    exact = [x.double() for x in inputs]  # leaves of their own, so that the gradients are not rounded to dtype
    weight = torch.randn(1, 600, 2, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    leaves, exact_leaves = leaves_of(inputs), leaves_of(exact)
    got = torch.autograd.grad(power_attention(*inputs, p=p, chunk_size=128), leaves, weight)
    want = torch.autograd.grad(reference(exact, p=p), exact_leaves, weight.double())
    for g, w in zip(got, want, strict=True):
        assert relative_error(g, w) < GRADIENT_BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
def test_large_norms_stay_finite(dtype):
    """p = 4 with q and k of norm 16: powers up to 16^8 / d^2 = 6.7e7 in the weights, and sums of them in the state."""
    inputs = normal_inputs(600, 16, dtype, norm=16.0)
    leaves = leaves_of(inputs)
    y = power_attention(*inputs, p=4, chunk_size=128)
    y.float().square().sum().backward()
    assert relative_error(y, reference(inputs, p=4)) < BOUNDS[dtype]
    assert all(x.grad.isfinite().all() for x in leaves)


def test_hard_resets_forget_everything():
    """A gate of -inf: nothing from before it is left, nothing turns into nan, inside a chunk and between chunks."""
    q, k, v, _ = make_inputs(60, d=4, e=3)
    log_g = torch.zeros(1, 60, 1)
    log_g[:, [0, 25, 40]] = -torch.inf
    log_g.requires_grad_()
    y = power_attention(q, k, v, log_g, chunk_size=20)
    alone = [x[:, 25:40] for x in (q, k, v)]
    assert relative_error(y[:, 25:40], reference((*alone, None), p=2)) < 1e-13
    y.sum().backward()
    assert log_g.grad.isfinite().all()


# --- memory ---


class Allocations(TorchDispatchMode):
    """Watches every operator, backward too: elements of the largest storage, and of all new ones together."""

    largest = 0
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in old:
                numel = x.untyped_storage().nbytes() // x.element_size()
                self.largest, self.total = max(self.largest, numel), self.total + numel
        return result


def watched(T, chunk_size, *, gradients, d=32, e=16, d_tile=8):
    inputs = make_inputs(T, d=d, e=e)
    if gradients:
        leaves_of(inputs)
    with Allocations() as allocations:
        y = power_attention(*inputs, chunk_size=chunk_size, d_tile=d_tile)
        if gradients:
            y.sum().backward()
    return allocations


@pytest.mark.parametrize("gradients", [False, True])
def test_phi_exists_for_one_chunk_only(gradients):
    T, chunk = 2048, 64
    phi = tspow_dim(32, 2, 8)
    largest = watched(T, chunk, gradients=gradients).largest
    assert largest >= phi * chunk  # it is seen at all
    assert largest <= max(phi * chunk, T * 32)  # of one chunk; nothing else is larger than an input


@pytest.mark.parametrize("gradients", [False, True])
def test_work_is_linear_in_the_context(gradients):
    """Gradients of slices, for one, would be as long as the context for every chunk."""
    short, long = (watched(T, 16, gradients=gradients).total for T in (1024, 2048))
    assert long < 2.05 * short


class StateProducts(TorchDispatchMode):
    """Counts matrix products that have a dimension of D rows."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.count = dim, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.bmm.default and any(self.dim in x.shape for x in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gates", ["none", "slow"])
def test_the_backward_pass_repeats_no_product_with_the_state(gates):
    """phi is expanded again, but the products it goes into are not: the checkpoint stops before them."""
    inputs = make_inputs(64, d=8, e=4, gates=gates)
    leaves_of(inputs)
    with StateProducts(tspow_dim(8, 2, 2)) as forward:
        y = power_attention(*inputs, chunk_size=16, d_tile=2)
    with StateProducts(tspow_dim(8, 2, 2)) as backward:
        y.sum().backward()
    assert forward.count == 6  # four chunks: three updates, three queries
    assert backward.count == 12


def test_what_is_kept_for_the_backward_pass_is_inputs_outputs_and_states():
    """Grows with T by O(d + e) a token and one state a chunk; scores, or phi, would show at once."""
    d, e, d_tile, chunk = 32, 16, 8, 64
    state = tspow_dim(d, 2, d_tile) * (e + 1)

    def kept(T):
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
            return x

        inputs = make_inputs(T, d=d, e=e)
        leaves_of(inputs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            y = power_attention(*inputs, chunk_size=chunk, d_tile=d_tile)
        assert y.requires_grad
        return sum(storages.values())

    a_token = (kept(2048) - kept(1024)) / 1024
    assert a_token - state / chunk < 4 * (2 * d + 2 * e)


# --- choosing ---


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("d", [1, 7, 16, 24, 32, 64, 80, 128, 256])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_chosen_sizes_are_valid(device, d, p):
    for seqlen in (1, 100, 10**6):
        chunk_size, d_tile = choose(p, d, 64, seqlen, device, gradients=False)
        assert chunk_size >= 1
        assert d % d_tile == 0
        # states of any two calls fit
        assert choose(p, d, 64, 5 * seqlen, device, gradients=True, streaming=True)[1] == d_tile
        assert choose_d_tile(p, d, device) == d_tile
        for gradients in (False, True):
            assert choose(p, d, 64, seqlen, device, 77, 1, gradients=gradients) == (77, 1)


@pytest.mark.parametrize(
    ("T", "options", "expansions"),
    [
        (512, {}, 0),  # the attention form alone
        (513, {}, 2),  # two chunks: one update, one query; no update after the last chunk
        (1025, {}, 4),
        (512, {"return_state": True}, 1),
        (700, {"chunk_size": 700}, 0),
        (700, {"chunk_size": 350, "return_state": True}, 3),
    ],
)
def test_no_more_phi_than_needed(monkeypatch, T, options, expansions):
    expanded = []
    expand = torch_backend.expand

    def counted(x, p, d_tile):
        expanded.append(x.shape)
        return expand(x, p, d_tile)

    monkeypatch.setattr(torch_backend, "expand", counted)
    power_attention(*make_inputs(T, d=8, e=8), **options)
    assert len(expanded) == expansions


@pytest.mark.parametrize("gradients", [False, True])
def test_a_context_that_is_short_against_the_state_is_one_chunk(gradients):
    """Up to half of the length at which attention and state take equal work; but not when a state goes in or out."""
    dim, on_cpu = tspow_dim(64, 2, 8), partial(choose, 2, 64, 64, device_type="cpu", gradients=gradients)
    assert on_cpu(seqlen=dim) == (dim, 8)
    assert on_cpu(seqlen=dim + 1) == (512, 8)
    assert on_cpu(seqlen=dim, streaming=True) == (512, 8)


@pytest.mark.parametrize(
    ("p", "d", "gradients", "longest", "chunk"),
    [
        (1, 64, False, 64, 128),  # 0.5 of 128
        (1, 64, True, 64, 128),
        (2, 64, False, 7372, 1024),  # 1.6 of 4608
        (2, 64, True, 5529, 1024),  # 1.2
        (2, 128, False, 23500, 2048),  # 1.35 of 17408
        (2, 128, True, 15667, 2048),  # 0.9
        (3, 32, False, 32768, 4096),  # 1.6 of 20480
        (3, 32, True, 24576, 4096),  # 1.2
    ],
)
def test_the_longest_single_chunk_on_a_gpu_depends_on_gradients(p, d, gradients, longest, chunk):
    on_gpu = partial(choose, p, d, d, device_type="cuda", gradients=gradients)
    d_tile = choose_d_tile(p, d, "cuda")
    assert on_gpu(seqlen=longest - 1) == (longest - 1, d_tile)
    assert on_gpu(seqlen=longest) == (longest, d_tile)
    assert on_gpu(seqlen=longest + 1) == (chunk, d_tile)
    assert on_gpu(seqlen=longest, streaming=True) == (chunk, d_tile)


def test_one_wide_head_dimension_makes_a_problem_wide():
    wide = partial(choose, 2, seqlen=10**6, device_type="cuda", gradients=False)
    assert [wide(head_dim=d, value_dim=e)[0] for d, e in [(64, 64), (64, 65), (65, 64)]] == [1024, 2048, 2048]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("d", [16, 32])
def test_two_chunks_of_a_small_head_are_one_on_a_gpu(d, gradients):
    """Measured: there attention over 2048 tokens takes less time than the launches of the state."""
    assert choose(2, d, d, 2048, "cuda", gradients=gradients) == (2048, 8)
    assert choose(2, d, d, 2049, "cuda", gradients=gradients) == (1024, 8)


@pytest.fixture
def chosen(monkeypatch):
    """What `choose` was asked, call by call."""
    asked = []

    def recorded(*args, **options):
        asked.append(options)
        return choose(*args, **options)

    monkeypatch.setattr(op, "choose", recorded)
    return asked


@pytest.mark.parametrize("wanted", range(6), ids=["q", "k", "v", "log_g", "s", "z"])
def test_the_operator_chooses_for_training_where_any_input_requires_grad(chosen, wanted):
    inputs = make_inputs(20, d=4, e=4)
    _, state = power_attention(*inputs, return_state=True)
    tensors = [*inputs, *state]

    def call():
        power_attention(*tensors[:4], initial_state=PowerState(*tensors[4:]))
        return chosen[-1]["gradients"]

    assert not call()
    tensors[wanted].requires_grad_()
    assert call()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not call()
    assert [asked["streaming"] for asked in chosen] == [True] * 5


def test_the_operator_chooses_without_gates_and_under_autocast(chosen):
    q, k, v, _ = (x.float() for x in make_inputs(20, d=4, e=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        power_attention(q, k, v)
        power_attention(q.requires_grad_(), k, v)
    assert [asked["gradients"] for asked in chosen] == [False, True]


def test_compiled_calls_choose_anew_where_gradients_begin_to_be_wanted(chosen):
    torch._dynamo.reset()
    compiled = torch.compile(power_attention, backend="eager", fullgraph=True)
    inputs = make_inputs(20, d=4, e=4)
    compiled(*inputs)
    leaves_of(inputs)
    compiled(*inputs).sum().backward()
    with torch.no_grad():
        compiled(*inputs)
    assert [asked["gradients"] for asked in chosen] == [False, True, False]


# --- backends ---


@pytest.fixture
def triton_calls(monkeypatch):
    """Stands in for the Triton backend: records that it was called, needs neither triton nor a GPU."""
    calls = []

    def attention(*tensors, **options):
        calls.append(options)
        return torch_backend.torch_forward(*tensors, **options)

    monkeypatch.setattr(op, "_triton_attention", lambda: attention)
    monkeypatch.setattr(op, "_has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return calls


def test_triton_runs_when_asked_for(triton_calls):
    inputs = make_inputs(20, d=16, e=16)
    power_attention(*inputs, backend="triton")
    assert len(triton_calls) == 1
    assert triton_calls[0]["normalize"] is True
    assert triton_calls[0]["scale"] == 0.25
    power_attention(*inputs, backend="torch")
    power_attention(*inputs)  # on a CPU
    assert len(triton_calls) == 1


def test_triton_takes_gradients(triton_calls):
    inputs = make_inputs(20, d=16, e=16)
    leaves = leaves_of(inputs)
    power_attention(*inputs, backend="triton").sum().backward()
    assert len(triton_calls) == 1
    assert all(x.grad.any() for x in leaves)


def test_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(op, "_has_triton", lambda: False)
    with refused('backend is "triton", and triton is not installed (pip install powerbench[gpu])'):
        power_attention(*make_inputs(20, d=16, e=16), backend="triton")


def test_triton_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(op, "_has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with refused(
        'backend is "triton" with tensors on cpu; it needs CUDA tensors, or TRITON_INTERPRET=1 set before triton is '
        "imported, to interpret its kernels"
    ):
        power_attention(*make_inputs(20, d=16, e=16), backend="triton")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    ("cuda", "d", "dtype", "expected"),
    [
        (True, 64, torch.bfloat16, True),
        (False, 64, torch.bfloat16, False),
        (True, 48, torch.bfloat16, False),  # no kernels for this head dimension
        (True, 64, torch.float64, False),
    ],
)
def test_auto_takes_triton_where_it_serves(monkeypatch, cuda, d, dtype, expected, gradients):
    monkeypatch.setattr(op, "_has_triton", lambda: True)

    class Device(torch.Tensor):
        is_cuda = cuda

    q = torch.zeros(1, 1, 1, d, dtype=dtype, requires_grad=gradients).as_subclass(Device)
    assert op.use_triton("auto", q, torch.zeros(1, 1, 1, 64)) is expected
    monkeypatch.setattr(op, "_has_triton", lambda: False)
    assert op.use_triton("auto", q, torch.zeros(1, 1, 1, 64)) is False


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_the_torch_backend_on_cuda(p):
    inputs = [x.cuda() for x in make_inputs(600, d=16, e=8, heads=4, kv_heads=2, batch=2)]
    leaves = leaves_of(inputs)
    y = power_attention(*inputs, p=p, chunk_size=128, backend="torch")
    expected = reference(inputs, p=p)
    assert y.is_cuda
    assert relative_error(y, expected) < 1e-12
    weight = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(y, leaves, weight), torch.autograd.grad(expected, leaves, weight), strict=True
    ):
        assert relative_error(got, want) < 1e-11
    rows = tspow_dim(16, p, choose_d_tile(p, 16, "cuda"))
    # cuBLAS adds the D terms of a batched float32 product in one running sum, whose error grows with the root of D
    # (measured on an H200: 0.3 * 2^-24 * sqrt(D) for D = 256 to 65536, and a fifth of that for products one by one);
    # CPU libraries add them in blocks and stay below.
    running_sum = 0.75 * 2**-24 * rows**0.5
    for dtype, bound in BOUNDS.items():
        low = [x.cuda() for x in normal_inputs(1500, 16, dtype)]
        y = power_attention(*low, p=p, chunk_size=256, backend="torch")
        assert relative_error(y, reference(low, p=p)) < max(bound, running_sum)


@pytest.mark.gpu
@needs_cuda
def test_the_torch_backend_in_a_cuda_graph():
    inputs = [x.cuda().float() for x in make_inputs(300, d=16, e=16, heads=2)]
    expected = power_attention(*inputs, chunk_size=64, backend="torch")  # also moves the multiplicities there
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = power_attention(*inputs, chunk_size=64, backend="torch")
    graph.replay()
    assert relative_error(y, expected) < 1e-6


# --- refusals ---


Q, K, V, G = torch.zeros(2, 6, 4, 8), torch.zeros(2, 6, 2, 8), torch.zeros(2, 6, 2, 5), torch.zeros(2, 6, 2)
S, Z = torch.zeros(2, 2, 36, 5), torch.zeros(2, 2, 36)
INF = float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": None}, "q is NoneType; it must be a tensor"),
        ({"k": 3}, "k is int; it must be a tensor"),
        ({"q": Q[0]}, "q is [6, 4, 8]; it must be [batch, time, heads, dim], with no size zero"),
        ({"v": V[:, :0]}, "v is [2, 0, 2, 5]; it must be [batch, time, heads, dim], with no size zero"),
        ({"q": Q.int()}, "q is torch.int32; allowed are torch.bfloat16, torch.float16, torch.float32, torch.float64"),
        ({"k": K[:1]}, "k is [1, 6, 2, 8]; with q [2, 6, 4, 8] it must be [2, 6, kv_heads, 8]"),
        ({"k": K[:, :5]}, "k is [2, 5, 2, 8]; with q [2, 6, 4, 8] it must be [2, 6, kv_heads, 8]"),
        ({"k": K[..., :4]}, "k is [2, 6, 2, 4]; with q [2, 6, 4, 8] it must be [2, 6, kv_heads, 8]"),
        ({"q": Q[:, :, :3]}, "k has 2 heads; the number must divide q's 3 heads"),
        ({"v": V[:, :, :1]}, "v is [2, 6, 1, 5]; with k [2, 6, 2, 8] it must be [2, 6, 2, value_dim]"),
        ({"k": K.double()}, "k is torch.float64; it must be q's dtype, torch.float32"),
        ({"v": V.half()}, "v is torch.float16; it must be q's dtype, torch.float32"),
        ({"v": V.to("meta")}, "v is on meta; it must be on q's device, cpu"),
        ({"log_g": 0.5}, "log_g is float; it must be a tensor, or None for no gates"),
        ({"log_g": G[..., None]}, "log_g is [2, 6, 2, 1]; with k [2, 6, 2, 8] it must be [2, 6, 2]"),
        ({"log_g": G.double()}, "log_g is torch.float64; with torch.float32 q it must be torch.float32"),
        (
            {"q": Q.double(), "k": K.double(), "v": V.double(), "log_g": G.half()},
            "log_g is torch.float16; with torch.float64 q it must be torch.float32 or torch.float64",
        ),
        ({"log_g": G.to("meta")}, "log_g is on meta; it must be on q's device, cpu"),
        ({"p": 0}, "p is 0; it must be an integer from 1 to 4"),
        ({"p": 2.0}, "p is 2.0; it must be an integer from 1 to 4"),
        ({"p": True}, "p is True; it must be an integer from 1 to 4"),
        (
            {"p": 6},
            "p is 6; it must be from 1 to 4: at head dimension 8 a state of degree 6 would have 1,716 rows a head",
        ),
        ({"chunk_size": 0}, "chunk_size is 0; it must be an integer of at least 1, or None"),
        ({"chunk_size": 8.0}, "chunk_size is 8.0; it must be an integer of at least 1, or None"),
        ({"d_tile": 3}, "d_tile is 3; for head dimension 8 it must be one of 1, 2, 4, 8, or None"),
        ({"scale": 0.0}, "scale is 0.0; it must be a positive, finite number, or None for 1 / sqrt(d)"),
        ({"scale": INF}, "scale is inf; it must be a positive, finite number, or None for 1 / sqrt(d)"),
        ({"scale": "big"}, "scale is 'big'; it must be a positive, finite number, or None for 1 / sqrt(d)"),
        ({"normalize": 1}, "normalize is 1; it must be True, False, or None for the default of p"),
        (
            {"p": 3, "normalize": True},
            "normalize is True with p = 3; odd powers can sum to zero: only even p can be normalised",
        ),
        ({"initial_state": (S, Z)}, "initial_state is tuple; it must be a PowerState(s, z) or None"),
        (
            {"initial_state": PowerState(S[:, :, :35], Z)},
            "initial_state.s is [2, 2, 35, 5]; these inputs, p and d_tile need [2, 2, 36, 5]: a state belongs to the p "
            "and d_tile it was made with",
        ),
        (
            {"initial_state": PowerState(S, Z), "d_tile": 2},
            "initial_state.s is [2, 2, 36, 5]; these inputs, p and d_tile need [2, 2, 40, 5]: a state belongs to the p "
            "and d_tile it was made with",
        ),
        (
            {"initial_state": PowerState(S, Z[..., None])},
            "initial_state.z is [2, 2, 36, 1]; these inputs, p and d_tile need [2, 2, 36]: a state belongs to the p "
            "and d_tile it was made with",
        ),
        (
            {"initial_state": PowerState(S, Z.double())},
            "initial_state.z is torch.float64; with torch.float32 q it must be torch.float32",
        ),
        (
            {"initial_state": PowerState(S.to("meta"), Z)},
            "initial_state.s is on meta; it must be on q's device, cpu",
        ),
        ({"backend": "cuda"}, "backend is 'cuda'; allowed are auto, triton, torch"),
    ],
)
def test_refusals_name_the_argument_and_what_is_allowed(changed, message):
    arguments = {"q": Q, "k": K, "v": V, "log_g": G, "d_tile": 1} | changed
    with refused(message):
        power_attention(**arguments)
