"""Softmax contestants: torch's backends and the FlashAttention packages, their reference and their ledger."""

from __future__ import annotations

import sys
import types
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from powerbench.kernels import ledger, packages, softmax
from powerbench.kernels.kernel import TORCH_DTYPES, Inputs
from powerbench.problem import Case, Params, Problem

KERNELS = {kernel.name: kernel for kernel in softmax.SOFTMAX_KERNELS}
GPU_ROWS = [name for name in KERNELS if name != "sdpa-cpu"]
FLASH_ROWS = {
    "flash-2": "flash-attn is not installed (pip install flash-attn --no-build-isolation)",
    "flash-3": "fa3-fwd is not installed (pip install powerbench[flash])",
    "flash-4": "flash-attn-4 is not installed (pip install powerbench[flash])",
}


def make_case(name="sdpa-cpu", pass_="fwd", **changes):
    fields = {"batch": 2, "seqlen": 70, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16}
    return Case(Problem(**{**fields, "dtype": "fp32", "gated": True, **changes}), name, Params(), pass_)


def make_inputs(problem, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(TORCH_DTYPES[problem.dtype])

    B, T, H, Hk = problem.batch, problem.seqlen, problem.heads, problem.kv_heads
    d, e = problem.head_dim, problem.value_dim
    return Inputs(normal(B, T, H, d), normal(B, T, Hk, d), normal(B, T, Hk, e), None, normal(B, T, H, e))


def plain(q, k, v):
    """Causal softmax attention, dense, one einsum a line."""
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).tril()
    return torch.einsum("bhij,bjhe->bihe", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)


