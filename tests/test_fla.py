"""Flash Linear Attention's contestants: how they are called, when they refuse, and their ledger."""

from __future__ import annotations

import os
import sys
import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from powerbench.cost import total
from powerbench.kernels import fla, ledger, packages
from powerbench.kernels.kernel import Inputs
from powerbench.problem import Case, Params, Problem

KERNELS = {kernel.name: kernel for kernel in fla.FLA_KERNELS}
LINEAR = ("fla-linear", "fla-simple-gla")


def make_case(name, pass_="fwd", **changes):
    fields = {"batch": 2, "seqlen": 70, "heads": 3, "kv_heads": 3, "head_dim": 16, "value_dim": 8}
    return Case(Problem(**{**fields, "dtype": "fp32", "gated": True, **changes}), name, Params(p=1), pass_)


def make_inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    log_g = torch.nn.functional.logsigmoid(normal(2, 70, 3) + 2)
    return Inputs(normal(2, 70, 3, 16), normal(2, 70, 3, 16), normal(2, 70, 3, 8), log_g, normal(2, 70, 3, 8))


def recurrent(q, k, v, log_g, scale):
    """Linear attention token by token: state = g * state + k v^T, y = scale * q^T state."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    rows = []
    for t in range(q.shape[1]):
        if log_g is not None:
            state = state * log_g[:, t, :, None, None].exp()
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        rows.append(scale * torch.einsum("bhd,bhde->bhe", q[:, t], state))
    return torch.stack(rows, 1)


@pytest.fixture
def fake_fla(monkeypatch):
    """FLA's two functions, by their arguments' names in 0.6.0: what they compute; records how they are called."""
    calls = []

    def chunk_linear_attn(q, k, v, *, scale=None, normalize=True):
        assert not normalize
        calls.append({"scale": scale, "normalize": normalize})
        return recurrent(q, k, v, None, scale), None

    def chunk_simple_gla(q, k, v, *, g=None, scale=None):
        calls.append({"scale": scale, "g": g})
        return recurrent(q, k, v, g, scale), None

    for name, content in (
        ("fla", {}),
        ("fla.ops", {}),
        ("fla.ops.linear_attn", {"chunk_linear_attn": chunk_linear_attn}),
        ("fla.ops.simple_gla", {"chunk_simple_gla": chunk_simple_gla}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def install(monkeypatch, **distributions):
    """Make exactly these distributions look installed, by name (- as _) and version."""

    def version(name):
        if name.replace("-", "_") in distributions:
            return distributions[name.replace("-", "_")]
        raise packages.PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", version)


@pytest.mark.parametrize("name", LINEAR)
def test_called_as_its_reference_expects(name, fake_fla, monkeypatch):
    install(monkeypatch, fla_core="0.6.0")
    kernel, case, inputs = KERNELS[name], make_case(name), make_inputs()
    assert kernel.unsupported(case, "cuda") is None
    assert kernel.version() == "0.6.0"
    assert kernel.resolve(case.problem, Params(), "fwd", "cuda") == Params(p=1)
    y = kernel.prepare(case)(inputs.q, inputs.k, inputs.v, inputs.log_g)
    expected = {"normalize": False} if name == "fla-linear" else {"g": inputs.log_g}
    assert fake_fla == [{"scale": 16**-0.5, **expected}]
    rows = torch.tensor([0, 5, 64, 69])
    torch.testing.assert_close(y[:, rows], kernel.reference(case, inputs, rows), rtol=1e-10, atol=1e-10)


def test_gates_are_told(fake_fla):
    assert not KERNELS["fla-linear"].gated
    assert KERNELS["fla-simple-gla"].gated
    case, inputs = make_case("fla-simple-gla", gated=False), make_inputs()
    y = KERNELS["fla-simple-gla"].prepare(case)(inputs.q, inputs.k, inputs.v, None)
    ungated = Inputs(inputs.q, inputs.k, inputs.v, None, inputs.dy)
    want = KERNELS["fla-simple-gla"].reference(case, ungated, torch.arange(70))
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", LINEAR)
def test_reasons(name, monkeypatch):
    kernel = KERNELS[name]
    assert kernel.unsupported(make_case(name), "cpu") == "needs a CUDA device"
    install(monkeypatch)
    expected = "flash-linear-attention is not installed (pip install powerbench[fla])"
    assert kernel.unsupported(make_case(name), "cuda") == expected
    assert kernel.version() is None
    install(monkeypatch, fla_core="0.6.0")
    grouped = kernel.unsupported(make_case(name, heads=4, kv_heads=2), "cuda")
    assert grouped == "no GQA: needs as many key heads as query heads, not 2 for 4"


@pytest.mark.parametrize("name", LINEAR)
def test_a_broken_install_is_a_reason(name, monkeypatch):
    install(monkeypatch, fla_core="0.6.0")
    monkeypatch.setitem(sys.modules, "fla", None)  # importing it raises
    reason = KERNELS[name].unsupported(make_case(name), "cuda")
    assert reason.startswith("flash-linear-attention does not import: ModuleNotFoundError: ")


@pytest.mark.parametrize(
    ("triton", "capability", "refused"),
    [
        ("3.6.0", (9, 0), True),
        ("3.4.0", (9, 0), True),
        ("3.7.0", (9, 0), True),
        ("3.7.1", (9, 0), False),
        ("3.3.1", (9, 0), False),
        ("3.6.0", (8, 0), False),
        ("3.6.0", (10, 0), False),
    ],
)
def test_gated_backward_on_hopper(triton, capability, refused, fake_fla, monkeypatch):
    install(monkeypatch, fla_core="0.6.0", triton=triton)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(fla, "find_spec", lambda name: None)
    gla, linear = KERNELS["fla-simple-gla"], KERNELS["fla-linear"]
    reason = gla.unsupported(make_case("fla-simple-gla", "fwd+bwd"), "cuda")
    expected = f"gated backward refuses Triton 3.4.0 to 3.7.0 on Hopper (here {triton})"
    assert reason == (expected if refused else None)
    assert gla.unsupported(make_case("fla-simple-gla", "fwd"), "cuda") is None
    assert gla.unsupported(make_case("fla-simple-gla", "bwd", gated=False), "cuda") is None
    assert linear.unsupported(make_case("fla-linear", "bwd"), "cuda") is None
    monkeypatch.setattr(fla, "find_spec", lambda name: object())  # tilelang is there: let FLA decide
    assert gla.unsupported(make_case("fla-simple-gla", "bwd"), "cuda") is None


def count_flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_ledger_is_what_torch_counts():
    """Chunks of C with a state in and a state out, in bmm's over B * H * N chunks; the scan has no products."""
    N, C, d, e = 2 * 3 * 5, 16, 16, 8
    q, k, v = torch.randn(N, C, d), torch.randn(N, C, d), torch.randn(N, C, e)
    state_in = torch.randn(N, d, e)
    for tensor in (q, k, v, state_in):
        tensor.requires_grad_()
    results = []

    def forward():
        results.extend(((q @ k.mT).tril() @ v + q @ state_in, k.mT @ v))

    def backward():
        torch.autograd.backward(results, [torch.ones_like(result) for result in results])

    def again():
        torch.matmul(k.detach().mT, v.detach())  # the states
        torch.matmul(q.detach(), k.detach().mT)  # the scores

    fwd = total(ledger.linear_launches(make_case("fla-linear", "fwd", seqlen=5 * C), C, False))
    bwd = total(ledger.linear_launches(make_case("fla-linear", "bwd", seqlen=5 * C), C, False))
    assert count_flops(forward) == fwd.executed_flops
    assert count_flops(backward) + count_flops(again) == bwd.executed_flops
    assert bwd.useful_flops == 2 * fwd.useful_flops


