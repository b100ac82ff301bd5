"""`scale` acts on q and k that are large, whether or not it cancels in what is normalised: in every backend and step.

Triton's kernels run under the interpreter, or on the GPU where there is one.
"""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from power_inputs import make_inputs, relative_error  # noqa: E402

from powerbench import LazyState, PowerState, power_attention, power_attention_step  # noqa: E402
from powerbench.kernels.power.reference import attention_form  # noqa: E402
from powerbench.kernels.power.scaling import split_scale  # noqa: E402

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 2e-2}


@pytest.mark.parametrize("p", [1, 2, 3, 4])
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 3e-9, 0.1, 0.125, 0.7, 1.0, 1.5, 7e8, 1e40, 1e300])
def test_a_scale_is_a_power_of_two_and_a_rest(p, scale):
    factor, rest = split_scale(scale, p)
    assert factor * rest == pytest.approx(scale)
    assert torch.tensor(factor**p, dtype=torch.bfloat16).item() == factor**p
    if 1e-9 < scale < 1e9:
        assert 0.7 < rest < 1.42


def large(T, *, size, dtype, d=16, e=16, seed=0, **options):
    """q and k of elements about `size`, float32 log_g, as leaves."""
    q, k, v, log_g = make_inputs(T, d=d, e=e, heads=2, kv_heads=1, seed=seed, **options)
    inputs = [(size * q).to(dtype), (size * k).to(dtype), v.to(dtype), None if log_g is None else log_g.float()]
    return [x if x is None else x.to(DEVICE).requires_grad_() for x in inputs]


def check(backend, dtype, *, p, size, T=24, d=16, d_tile=4, chunk_size=64, normalize=None, gates="slow"):
    """y and all gradients, with the scale that makes scores of size d of those of size d * size^2."""
    leaves = large(T, size=size, dtype=dtype, d=d, e=d, gates=gates)
    options = {"p": p, "scale": size**-2 * d**-0.5, "normalize": p % 2 == 0 if normalize is None else normalize}
    y = power_attention(*leaves, chunk_size=chunk_size, d_tile=d_tile, backend=backend, **options)
    doubles = [x if x is None else x.detach().double().requires_grad_() for x in leaves]
    want = attention_form(*doubles, **options)[0]
    assert relative_error(y, want) < TOLERANCE[dtype]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    got = torch.autograd.grad(y, [x for x in leaves if x is not None], dy.to(y.dtype))
    wanted = torch.autograd.grad(want, [x for x in doubles if x is not None], dy.to(y.dtype).double())
    for x, x_want in zip(got, wanted, strict=True):
        assert relative_error(x[:, 1:], x_want[:, 1:]) < 5 * TOLERANCE[dtype]


# The state holds phi(k) without a scale: |k|^p, and sums of it times v, have to be in the range of float32. In the
# Triton backend so has, for gradients through a state, the denominator without a scale.
LARGE = [(1, 1e16), (2, 1e12), (3, 1e9), (4, 1e7)]


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(("p", "size"), LARGE)
@pytest.mark.parametrize("gates", ["none", "slow"])
def test_large_queries_and_keys_in_one_chunk(backend, p, size, gates):
    check(backend, torch.float32, p=p, size=size, gates=gates)


@pytest.mark.parametrize(
    ("backend", "p", "size"), [("torch", *LARGE[0]), ("torch", *LARGE[1]), ("triton", *LARGE[0]), ("triton", 2, 1e8)]
)
@pytest.mark.parametrize("normalize", [False, True])
def test_large_queries_and_keys_through_the_state(backend, p, size, normalize):
    if p % 2 == 0 or not normalize:
        check(backend, torch.float32, p=p, size=size, chunk_size=16, T=40, normalize=normalize)


@pytest.mark.parametrize(("p", "size"), LARGE[2:])
def test_large_queries_and_keys_through_the_state_of_a_high_degree(p, size):
    check("torch", torch.float32, p=p, size=size, chunk_size=16, d=4, d_tile=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("p", "size"), LARGE)
def test_large_inputs_of_the_torch_backend(dtype, p, size):
    check("torch", dtype, p=p, size=size, d=8, d_tile=2, chunk_size=12)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    ("p", "d", "d_tile", "size"),
    [(1, 64, 64, 1e15), (2, 64, 8, 1e7), (2, 128, 8, 1e7), (2, 16, 4, 1e7), (3, 32, 8, 1e5), (4, 16, 4, 1e3)],
)
@pytest.mark.parametrize("chunk_size", [1024, 256])
@pytest.mark.parametrize("gates", ["none", "slow"])
@pytest.mark.parametrize("normalize", [False, True])
def test_large_queries_and_keys_on_the_gpu(p, d, d_tile, size, chunk_size, gates, normalize):
    if p % 2 == 0 or not normalize:
        check("triton", torch.bfloat16, p=p, size=size, T=700, d=d, d_tile=d_tile, chunk_size=chunk_size, gates=gates,
              normalize=normalize)  # fmt: skip


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("p", [2, 4])
def test_large_queries_and_keys_in_float16_on_the_gpu(p):
    check("triton", torch.float16, p=p, size=3e3, T=300, chunk_size=1024)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("scale", [0.1, 0.125, 3.0, 1e-3])
@pytest.mark.parametrize("p", [1, 2])
def test_any_scale_through_states_that_hold_none(backend, scale, p):
    """A state made with one scale is read with another; unnormalised y is scale^p times what it is without."""
    leaves = [x.detach() for x in large(30, size=1.0, dtype=torch.float32)]
    options = {"p": p, "d_tile": 4, "normalize": False, "backend": backend, "chunk_size": 8}
    _, state = power_attention(*leaves, scale=0.3, return_state=True, **options)
    got = power_attention(*leaves, scale=scale, initial_state=state, **options)
    one = power_attention(*leaves, scale=1.0, initial_state=state, **options)
    assert relative_error(got, one.double() * scale**p) < 1e-5


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("p", "size", "normalize"), [(1, 1e16, False), (2, 1e12, True), (2, 1e12, False)])
def test_steps_with_large_queries_and_keys(backend, window, p, size, normalize):
    inputs = [x.detach() for x in large(12, size=size, dtype=torch.float32)]
    options = {"p": p, "d_tile": 4, "scale": 0.25 * size**-2, "normalize": normalize, "backend": backend}
    state = power_attention(*(x[:, :6] for x in inputs), return_state=True, **options)[1]
    state = PowerState(*(x.clone() for x in state))
    if window:
        state = LazyState.begin(state, 16, torch.float32, window)
    outputs = []
    for first, end in [(6, 7), (7, 8), (8, 11), (11, 12)]:
        y, state = power_attention_step(*(x[:, first:end] for x in inputs), state, in_place=True, **options)
        outputs.append(y)
    want = attention_form(*(x.double() for x in inputs), p=p, scale=options["scale"], normalize=normalize)[0]
    assert relative_error(torch.cat(outputs, 1), want[:, 6:]) < TOLERANCE[torch.float32]
