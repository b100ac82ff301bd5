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
    from powerbench.kernels.power.triton_backend import triton_forward

    return triton_forward(
        q, k, v, log_g, p=p, chunk_size=chunk_size, d_tile=d_tile, scale=scale or q.shape[-1] ** -0.5,
        normalize=p % 2 == 0, initial_state=state, return_state=return_state,
    )  # fmt: skip


SIZES = [(p, 64, 64, d_tile) for p in (1, 2) for d_tile in (1, 2, 4, 8, 16, 32, 64)] + [
    (1, 128, 128, 128), (1, 16, 128, 16), (2, 128, 128, 16), (2, 128, 64, 128), (2, 128, 32, 1), (2, 16, 16, 4),
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