@pytest.mark.parametrize("seqlen", [1, 63, 64, 70, 200])
def test_useful_flops_count_each_causal_pair_of_a_chunk_once(seqlen):
    case = make_case("fla-linear", seqlen=seqlen)
    pairs = sum(i % 64 + 1 for i in range(seqlen))
    cost = total(KERNELS["fla-linear"].launches(case))
    assert cost.useful_flops == 2 * 3 * (seqlen * 4 * 16 * 8 + pairs * 2 * (16 + 8))
    chunks = -(-seqlen // 64)
    assert cost.executed_flops == 2 * 3 * chunks * (64 * 4 * 16 * 8 + 64 * 64 * 2 * (16 + 8))


def test_bytes_and_workspace():
    """B = 2, T = 70 (2 chunks), H = 3, d = 16, e = 8 in bf16, counted by hand."""
    q = k = 2 * 70 * 3 * 16 * 2
    v = y = 2 * 70 * 3 * 8 * 2
    gate, state = 2 * 70 * 3 * 4, 2 * 3 * 2 * 16 * 8 * 2
    gated = {launch.name: launch.cost.bytes for launch in _launches("fla-simple-gla")}
    assert gated == {
        "gate sums": 2 * gate,
        "states": k + v + gate + state,
        "output": q + k + v + gate + state + y,
        "states again": k + v + gate + 2 * state,
        "state gradients": q + y + gate + 2 * state,
        "dq and dk": q + k + v + y + gate + 4 * state + q + k + gate,
        "dv": q + k + y + gate + 2 * state + v,
        "gate gradient sums": 2 * gate,
    }
    ungated = {launch.name: launch.cost.bytes for launch in _launches("fla-linear")}
    assert ungated["states"] == k + v + state
    assert set(gated) - set(ungated) == {"gate sums", "gate gradient sums"}
    case = make_case("fla-simple-gla", dtype="bf16")
    assert KERNELS["fla-simple-gla"].workspace_bytes(case) == state + gate
    case = make_case("fla-linear", "bwd", dtype="bf16")
    assert KERNELS["fla-linear"].workspace_bytes(case) == 4 * state


def _launches(name):
    return KERNELS[name].launches(make_case(name, "fwd+bwd", dtype="bf16"))


def based_case(pass_="fwd", **changes):
    fields = {"batch": 2, "seqlen": 70, "heads": 3, "kv_heads": 3, "head_dim": 8, "value_dim": 20, "dtype": "bf16"}
    return Case(Problem(**{**fields, "gated": True, **changes}), "based-fla", Params(), pass_)


def test_based_is_the_taylor_polynomial():
    """Against 1 + s + s^2 / 2 written as products of features, token by token."""
    inputs = make_inputs()
    q, k, v = inputs.q[..., :8] / 8**0.5, inputs.k[..., :8], inputs.v

    def phi(x):
        return torch.cat((torch.ones_like(x[..., :1]), x, (x[..., :, None] * x[..., None, :]).flatten(-2) / 2**0.5), -1)

    state, norm, rows = 0, 0, []
    for t in range(70):
        state = state + phi(k[:, t])[..., :, None] * v[:, t, :, None, :]
        norm = norm + phi(k[:, t])
        rows.append(torch.einsum("bhr,bhre->bhe", phi(q[:, t]), state) / (phi(q[:, t]) * norm).sum(-1, keepdim=True))
    problem = Inputs(inputs.q[..., :8], k, v, None, inputs.dy)
    got = KERNELS["based-fla"].reference(based_case(), problem, torch.arange(70))
    torch.testing.assert_close(got, torch.stack(rows, 1), rtol=1e-10, atol=1e-10)


def test_based_is_called_with_its_defaults(fake_fla, monkeypatch):
    """Which are scale 1 / sqrt(d) and use_norm."""
    calls, module = [], types.ModuleType("fla.ops.based")
    module.fused_chunk_based = lambda q, k, v: calls.append((q, k, v)) or v
    monkeypatch.setitem(sys.modules, "fla.ops.based", module)
    install(monkeypatch, fla_core="0.6.0")
    kernel, inputs = KERNELS["based-fla"], make_inputs()
    assert kernel.unsupported(based_case(), "cuda") is None
    assert kernel.prepare(based_case())(inputs.q, inputs.k, inputs.v, inputs.log_g) is inputs.v
    assert calls == [(inputs.q, inputs.k, inputs.v)]


def test_based_reasons(monkeypatch):
    kernel = KERNELS["based-fla"]
    install(monkeypatch)
    assert kernel.unsupported(based_case(), "cuda").startswith("flash-linear-attention is not installed")
    install(monkeypatch, fla_core="0.6.0")
    assert kernel.unsupported(based_case(head_dim=64), "cuda").startswith("head dimension 64 > 16")
    assert kernel.unsupported(based_case(kv_heads=1), "cuda").startswith("no GQA")
    monkeypatch.setitem(sys.modules, "fla", None)
    assert kernel.unsupported(based_case(), "cuda").startswith("flash-linear-attention does not import")


def test_based_ledger_by_hand():
    """T = 70 in five chunks of 16, e = 20 in one block of 32; 8 + 36 rows are useful, 16 + 256 executed."""
    forward, backward = KERNELS["based-fla"].launches(based_case("fwd+bwd"))
    heads, pairs = 2 * 3, 4 * 136 + 21
    assert forward.cost.useful_flops == heads * (4 * 44 * 20 * 70 + 2 * 28 * pairs)
    of_state, scores, values = 2 * 272 * 32 * 80, 2 * 16 * 5 * 256, 2 * 32 * 5 * 256
    assert forward.cost.executed_flops == heads * (2 * of_state + scores + values)
    assert backward.cost.executed_flops == heads * (5 * of_state + 4 * scores + 3 * values)
    assert backward.cost.useful_flops == 2 * forward.cost.useful_flops + heads * 2 * 8 * pairs


def test_it_tunes_in_the_process_that_measures(fake_fla, monkeypatch):
    """What FLA chose before, on whatever else the GPU did then, is not read back; unless the user wants it."""
    install(monkeypatch, fla_core="0.6.0")
    case = make_case("fla-simple-gla")
    for kept, found in ((None, "0"), ("1", "1")):
        monkeypatch.delenv("FLA_CACHE_RESULTS", raising=False)
        if kept:
            monkeypatch.setenv("FLA_CACHE_RESULTS", kept)
        KERNELS["fla-simple-gla"].prepare(case)
        assert os.environ["FLA_CACHE_RESULTS"] == found
    monkeypatch.delenv("FLA_CACHE_RESULTS")
