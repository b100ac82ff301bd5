"""`power_attention_step`: prefill, then steps, is the whole sequence at once; wherever it is split, plain or lazy.

Backends: torch, and Triton under its interpreter (fp32, fp16) or, where there is one, on the GPU.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from power_inputs import make_inputs, relative_error

import powerbench
from powerbench import LazyState, PowerState, fold_lazy_state, power_attention, power_attention_step
from powerbench.kernels.power.decode import MAX_STEP_TOKENS
from powerbench.kernels.power.reference import attention_form

HEAD_DIM = {1: 16, 2: 12, 3: 8, 4: 4}  # small where the state is large
GATES = ["none", "slow", "fast", "zero", "-20"]


def part(inputs, first, end):
    return [x if x is None else x[:, first:end] for x in inputs]


def decoded(inputs, split, sizes, *, window=None, state_dtype=None, **options):
    """y of the tokens from `split` on, and the last state: prefill, then steps of `sizes` tokens, over and over."""
    state = None
    if split:
        _, state = power_attention(*part(inputs, 0, split), return_state=True, **options)
    if window is not None:
        state = LazyState.begin(state or zero_state(inputs, **options), inputs[0].shape[-1], inputs[0].dtype, window)
    if state_dtype is not None:
        state = PowerState(state.s.to(state_dtype), state.z)
    outputs, T, i = [], inputs[0].shape[1], 0
    while split < T:
        end = min(T, split + sizes[i % len(sizes)])
        y, state = power_attention_step(*part(inputs, split, end), state, in_place=state is not None, **options)
        outputs.append(y)
        split, i = end, i + 1
    return torch.cat(outputs, dim=1), state


def zero_state(inputs, **options):
    _, state = power_attention(*part(inputs, 0, 1), return_state=True, **options)
    return PowerState(torch.zeros_like(state.s), torch.zeros_like(state.z))


def whole(inputs, p, normalize=None):
    normalize = p % 2 == 0 if normalize is None else normalize
    return attention_form(*inputs, p=p, normalize=normalize)[0]


# --- one long forward, for any split ---


@settings(max_examples=60, deadline=None)
@given(
    p=st.sampled_from([1, 2, 3, 4]),
    gates=st.sampled_from(GATES),
    T=st.integers(1, 60),
    data=st.data(),
    grouping=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 2, 7, 100]),
)
def test_any_split_is_one_long_forward(p, gates, T, data, grouping, window):
    split = data.draw(st.integers(0, T - 1))
    sizes = data.draw(st.lists(st.integers(1, MAX_STEP_TOKENS), min_size=1, max_size=4))
    normalize = data.draw(st.booleans()) if p % 2 == 0 else False
    d_tile = data.draw(st.sampled_from([tile for tile in (1, 2, 4) if HEAD_DIM[p] % tile == 0]))
    heads, kv_heads = grouping
    inputs = make_inputs(T, d=HEAD_DIM[p], e=5, heads=heads, kv_heads=kv_heads, batch=2, gates=gates)
    options = {"p": p, "d_tile": d_tile, "normalize": normalize, "backend": "torch"}
    y, state = decoded(inputs, split, sizes, window=window, **options)
    assert relative_error(y, whole(inputs, p, normalize)[:, split:]) < 1e-11
    if window is not None:
        state = fold_lazy_state(state, p=p, d_tile=d_tile)
    _, want = power_attention(*inputs, return_state=True, **options)
    assert relative_error(state.s, want.s) < 1e-12
    assert relative_error(state.z, want.z) < 1e-12


@pytest.mark.parametrize("window", [None, 8])
@pytest.mark.parametrize("gates", ["none", "slow", "fast"])
def test_sequences_of_different_age(window, gates):
    """Each of the batch has its own past; one has none. Their windows fill and fold at different times."""
    ages, steps = (0, 3, 17, 40), 21
    inputs = make_inputs(40 + steps, d=12, e=5, heads=2, kv_heads=1, batch=len(ages), gates=gates)
    options = {"p": 2, "d_tile": 4, "backend": "torch"}
    states, wanted = [], []
    for b, age in enumerate(ages):
        one = [x if x is None else x[b : b + 1] for x in inputs]
        prefix = 40 - age  # sequence b begins here
        mine = part(one, prefix, 40 + steps)
        waiting = min(b, age) if window else 0  # as many of its last tokens are in its window
        state = zero_state(one, **options)
        if age > waiting:
            _, state = power_attention(*part(mine, 0, age - waiting), return_state=True, **options)
        if window is not None:
            state = LazyState.begin(state, 12, torch.float64, window)
        if waiting:
            _, state = power_attention_step(*part(mine, age - waiting, age), state, **options)
        states.append(state)
        wanted.append(whole(mine, 2)[:, age:])
    if window is None:
        state = PowerState(*(torch.cat(x) for x in zip(*states, strict=True)))
    else:
        sums = PowerState(*(torch.cat(x) for x in zip(*(s.state for s in states), strict=True)))
        state = LazyState(sums, *(torch.cat(x) for x in list(zip(*states, strict=True))[1:]))
        assert len(set(state.count.tolist())) == len(ages)
    outputs = []
    for t in range(40, 40 + steps):
        y, state = power_attention_step(*part(inputs, t, t + 1), state, in_place=True, **options)
        outputs.append(y)
    assert relative_error(torch.cat(outputs, dim=1), torch.cat(wanted)) < 1e-12


@pytest.mark.parametrize("window", [None, 4])
def test_a_hard_reset_forgets_the_past(window):
    inputs = make_inputs(20, d=12, e=5)
    inputs[3][:, 10] = -torch.inf
    y, _ = decoded(inputs, 3, (1,), window=window, p=2, d_tile=4, backend="torch")
    fresh = [x[:, 10:] for x in inputs]
    assert relative_error(y[:, 7:], whole(fresh, 2)) < 1e-12


# --- precision ---


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 4e-3), (torch.float16, 6e-4), (torch.float32, 1e-6)])
def test_error_is_the_rounding_of_the_dtype(dtype, allowed, window):
    exact = make_inputs(300, d=16, e=16, heads=2, kv_heads=1, batch=2)
    inputs = [x.to(dtype) for x in exact[:3]] + [exact[3].float()]
    y, _ = decoded(inputs, 150, (1,), window=window, p=2, d_tile=8, backend="torch")
    assert y.dtype == dtype
    assert relative_error(y, whole([x.double() for x in inputs], 2)[:, 150:]) < allowed


def test_a_bfloat16_state_costs_what_the_docstring_says():
    """Of a plain one everything is lost that is below 2^-9 of a sum; a lazy one is rounded once a window."""
    exact = make_inputs(1000, d=16, e=16)
    inputs = [x.to(torch.bfloat16) for x in exact[:3]] + [exact[3].float()]
    want = whole([x.double() for x in inputs], 2)[:, 10:]
    options = {"p": 2, "d_tile": 8, "backend": "torch"}
    _, start = power_attention(*part(inputs, 0, 10), return_state=True, **options)
    half = PowerState(start.s.bfloat16(), start.z)
    errors = []
    for state in (PowerState(half.s.clone(), half.z.clone()), LazyState.begin(half, 16, torch.bfloat16, 64)):
        steps = [
            power_attention_step(*part(inputs, t, t + 1), state, in_place=True, **options)[0] for t in range(10, 1000)
        ]
        errors.append(relative_error(torch.cat(steps, dim=1), want))
    plain, lazy = errors
    assert lazy < 6e-3
    assert 6e-3 < plain < 2e-1


# --- the state that comes in ---


@pytest.mark.parametrize("lazy", [False, True])
def test_only_in_place_touches_the_state(lazy):
    inputs = make_inputs(12, d=12, e=5, heads=2, kv_heads=1)
    options = {"p": 2, "d_tile": 4, "backend": "torch"}
    _, state = power_attention(*part(inputs, 0, 10), return_state=True, **options)
    state = LazyState.begin(state, 12, torch.float64, 2) if lazy else state

    def leaves(x):
        return [*x.state, *x[1:]] if lazy else list(x)

    before = [x.clone() for x in leaves(state)]
    first, moved = power_attention_step(*part(inputs, 10, 11), state, **options)
    assert all(torch.equal(x, y) for x, y in zip(leaves(state), before, strict=True))
    again, same = power_attention_step(*part(inputs, 10, 11), state, in_place=True, **options)
    assert same is state
    assert torch.equal(first, again)
    assert all(torch.equal(x, y) for x, y in zip(leaves(state), leaves(moved), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(leaves(state), before, strict=True))


def test_a_lazy_state_is_written_only_when_its_window_is_full():
    inputs = make_inputs(20, d=12, e=5)
    options = {"p": 2, "d_tile": 4, "backend": "torch", "in_place": True}
    state = LazyState.begin(zero_state(inputs, p=2, d_tile=4, backend="torch"), 12, torch.float64, 8)
    writes, counts = [], []
    for t in range(20):
        before = state.state.s.clone()
        power_attention_step(*part(inputs, t, t + 1), state, **options)
        writes.append(not torch.equal(state.state.s, before))
        counts.append(state.count.item())
    assert [t for t, written in enumerate(writes) if written] == [7, 15]
    assert counts == [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4]


def test_it_is_public_and_starts_from_nothing():
    inputs = make_inputs(1, d=12, e=5)
    y, state = powerbench.power_attention_step(*inputs, backend="torch")
    want, end = power_attention(*inputs, return_state=True, backend="torch")
    assert relative_error(y, want) < 1e-14
    assert relative_error(state.s, end.s) < 1e-14


def test_autocast_casts_the_inputs_and_not_the_sums():
    exact = make_inputs(40, d=16, e=16)
    inputs = [x.float() for x in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = decoded(inputs, 20, (1,), p=2, d_tile=8, backend="torch")
    rounded = [x.bfloat16() for x in inputs[:3]] + [inputs[3]]
    want, end = decoded(rounded, 20, (1,), p=2, d_tile=8, backend="torch")
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, want)
    assert torch.equal(state.s, end.s)


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"T": 17}, "q has 17 tokens; a step takes 1 to 16"),
        ({"p": 5}, "p is 5"),
        ({"d_tile": 5}, "d_tile is 5"),
        ({"p": 3, "normalize": True}, "normalize is True with p = 3"),
        ({"state": "nothing"}, "state is str; it must be a PowerState"),
        ({"d_tile": 12}, "state.s is"),
        ({"backend": "cuda"}, "backend is 'cuda'"),
        ({"grad": True}, "an input requires grad"),
        ({"strides": True, "in_place": True}, "s of the state has strides"),
        ({"half": True}, "state.s is torch.bfloat16; with torch.float64 q it must be torch.float64"),
    ],
)
def test_refuses_what_it_cannot_do(change, named):
    T = change.pop("T", 1)
    inputs = make_inputs(T, d=12, e=5, kv_heads=2, heads=2, batch=2)
    _, state = power_attention(*inputs, p=2, d_tile=4, return_state=True, backend="torch")
    if change.pop("strides", False):
        state = PowerState(state.s.mT.contiguous().mT, state.z)
    if change.pop("half", False):
        state = PowerState(state.s.bfloat16(), state.z)
    if change.pop("grad", False):
        inputs[0].requires_grad_()
    options = {"p": 2, "d_tile": 4, "backend": "torch", "state": state, **change}
    with pytest.raises(ValueError, match=named):
        power_attention_step(*inputs, **options)


def test_refuses_a_window_that_does_not_fit():
    inputs = make_inputs(1, d=12, e=5)
    _, state = power_attention(*inputs, p=2, d_tile=4, return_state=True, backend="torch")
    with pytest.raises(ValueError, match=r"state\.k is .* in torch\.float32"):
        power_attention_step(*inputs, LazyState.begin(state, 12, torch.float32), p=2, d_tile=4, backend="torch")
    with pytest.raises(ValueError, match="window is 0"):
        LazyState.begin(state, 12, torch.float64, 0)
    with pytest.raises(ValueError, match="state is PowerState; it must be a LazyState"):
        fold_lazy_state(state)