def with_gradients(function, tensors, dy):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def relative_error(got, want):
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize(("heads", "kv_heads", "value_dim"), [(4, 4, 16), (4, 2, 8), (3, 1, 16)])
def test_reference_is_attention_at_the_rows(heads, kv_heads, value_dim):
    case = make_case(heads=heads, kv_heads=kv_heads, value_dim=value_dim, dtype="fp64")
    inputs = make_inputs(case.problem)
    rows = torch.tensor([0, 1, 33, 69])
    got = with_gradients(
        lambda q, k, v: softmax.softmax_reference(case, Inputs(q, k, v, None, inputs.dy), rows),
        (inputs.q, inputs.k, inputs.v),
        inputs.dy[:, rows],
    )
    want = with_gradients(lambda *qkv: plain(*qkv)[:, rows], (inputs.q, inputs.k, inputs.v), inputs.dy[:, rows])
    assert got[0].shape == (2, 4, heads, value_dim)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa_cpu_forward_and_gradients(dtype, kv_heads):
    case = make_case(pass_="fwd+bwd", kv_heads=kv_heads, dtype=dtype)
    kernel, inputs = KERNELS["sdpa-cpu"], make_inputs(case.problem)
    assert kernel.unsupported(case, "cpu") is None
    forward = kernel.prepare(case)
    tensors = (inputs.q, inputs.k, inputs.v)
    got = with_gradients(lambda q, k, v: forward(q, k, v, None), tensors, inputs.dy)
    want = with_gradients(
        lambda q, k, v: kernel.reference(case, Inputs(q, k, v, None, inputs.dy), torch.arange(70)),
        [tensor.double() for tensor in tensors],
        inputs.dy.double(),
    )
    tolerance = {"fp64": 1e-12, "fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-3}[dtype]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == TORCH_DTYPES[dtype]
        assert a.shape == b.shape
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_sdpa_cpu_runs_the_fused_kernel_on_views(kv_heads, monkeypatch):
    case = make_case(kv_heads=kv_heads)
    inputs = make_inputs(case.problem)
    seen = []
    original = softmax.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((q, k, v, options))
        return original(q, k, v, **options)

    monkeypatch.setattr(softmax, "scaled_dot_product_attention", spy)
    y = KERNELS["sdpa-cpu"].prepare(case)(inputs.q.requires_grad_(), inputs.k, inputs.v, None)
    names, node = [], y.grad_fn
    while node is not None:
        names.append(node.name())
        node = node.next_functions[0][0] if node.next_functions else None
    assert any("FlashAttentionForCpu" in name for name in names)
    ((q, k, v, options),) = seen
    assert [t.data_ptr() for t in (q, k, v)] == [t.data_ptr() for t in (inputs.q, inputs.k, inputs.v)]
    assert q.shape == (2, 4, 70, 16)
    assert options == {"is_causal": True, "enable_gqa": kv_heads != 4}


def test_sdpa_cpu_reports_torchs_own_reason():
    reason = KERNELS["sdpa-cpu"].unsupported(make_case(value_dim=8), "cpu")
    assert reason is not None
    assert "same last dimension" in reason
    assert "Triggered internally" not in reason
    assert "\n" not in reason


@pytest.mark.filterwarnings("ignore:.*")  # torch gives its reasons as warnings
def test_sdpa_never_falls_back_to_another_backend():
    case = make_case(value_dim=8)
    inputs = make_inputs(case.problem)
    forward = KERNELS["sdpa-cpu"].prepare(case)
    with pytest.raises(RuntimeError, match="No available kernel"):
        forward(inputs.q, inputs.k, inputs.v, None)


def test_reason_leaves_out_headings_and_other_backends(monkeypatch):
    """The messages are those of torch's sdp_utils.cpp for fp32 with only the flash backend allowed."""

    def choice(*_, **options):
        assert options == {"is_causal": True, "enable_gqa": True}
        for message in (
            "Memory efficient kernel not used because: (Triggered internally at sdp_utils.cpp:1.)",
            "Memory Efficient attention has been runtime disabled. (Triggered internally at sdp_utils_cpp.h:5.)",
            "Flash attention kernel not used because: (Triggered internally at sdp_utils.cpp:2.)",
            "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got Query dtype: float. "
            "(Triggered internally at sdp_utils_cpp.h:9.)",
            "cuDNN attention kernel not used because: (Triggered internally at sdp_utils.cpp:3.)",
            "cuDNN attention has been runtime disabled. (Triggered internally at sdp_utils.cpp:4.)",
        ):
            warnings.warn(message, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    reason = softmax._torch_refusal(SDPBackend.FLASH_ATTENTION, make_case("sdpa-flash"), "cpu")
    assert reason == "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got Query dtype: float."


def test_other_errors_of_the_selection_are_left_to_the_run(monkeypatch):
    def choice(*_, **__):
        raise RuntimeError("CUDA error: something else")

    monkeypatch.setattr(torch, "_fused_sdp_choice", choice)
    assert softmax._torch_refusal(SDPBackend.FLASH_ATTENTION, make_case(), "cpu") is None


@pytest.mark.parametrize("name", GPU_ROWS)
def test_gpu_rows_on_the_cpu(name):
    kernel = KERNELS[name]
    assert kernel.unsupported(make_case(name), "cpu") == "needs a CUDA device"
    assert kernel.resolve(make_case().problem, Params(), "fwd", "cuda") == Params()
    assert kernel.takes == frozenset()
    assert not kernel.gated


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("name", ["sdpa-flash", "sdpa-cudnn", "sdpa-efficient"])
def test_sdpa_rows_without_a_gpu(name):
    assert KERNELS[name].unsupported(make_case(name), "cuda") == "needs a CUDA device"


def test_sdpa_cpu_on_a_gpu():
    assert KERNELS["sdpa-cpu"].unsupported(make_case(), "cuda") == "runs on the CPU only"
    assert KERNELS["sdpa-cpu"].version() == torch.__version__


def install(monkeypatch, *distributions):
    """Make exactly these distributions look installed."""

    def version(name):
        if name in distributions:
            return "9.9"
        raise packages.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", version)


@pytest.mark.parametrize("name", FLASH_ROWS)
def test_flash_is_not_installed(name, monkeypatch):
    install(monkeypatch)
    assert KERNELS[name].unsupported(make_case(name, dtype="bf16"), "cuda") == FLASH_ROWS[name]
    assert KERNELS[name].version() is None


class FakeFlash(types.ModuleType):
    """A module with a flash_attn_func that checks its call and returns y, alone or with a log-sum-exp."""

    def __init__(self, name, returns_tuple):
        super().__init__(name)
        self.returns_tuple = returns_tuple
        self.calls = []

    def flash_attn_func(self, q, k, v, **options):
        self.calls.append((q, k, v, options))
        y = plain(q, k, v)
        return (y, torch.zeros(2, 4, 70)) if self.returns_tuple else y


@pytest.mark.parametrize(
    ("name", "distribution", "module", "returns_tuple"),
    [
        ("flash-2", "flash-attn", "flash_attn", False),
        ("flash-3", "fa3-fwd", "fa3_fwd_interface", False),
        ("flash-3", "flash-attn-3", "flash_attn_interface", True),
        ("flash-4", "flash-attn-4", "flash_attn.cute", True),
    ],
)
def test_flash_calls_its_package(name, distribution, module, returns_tuple, monkeypatch):
    fake = FakeFlash(module, returns_tuple)
    monkeypatch.setitem(sys.modules, module, fake)
    if "." in module:
        monkeypatch.setitem(sys.modules, module.split(".")[0], types.ModuleType(module.split(".")[0]))
    install(monkeypatch, distribution)
    kernel, case = KERNELS[name], make_case(name, dtype="bf16")
    assert kernel.unsupported(case, "cuda") is None
    assert kernel.version() == "9.9"
    inputs = make_inputs(case.problem)
    y = kernel.prepare(case)(inputs.q, inputs.k, inputs.v, torch.zeros(2, 70, 2))
    ((q, k, v, options),) = fake.calls
    assert (q, k, v) == (inputs.q, inputs.k, inputs.v)  # the same tensors: [B, T, H, d], untouched
    assert options == {"causal": True}  # the packages scale by 1/sqrt(d) by default
    assert relative_error(y, kernel.reference(case, inputs, torch.arange(70))) < 2e-2


@pytest.mark.parametrize(
    ("name", "distribution", "changes", "reason"),
    [
        ("flash-2", "flash-attn", {"dtype": "fp32"}, "fp32 is not supported by flash-attn (bf16 or fp16)"),
        ("flash-2", "flash-attn", {"head_dim": 512, "value_dim": 512}, "head dimension 512 > 256"),
        ("flash-2", "flash-attn", {"value_dim": 32}, "value dimension 32 must equal head dimension 16"),
        ("flash-3", "fa3-fwd", {"dtype": "fp16"}, "fp16 is not supported by fa3-fwd (bf16)"),
        ("flash-3", "fa3-fwd", {"pass_": "fwd+bwd"}, "backward is not in fa3-fwd (forward only)"),
        ("flash-3", "flash-attn-3", {"pass_": "bwd", "dtype": "fp16"}, "flash-attn-3 does not import: "),
        ("flash-4", "flash-attn-4", {"dtype": "fp64"}, "fp64 is not supported by flash-attn-4 (bf16 or fp16)"),
        ("flash-4", "flash-attn-4", {}, "flash-attn-4 does not import: ModuleNotFoundError: "),
    ],
)
def test_flash_reasons(name, distribution, changes, reason, monkeypatch):
    install(monkeypatch, distribution)
    got = KERNELS[name].unsupported(make_case(name, **{"dtype": "bf16", **changes}), "cuda")
    assert got.startswith(reason)
    assert "\n" not in got


def test_flash_3_prefers_the_complete_package(monkeypatch):
    install(monkeypatch, "flash-attn-3", "fa3-fwd")
    assert softmax.installed(softmax.FLASH_3).module == "flash_attn_interface"


def count_flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(("d", "e"), [(16, 16), (16, 24)])
def test_forward_ledger_is_what_torch_counts(d, e):
    case = make_case(head_dim=d, value_dim=e)
    q, k, v = torch.randn(8, 70, d), torch.randn(8, 70, d), torch.randn(8, 70, e)  # B * H = 8

    def dense():
        return torch.softmax(q @ k.mT, -1) @ v

    def causal():
        for i in range(70):
            torch.softmax(q[:, i : i + 1] @ k[:, : i + 1].mT, -1) @ v[:, : i + 1]

    (forward,) = ledger.softmax_launches(case, ledger.Tile(70, 70, padded=True))
    assert count_flops(dense) == forward.cost.executed_flops == 2 * (d + e) * 70 * 70 * 8
    assert count_flops(causal) == forward.cost.useful_flops


def test_backward_ledger_is_what_torch_counts():
    """Recomputing the scores and the four products of autograd: 2.5 times the forward where d = e."""
    q, k, v = (torch.randn(8, 70, 16, requires_grad=True) for _ in range(3))
    weights = torch.softmax(q @ k.mT, -1)
    y = weights @ v

    def backward():
        torch.matmul(q.detach(), k.detach().mT)
        y.sum().backward()

    tile = ledger.Tile(70, 70, padded=True)
    forward, grad = ledger.softmax_launches(make_case(pass_="fwd+bwd"), tile)
    assert count_flops(backward) == grad.cost.executed_flops
    assert 2 * grad.cost.useful_flops == 5 * forward.cost.useful_flops
    assert ledger.softmax_launches(make_case(pass_="bwd"), tile) == (grad,)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("seqlen", "tile_q", "tile_k"), [(1, 4, 8), (8, 4, 8), (29, 4, 8), (29, 8, 4), (100, 7, 13)])
def test_covered_pairs_against_a_walk_over_the_tiles(seqlen, tile_q, tile_k, padded):
    pairs = 0
    for i in range(0, seqlen, tile_q):
        for j in range(0, seqlen, tile_k):
            if j <= min(i + tile_q, seqlen) - 1:  # the tile holds a causal pair
                rows = tile_q if padded else min(tile_q, seqlen - i)
                pairs += rows * (tile_k if padded else min(tile_k, seqlen - j))
    assert ledger.covered_pairs(seqlen, ledger.Tile(tile_q, tile_k, padded)) == pairs
    assert pairs >= seqlen * (seqlen + 1) // 2


@pytest.mark.parametrize(("seqlen", "queries"), [(191, 32), (192, 64), (767, 64), (768, 256)])
def test_cpu_tile(seqlen, queries):
    assert ledger.cpu_tile(seqlen) == (queries, 512, False)
    (launch,) = KERNELS["sdpa-cpu"].launches(make_case(seqlen=seqlen))
    covered = ledger.covered_pairs(seqlen, ledger.cpu_tile(seqlen))
    assert launch.cost.executed_flops == 2 * 4 * covered * 2 * 32


def test_bytes():
    """B = 2, T = 70, H = 4, Hk = 2, d = 16, e = 8 in bf16, counted by hand."""
    case = make_case("flash-4", "fwd+bwd", value_dim=8, dtype="bf16")
    q, k, v, y, lse = 2 * 70 * 4 * 16 * 2, 2 * 70 * 2 * 16 * 2, 2 * 70 * 2 * 8 * 2, 2 * 70 * 4 * 8 * 2, 2 * 70 * 4 * 4
    forward, backward = KERNELS["flash-4"].launches(case)
    assert (forward.name, backward.name) == ("forward", "backward")
    assert forward.cost.bytes == q + k + v + y + lse
    assert backward.cost.bytes == 2 * (q + k + v + y) + lse


def test_workspace():
    rows = 2 * 70 * 4
    assert KERNELS["sdpa-flash"].workspace_bytes(make_case("sdpa-flash")) == rows * 4
    ungrouped = KERNELS["sdpa-flash"].workspace_bytes(make_case("sdpa-flash", "bwd", kv_heads=4))
    assert ungrouped == rows * (2 * 4 + 16 * 4)
    grouped = KERNELS["sdpa-flash"].workspace_bytes(make_case("sdpa-flash", "bwd"))
    assert grouped == ungrouped + rows * 32 * 4
    assert KERNELS["sdpa-cpu"].workspace_bytes(make_case(pass_="bwd")) == rows * 4 + rows * 16 * 4
