"""The Triton kernels against the definition in float64: under Triton's interpreter, or on the GPU where there is one.

Everything that torch.empty hands out is filled with nan first, so that an element nobody wrote shows.
"""

from __future__ import annotations

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from power_oracle import attention_oracle, error, inputs, state_oracle  # noqa: E402

from powerbench.kernels.power.feature_map import tspow_dim  # noqa: E402
from powerbench.kernels.power.triton_backend import forward_launches  # noqa: E402

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3 if DEVICE == "cpu" else 1e-2}


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch):
    def poisoned(make):
        def made(*args, **options):
            x = make(*args, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


def forward(q, k, v, log_g, *, p, chunk_size, d_tile=16, normalize=None, scale=None, state=None, return_state=True):
    """y and the state, with the operator's defaults."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    normalize = p % 2 == 0 if normalize is None else normalize
    done = forward_launches(
        q, k, v, log_g, p=p, chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize,
        initial_state=state, return_state=return_state, save=False,
    )  # fmt: skip
    return done.y, done.state


def check(q, k, v, log_g, *, p, d_tile, chunk_size, normalize=None):
    """y, s and z agree with the oracle."""
    normalize = p % 2 == 0 if normalize is None else normalize
    y, state = forward(q, k, v, log_g, p=p, d_tile=d_tile, chunk_size=chunk_size, normalize=normalize)
    assert (y.dtype, y.shape) == (q.dtype, (*q.shape[:-1], v.shape[-1]))
    tolerance = TOLERANCE[q.dtype]
    assert error(y, attention_oracle(q, k, v, log_g, p, q.shape[-1] ** -0.5, normalize)) < tolerance
    s, z = state_oracle(k, v, log_g, p, d_tile)
    assert state.s.dtype == state.z.dtype == torch.float32
    assert error(state.s, s) < tolerance
    assert error(state.z, z) < tolerance


@pytest.mark.parametrize(("T", "chunk_size"), [(1, 1), (1, 64), (5, 1), (63, 16), (65, 64), (200, 37), (130, 4096)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_any_length_and_any_chunk(T, chunk_size, gated):
    check(*inputs(1, T, 2, 1, 16, 16, gated=gated, device=DEVICE), p=2, d_tile=4, chunk_size=chunk_size)


@pytest.mark.parametrize("d_tile", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("p", [1, 2])
def test_every_d_tile(p, d_tile):
    check(*inputs(1, 40, 1, 1, 32, 16, device=DEVICE), p=p, d_tile=d_tile, chunk_size=20)


@pytest.mark.parametrize(
    ("d_tile", "dtype"), [(1, torch.float16), (2, torch.float32), (4, torch.float16), (16, torch.float32)]
)
def test_degree_3(d_tile, dtype):
    check(*inputs(1, 20, 1, 1, 16, 16, dtype, device=DEVICE), p=3, d_tile=d_tile, chunk_size=16)


def test_degree_4():
    q, k, v, log_g = inputs(1, 20, 1, 1, 16, 16, torch.float16, device=DEVICE)  # the interpreter does these faster
    y, _ = forward(q, k, v, log_g, p=4, d_tile=1, chunk_size=16, return_state=False)
    assert error(y, attention_oracle(q, k, v, log_g, 4, 0.25, True)) < TOLERANCE[q.dtype]


def test_state_of_degree_4():
    q, k, v, log_g = inputs(1, 6, 1, 1, 16, 16, torch.float16, device=DEVICE)
    _, state = forward(q, k, v, log_g, p=4, d_tile=2, chunk_size=16)
    s, z = state_oracle(k, v, log_g, 4, 2)
    assert error(state.s, s) < TOLERANCE[q.dtype]
    assert error(state.z, z) < TOLERANCE[q.dtype]


@pytest.mark.parametrize(("d", "e", "d_tile"), [(64, 64, 64), (64, 32, 16), (64, 128, 8), (128, 16, 128), (32, 64, 32)])
def test_head_dimensions(d, e, d_tile):
    q, k, v, log_g = inputs(1, 20, 1, 1, d, e, device=DEVICE)
    y, _ = forward(q, k, v, log_g, p=2, d_tile=d_tile, chunk_size=16, return_state=False)
    assert error(y, attention_oracle(q, k, v, log_g, 2, d**-0.5, True)) < 1e-5


@pytest.mark.parametrize(("H", "Hk"), [(4, 2), (3, 1)], ids=["gqa", "mqa"])
@pytest.mark.parametrize("p", [1, 2])
def test_grouped_heads(p, H, Hk):
    check(*inputs(2, 50, H, Hk, 16, 32, device=DEVICE), p=p, d_tile=8, chunk_size=16)


@pytest.mark.parametrize("p", [1, 2])
def test_half_precision(p):
    check(*inputs(1, 70, 2, 1, 16, 16, torch.float16, device=DEVICE), p=p, d_tile=16, chunk_size=32)


def test_even_degree_without_normalisation():
    check(*inputs(1, 50, 2, 1, 16, 16, device=DEVICE), p=2, d_tile=4, chunk_size=16, normalize=False)


@pytest.mark.parametrize(
    ("p", "B", "H", "cuts", "chunk_size"),
    [
        (1, 2, 2, (25,), 16),
        (1, 2, 2, (1, 20), 1000),
        (2, 2, 2, (25,), 16),
        (2, 2, 2, (1, 20), 1000),
        (3, 1, 1, (25,), 1000),
        (3, 1, 1, (6,), 16),
    ],
)
def test_a_split_sequence_is_the_whole(p, B, H, cuts, chunk_size):
    whole = inputs(B, 40, H, 1, 16, 32, device=DEVICE)
    want, end = forward(*whole, p=p, d_tile=4, chunk_size=40)
    parts, state = [], None
    for lo, hi in zip((0, *cuts), (*cuts, 40), strict=True):
        y, state = forward(*(x[:, lo:hi] for x in whole), p=p, d_tile=4, chunk_size=chunk_size, state=state)
        parts.append(y)
    assert error(torch.cat(parts, 1), want.double()) < 1e-5
    assert error(state.s, end.s.double()) < 1e-5
    assert error(state.z, end.z.double()) < 1e-5


def test_no_state_unless_asked():
    args = inputs(1, 40, 1, 1, 16, 16, device=DEVICE)
    with_state, _ = forward(*args, p=2, chunk_size=16)
    without, state = forward(*args, p=2, chunk_size=16, return_state=False)
    assert state is None
    assert torch.equal(with_state, without)


@pytest.mark.parametrize("layout", ["heads-first", "features-first", "slices", "states"])
def test_any_strides(layout):
    q, k, v, log_g = inputs(2, 30, 2, 1, 16, 16, device=DEVICE)
    want, end = forward(q, k, v, log_g, p=2, chunk_size=16)
    state = None
    if layout == "heads-first":
        q, k, v, log_g = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v, log_g))
    elif layout == "features-first":
        q, k, v = (x.movedim(-1, 0).contiguous().movedim(0, -1) for x in (q, k, v))
    elif layout == "slices":
        q, k, v = torch.cat([q, k, v], 2).split([2, 1, 1], 2)
        log_g = log_g.repeat_interleave(2, 1)[:, ::2]
    else:
        _, state = forward(*(x[:, :20] for x in (q, k, v, log_g)), p=2, chunk_size=16)
        state = type(state)(state.s.mT.contiguous().mT, state.z.movedim(-1, 0).contiguous().movedim(0, -1))
        q, k, v, log_g, want = (x[:, 20:] for x in (q, k, v, log_g, want))
    y, got = forward(q, k, v, log_g, p=2, chunk_size=16, state=state)
    assert error(y, want.double()) < 1e-5
    assert error(got.s, end.s.double()) < 1e-5


@pytest.mark.skipif(DEVICE == "cuda", reason="virtual memory only: the GPU would have to hold it")
@pytest.mark.parametrize(
    ("B", "H", "strides"),
    [(3, 1, (2**30 + 64, 16, 16, 1)), (1, 1, (16, 2**27 + 64, 16, 1)), (1, 3, (16, 64, 2**30 + 2048, 1))],
    ids=["batch", "token", "head"],
)
def test_offsets_beyond_32_bits(B, H, strides):
    q, k, v, _ = inputs(B, 20, H, H, 16, 16, torch.float16)
    want, _ = forward(q, k, v, None, p=2, chunk_size=16)
    far = []
    for x in (q, k, v):
        reach = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) + 1
        assert reach > 2**31
        memory = torch.UntypedStorage(reach * x.itemsize)  # untouched pages take no memory
        far.append(x.new_empty(0).set_(memory).as_strided(x.shape, strides).copy_(x))
    got, _ = forward(*far, None, p=2, chunk_size=16)
    assert torch.equal(got, want)


@pytest.mark.parametrize("chunk_size", [16, 1000])
def test_extreme_gates(chunk_size):
    q, k, v, log_g = inputs(1, 50, 1, 1, 16, 16, device=DEVICE)
    assert error(
        forward(q, k, v, torch.zeros_like(log_g), p=2, chunk_size=chunk_size)[0],
        forward(q, k, v, None, p=2, chunk_size=chunk_size)[0].double(),
    ) < 1e-6  # fmt: skip
    log_g[:, 5] = -60.0  # exp(60) squared would overflow, were it taken above the diagonal
    log_g[:, 9] = -60.0
    log_g[:, 30] = -torch.inf  # a hard reset: what follows is as if the sequence began here
    y, _ = forward(q, k, v, log_g, p=2, chunk_size=chunk_size)
    want = attention_oracle(q, k, v, log_g.clamp(min=-1000), 2, 0.25, True)
    assert error(y, want) < 1e-5
    fresh, _ = forward(*(x[:, 30:] for x in (q, k, v, log_g)), p=2, chunk_size=chunk_size)
    assert error(y[:, 30:], fresh.double()) < 1e-5


@pytest.mark.parametrize("p", [2, 4])
def test_large_inputs_in_half_precision_stay_finite(p):
    """Of norm 16: powers of s up to 256 and states beyond fp16's range."""
    q, k, v, log_g = inputs(1, 20, 1, 1, 16, 16, torch.float16, device=DEVICE)
    q, k = (16 * torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype) for x in (q, k))
    y, _ = forward(q, k, v, log_g, p=p, chunk_size=16, d_tile=4, scale=1.0, return_state=False)
    assert y.isfinite().all()
    assert error(y, attention_oracle(q, k, v, log_g, p, 1.0, True)) < 2 * TOLERANCE[q.dtype]


def test_state_has_the_dimension_of_the_feature_map():
    _, state = forward(*inputs(2, 5, 2, 1, 32, 16, device=DEVICE), p=2, d_tile=8, chunk_size=16)
    assert state.s.shape == (2, 1, tspow_dim(32, 2, 8), 16)
    assert state.z.shape == (2, 1, tspow_dim(32, 2, 8))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"p": 5}, "p is 5"),
        ({"p": 3, "normalize": True}, "only even p"),
        ({"d": 48}, "48"),
        ({"e": 24}, "24"),
        ({"d_tile": 3}, "d_tile is 3"),
        ({"dtype": torch.float64}, "float64"),
    ],
)
def test_refuses_what_the_kernels_lack(options, named):
    args = inputs(1, 5, 1, 1, options.get("d", 16), options.get("e", 16), options.get("dtype", torch.float32))
    with pytest.raises(ValueError, match=named):
        forward(*args, p=options.get("p", 2), chunk_size=4, d_tile=options.get("d_tile", 1),
                normalize=options.get("normalize"))  # fmt: skip
