"""The Triton kernels as compiled, on a CUDA device: bf16, sizes the interpreter is too slow for, and how they run.

`test_triton` runs there too; what it covers (lengths, strides, states, fp32) is not repeated.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

from power_oracle import attention_oracle, error, inputs, state_oracle  # noqa: E402

BF16 = 1e-2  # a wrong row, weight or gate shows as 10 % and more


def forward(q, k, v, log_g, *, p, chunk_size, d_tile, return_state=False, state=None, scale=None):
    from powerbench.kernels.power.triton_backend import forward_launches

    done = forward_launches(
        q, k, v, log_g, p=p, chunk_size=chunk_size, d_tile=d_tile, scale=scale or q.shape[-1] ** -0.5,
        normalize=p % 2 == 0, initial_state=state, return_state=return_state, save=False,
    )  # fmt: skip
    return done.y, done.state


# At p = 1 there are no tiles, and d_tile changes nothing but which kernels are compiled.
SIZES = [(2, 64, 64, d_tile) for d_tile in (1, 2, 4, 8, 16, 32, 64)] + [
    (1, 64, 64, 1), (1, 64, 64, 64), (1, 128, 128, 128),
    (1, 16, 128, 16), (2, 128, 128, 16), (2, 128, 64, 128), (2, 128, 32, 1), (2, 16, 16, 4),
    (2, 32, 128, 32), (3, 16, 16, 1), (3, 16, 64, 16), (3, 32, 32, 4), (3, 32, 64, 8), (3, 64, 64, 16),
    (3, 32, 128, 32), (4, 16, 16, 1), (4, 16, 32, 4), (4, 16, 64, 16), (4, 32, 32, 8),
]  # fmt: skip


@pytest.mark.parametrize(("p", "d", "e", "d_tile"), SIZES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_output_and_state(p, d, e, d_tile, dtype):
    q, k, v, log_g = inputs(1, 700, 2, 1, d, e, dtype, device="cuda")
    y, state = forward(q, k, v, log_g, p=p, chunk_size=300, d_tile=d_tile, return_state=True)
    assert error(y, attention_oracle(q, k, v, log_g, p, d**-0.5, p % 2 == 0)) < BF16
    s, z = state_oracle(k, v, log_g, p, d_tile)
    assert error(state.s, s) < BF16
    assert error(state.z, z) < BF16


@pytest.mark.parametrize(("p", "d", "d_tile"), [(1, 128, 128), (2, 128, 16), (3, 32, 8), (4, 16, 4)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_float32_is_float32(p, d, d_tile, gated):
    q, k, v, log_g = inputs(2, 500, 2, 1, d, 64, gated=gated, device="cuda")
    y, _ = forward(q, k, v, log_g, p=p, chunk_size=200, d_tile=d_tile)
    assert error(y, attention_oracle(q, k, v, log_g, p, d**-0.5, p % 2 == 0)) < 1e-5


@pytest.mark.parametrize(
    ("T", "chunk_size"), [(1, 1), (1, 64), (63, 1), (300, 7), (1000, 100), (1000, 1024), (4097, 1024), (4097, 10**6)]
)
def test_lengths_and_chunks(T, chunk_size):
    q, k, v, log_g = inputs(1, T, 4, 2, 64, 64, torch.bfloat16, device="cuda")
    y, _ = forward(q, k, v, log_g, p=2, chunk_size=chunk_size, d_tile=16)
    assert error(y, attention_oracle(q, k, v, log_g, 2, 0.125, True)) < BF16


def test_long_context_on_sampled_rows():
    q, k, v, log_g = inputs(1, 65536, 2, 2, 64, 64, torch.bfloat16, device="cuda")
    y, _ = forward(q, k, v, log_g, p=2, chunk_size=1024, d_tile=16)
    rows = torch.tensor([0, 1023, 1024, 30000, 65535], device="cuda")
    G = log_g.double().cumsum(1)
    weights = torch.einsum("bihd,bjhd->bhij", q[:, rows].double(), k.double()).square()
    visible = torch.arange(65536, device="cuda") <= rows[:, None]
    weights = weights * (G[:, rows, None] - G[:, None]).permute(0, 3, 1, 2).clamp(max=0).exp() * visible
    want = torch.einsum("bhij,bjhe->bihe", weights, v.double()) / weights.sum(-1).transpose(1, 2)[..., None]
    assert error(y[:, rows], want) < BF16


@pytest.mark.parametrize(("p", "d"), [(2, 64), (4, 16)])
def test_large_inputs_stay_finite(p, d):
    q, k, v, log_g = inputs(1, 500, 1, 1, d, 64, torch.bfloat16, device="cuda")
    q, k = (16 * torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype) for x in (q, k))
    y, _ = forward(q, k, v, log_g, p=p, chunk_size=200, d_tile=16, scale=1.0)
    assert y.isfinite().all()
    assert error(y, attention_oracle(q, k, v, log_g, p, 1.0, True)) < BF16


def test_same_bits_every_time():
    args = inputs(2, 3000, 4, 2, 64, 64, torch.bfloat16, device="cuda")
    first, again = (forward(*args, p=2, chunk_size=512, d_tile=16, return_state=True) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].s, again[1].s)
    assert torch.equal(first[1].z, again[1].z)


def test_never_waits_and_can_be_captured():
    args = inputs(1, 2000, 2, 1, 64, 64, torch.bfloat16, device="cuda")
    _, state = forward(*args, p=2, chunk_size=512, d_tile=16, return_state=True)
    options = {"p": 2, "chunk_size": 512, "d_tile": 16, "return_state": True, "state": state}
    want, end = forward(*args, **options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward(*args, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, got = forward(*args, **options)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, want)
    assert torch.equal(got.s, end.s)


def test_offsets_beyond_32_bits():
    T, H, d = 2**20, 17, 128  # 2.3e9 elements a tensor
    if torch.cuda.get_device_properties(0).total_memory < 60 * 2**30:
        pytest.skip("needs 60 GiB of device memory")
    q, k, v = (torch.randn(1, T, H, d, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    y, _ = forward(q, k, v, None, p=1, chunk_size=1024, d_tile=128)
    last, _ = forward(q[:, :, -1:], k[:, :, -1:], v[:, :, -1:], None, p=1, chunk_size=1024, d_tile=128)
    assert torch.equal(y[:, :, -1:], last)


def gradients_of(tensors, dy, rows=None, **options):
    """y and the gradients of q, k, v and log_g: of the operator, or (without options) of the definition in float64."""
    from powerbench.kernels.power.op import power_attention
    from powerbench.kernels.power.reference import attention_rows

    reference = rows is not None
    leaves = [x if x is None else (x.double() if reference else x).detach().requires_grad_() for x in tensors]
    if reference:
        p = options["p"]
        y = attention_rows(*leaves, rows, p=p, normalize=p % 2 == 0)
    else:
        y = power_attention(*leaves, backend="triton", **options)
    wanted = [x for x in leaves if x is not None]
    return y, torch.autograd.grad(y, wanted, dy.to(y.dtype))


def check_gradients(p, d, e, d_tile, *, T=700, chunk_size=300, H=4, Hk=2, gates="slow", dtype=torch.bfloat16):
    from power_inputs import make_inputs

    tensors = make_inputs(T, d=d, e=e, heads=H, kv_heads=Hk, batch=2, gates=gates)
    q, k, v = (x.to("cuda", dtype) for x in tensors[:3])
    log_g = None if tensors[3] is None else tensors[3].to("cuda", torch.float32)
    dy = torch.randn(2, T, H, e, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).to(dtype)
    y, got = gradients_of((q, k, v, log_g), dy, p=p, chunk_size=chunk_size, d_tile=d_tile)
    want_y, want = gradients_of((q, k, v, log_g), dy, rows=torch.arange(T), p=p)
    assert error(y, want_y) < BF16
    cancelling = gates in ("fast", "-20") or T < 64
    for name, x, x_want in zip(("dq", "dk", "dv", "dlog_g"), got, want, strict=False):
        assert x.isfinite().all(), name
        if name == "dv" or not cancelling:
            assert error(x, x_want) < (3 if name == "dlog_g" else 1) * BF16, name
        else:
            # Where y is little but the row's own v, dy . v - dy . y is a small difference, and so are these gradients:
            # of single terms p |dy . v| |k| / |<q, k>|, which the rounding of y and v to bf16 leaves. (q . dq: times
            # |q|.) Elements of q, k, v and dy are of order 1, and <q, k> of a row with its own key is of order d.
            term = e**0.5 if name == "dlog_g" else p * e**0.5 / d  # |dy . v| is about sqrt(e)
            assert (x - x_want).abs().mean() < BF16 * term, name


GRADIENT_SIZES = [
    (2, 64, 64, 8), (2, 64, 64, 16), (2, 64, 64, 64), (2, 64, 64, 4), (2, 128, 128, 8), (2, 128, 128, 64),
    (2, 64, 128, 16), (2, 128, 64, 8), (2, 32, 32, 8), (2, 16, 16, 8), (3, 32, 32, 8), (3, 64, 64, 16), (1, 64, 64, 64),
    (4, 32, 32, 16), (4, 16, 16, 4),
]  # fmt: skip


@pytest.mark.parametrize(("p", "d", "e", "d_tile"), GRADIENT_SIZES)
def test_gradients(p, d, e, d_tile):
    check_gradients(p, d, e, d_tile)


@pytest.mark.parametrize("gates", ["none", "fast", "zero", "-20"])
@pytest.mark.parametrize(("d", "d_tile"), [(64, 8), (128, 16)])
def test_gradients_under_any_gates(gates, d, d_tile):
    check_gradients(2, d, d, d_tile, gates=gates)


@pytest.mark.parametrize(
    ("T", "chunk_size", "H", "Hk"),
    [(1, 64, 1, 1), (5, 1, 2, 1), (127, 64, 3, 1), (130, 1024, 2, 2), (1025, 512, 8, 1), (2100, 1024, 2, 2)],
)
def test_gradients_of_any_length(T, chunk_size, H, Hk):
    check_gradients(2, 64, 64, 8, T=T, chunk_size=chunk_size, H=H, Hk=Hk)


def test_gradients_in_float16():
    check_gradients(2, 64, 64, 8, dtype=torch.float16)


@pytest.mark.parametrize(("p", "dtype"), [
    (2, torch.bfloat16), (2, torch.float16), (3, torch.bfloat16), (4, torch.bfloat16), (4, torch.float16),
])  # fmt: skip
def test_gradients_of_large_inputs_stay_finite(p, dtype):
    """Elements of q and k up to 16 in size: scores of thousands, to the p-th power.

    Not p = 3 in fp16, whose sums are not normalised: y itself is beyond fp16.
    """
    q, k, v, log_g = inputs(1, 700, 2, 1, 32, 32, dtype, device="cuda")
    q, k = (16 * x / x.abs().max() for x in (q, k))
    y, got = gradients_of((q, k, v, log_g), torch.randn_like(q), p=p, chunk_size=256, d_tile=8)
    assert y.isfinite().all()
    assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize(("p", "d"), [(2, 64), (2, 128), (3, 32)])
def test_hopper_agrees_with_the_portable_kernels(p, d, monkeypatch):
    """Two implementations of one set of sums: they differ by roundings to bf16 alone."""
    from powerbench.kernels.power import hopper

    q, k, v, log_g = inputs(2, 1500, 4, 2, d, d, torch.bfloat16, device="cuda")
    dy = torch.randn_like(q)
    options = {"p": p, "chunk_size": 500, "d_tile": 8}  # sizes for which other tests compile too
    y, got = gradients_of((q, k, v, log_g), dy, **options)
    monkeypatch.setattr(hopper, "serves", lambda *_: False)
    want_y, want = gradients_of((q, k, v, log_g), dy, **options)
    assert error(y, want_y.double()) < BF16
    assert all(error(x, x_want.double()) < 2 * BF16 for x, x_want in zip(got, want, strict=True))


def test_error_is_that_of_softmax_in_bf16():
    """p = 2 against float64, beside SDPA on the same inputs against float64: within a factor of two."""
    q, k, v, log_g = inputs(1, 4096, 4, 4, 64, 64, torch.bfloat16, device="cuda")
    rows = torch.arange(0, 4096, 7, device="cuda")
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    softmax = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
    exact = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in heads_first), is_causal=True)
    from powerbench.kernels.power.reference import attention_rows

    y, _ = forward(q, k, v, log_g, p=2, chunk_size=1024, d_tile=8)
    want = attention_rows(q, k, v, log_g, rows, p=2, normalize=True)
    assert error(y[:, rows], want) < 2 * error(softmax, exact)


def test_training_memory_at_a_million_tokens():
    """T = 2^20, H = 8, d = 64, p = 2: the states and little else beside inputs, outputs and gradients."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB of device memory")
    T = 2**20
    tensors = [torch.randn(1, T, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    log_g = torch.nn.functional.logsigmoid(torch.randn(1, T, 8, device="cuda") + 6.9)
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    y, got = gradients_of((*tensors[:3], log_g), tensors[3], p=2)
    assert y.isfinite().all()
    assert all(x.isfinite().all() for x in got)
    assert torch.cuda.max_memory_allocated() - start < 24 * 2**30
