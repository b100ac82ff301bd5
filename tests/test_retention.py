"""The authors' package: how it is called, when it is refused before it is imported, and its ledger."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from itertools import product

import pytest
import torch

from powerbench import gate
from powerbench.bench import make_inputs
from powerbench.kernels import retention
from powerbench.kernels.power.reference import chunked_form
from powerbench.problem import Case, Params, Problem
from tests.test_fla import install

KERNELS = {kernel.name: kernel for kernel in retention.RETENTION_KERNELS}
CPU = torch.device("cpu")
CLONES = "vidrial would clone CUTLASS at import: put its headers at "


def make_case(name="retention-triton", pass_="fwd", params=None, **changes):
    fields = {"batch": 2, "seqlen": 70, "heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 16, "dtype": "bf16"}
    problem = Problem(**{**fields, "gated": True, **changes})
    params = KERNELS[name].resolve(problem, params or Params(chunk_size=16), pass_, "cuda")
    return Case(problem, name, params, pass_)


@pytest.fixture
def fake(monkeypatch):
    """The package by its modules, functions and arguments' names in 1.0.7; records how it is called."""
    calls = []

    def power_retention(Q, K, V, log_G=None, *, deg=2, scale=None, chunk_size=None):
        calls.append({"deg": deg, "scale": scale, "chunk_size": chunk_size})
        return chunked_form(Q, K, V, log_G, p=deg, chunk_size=chunk_size, normalize=True)[0]

    class FirstColumn(torch.autograd.Function):
        """What the CUDA path does to y and, in place, to the gradient it is given."""

        @staticmethod
        def forward(ctx, y):
            y = y.clone()
            y[..., 0] = 1.0
            return y

        @staticmethod
        def backward(ctx, dy):
            dy[..., 0] = 0.0
            return dy

    def fused(Q, K, V, log_G=None, **options):
        V = V.clone()
        V[..., 0] = 1.0
        return FirstColumn.apply(power_retention(Q, K, V, log_G, **options))

    settings = types.SimpleNamespace(policy="PickAny")
    for name, content in (
        ("retention", {"power_retention": power_retention}),
        ("retention.vidrial", {"power_retention": fused}),
        ("vidrial", {}),
        ("vidrial.jit", {"settings": settings}),
        ("vidrial.jit.settings", {"settings": settings, "PickBest": "PickBest"}),
    ):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(retention, "find_spec", lambda name: None)
    monkeypatch.setattr(retention, "_nvcc", lambda: True)
    install(monkeypatch, retention="1.0.7", vidrial="0.2.1")
    return types.SimpleNamespace(calls=calls, settings=settings)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_called_as_its_reference_expects(name, pass_, fake):
    case, kernel = make_case(name, pass_), KERNELS[name]
    assert kernel.unsupported(case, "cuda") is None
    exact = Case(Problem(**{**_fields(case.problem), "dtype": "fp64"}), name, case.params, pass_)
    inputs = make_inputs(exact.problem, CPU, 0)
    dy = inputs.dy.clone()
    assert gate.check(kernel, exact, inputs, kernel.prepare(exact), 0).error < 1e-6  # the gates are float32
    assert {tuple(call.items()) for call in fake.calls} == {(("deg", 2), ("scale", None), ("chunk_size", 16))}
    assert torch.equal(inputs.dy, dy), "the other contestants are given the same dy"
    assert fake.settings.policy == ("PickBest" if name == "retention-cuda" else "PickAny")


def _fields(problem):
    return {name: getattr(problem, name) for name in problem.__struct_fields__}


def test_the_first_column_is_left_out_of_the_cuda_path_alone(fake):
    inputs = make_inputs(make_case(dtype="fp64").problem, CPU, 0)
    rows = torch.arange(70)
    whole, less = (KERNELS[name].reference(make_case(name), inputs, rows) for name in KERNELS)
    assert torch.equal(whole[..., 1:], less[..., 1:])
    assert bool((less[..., 0] == 0).all())
    assert bool((whole[..., 0] != 0).any())


def test_versions(monkeypatch):
    install(monkeypatch)
    assert [kernel.version() for kernel in KERNELS.values()] == [None, None]
    install(monkeypatch, retention="1.0.7")
    assert [kernel.version() for kernel in KERNELS.values()] == ["1.0.7", None]
    install(monkeypatch, retention="1.0.7", vidrial="0.2.1")
    assert [kernel.version() for kernel in KERNELS.values()] == ["1.0.7", "1.0.7 on vidrial 0.2.1"]


def test_resolve():
    problem = make_case(seqlen=4096).problem
    for name, pass_ in product(KERNELS, ("fwd", "bwd", "fwd+bwd")):
        resolve = KERNELS[name].resolve
        assert resolve(problem, Params(), pass_, "cuda") == Params(2, chunk_size=1024)
        assert resolve(problem, Params(4, chunk_size=9999), pass_, "cuda") == Params(4, chunk_size=4096)
    decode = KERNELS["retention-triton"].resolve
    assert decode(problem, Params(), "decode", "cuda") == Params(2, chunk_size=512)
    assert decode(problem, Params(2, chunk_size=9999), "decode", "cuda") == Params(2, chunk_size=9999)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"params": Params(p=3)}, "p = 3: the package always normalises, so it has even degrees only"),
        ({"head_dim": 24, "value_dim": 24}, "head dimension 24 is none of 16, 32, 64, 128, 256"),
        ({"value_dim": 32}, "value dimension 32 must equal head dimension 16"),
        ({"dtype": "fp64"}, "fp64 is not supported (bf16, fp16, fp32)"),
    ],
)
def test_reasons(name, changes, reason, fake):
    assert KERNELS[name].unsupported(make_case(name, **changes), "cuda") == reason


def test_degrees_of_the_triton_path(fake):
    states, one_chunk = Params(p=4, chunk_size=16), Params(p=4, chunk_size=70)
    assert "degree 2 only" in KERNELS["retention-triton"].unsupported(make_case(params=states), "cuda")
    assert KERNELS["retention-triton"].unsupported(make_case(params=one_chunk), "cuda") is None
    assert KERNELS["retention-cuda"].unsupported(make_case("retention-cuda", params=states), "cuda") is None


def test_what_is_missing_is_named(fake, monkeypatch):
    case = make_case("retention-cuda")
    monkeypatch.setattr(retention, "_nvcc", lambda: False)
    assert "nvcc" in KERNELS["retention-cuda"].unsupported(case, "cuda")
    install(monkeypatch, retention="1.0.7")
    assert KERNELS["retention-cuda"].unsupported(case, "cuda") == "vidrial is not installed (pip install vidrial)"
    install(monkeypatch)
    assert KERNELS["retention-triton"].unsupported(case, "cuda") == (
        "retention is not installed (pip install powerbench[peers])"
    )
    assert KERNELS["retention-triton"].unsupported(case, "cpu") == "needs a CUDA device"


@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_cloned(name, fake, monkeypatch, tmp_path):
    """Both import vidrial, where it is installed; it must not be imported before CUTLASS is there."""
    home = tmp_path / "vidrial"
    home.mkdir()
    spec = ModuleSpec("vidrial", None, is_package=True)
    spec.submodule_search_locations = [str(home)]
    monkeypatch.setattr(retention, "find_spec", lambda name: spec)
    monkeypatch.setattr(retention, "import_problem", lambda *names: pytest.fail("imported"))
    assert KERNELS[name].unsupported(make_case(name), "cuda").startswith(CLONES)
    monkeypatch.setattr(retention, "import_problem", lambda *names: None)
    (home / "cutlass").mkdir()
    assert KERNELS[name].unsupported(make_case(name), "cuda") is None


@pytest.mark.parametrize(("chunk", "gated"), [(16, True), (16, False), (512, True)])
def test_inference_is_called_with_state_and_cache(chunk, gated, fake, monkeypatch):
    """The arguments are those of 1.0.7; what is moved into the state is right again after v has changed."""
    moved = []

    def power_retention_inference(
        Q, K, V, log_G=None, initial_state=None, sum_of_keys=None, deg=2, scale=None, switch_over_seq_len=512
    ):
        before = () if initial_state is None else initial_state  # here a state is the tokens themselves
        new = (K, V, gates_or_zero(log_G, K))
        k, v, g = (torch.cat([*(part[i] for part in before), x], 1) for i, x in enumerate(new))
        y = chunked_form(Q.expand(-1, k.shape[1], -1, -1), k, v, g, p=deg, chunk_size=8, normalize=True)[0][:, -1:]
        if K.shape[1] < switch_over_seq_len:
            return y, initial_state, sum_of_keys
        moved.append(K.shape[1])
        return y, Parts([(k, v, g)]), K.new_zeros(1)

    monkeypatch.setattr(sys.modules["retention"], "power_retention_inference", power_retention_inference, raising=False)
    kernel, problem = KERNELS["retention-triton"], make_case(dtype="fp32", gated=gated).problem
    case = Case(problem, kernel.name, kernel.resolve(problem, Params(2, chunk_size=chunk), "decode", "cuda"), "decode")
    assert kernel.refusal(case, "cuda") is None
    inputs = make_inputs(case.problem, CPU, 0, decoding=True)
    decoder = kernel.decoding.prepare(case, inputs)
    rows = torch.tensor([69])
    want = kernel.reference(case, replace(inputs, q=inputs.q.expand(-1, 70, -1, -1)), rows)
    assert sum(moved) == {16: 62, 512: 0}[chunk]
    for _ in range(2):
        torch.testing.assert_close(decoder.step().double(), want, rtol=1e-4, atol=1e-5)
    inputs.v.neg_()
    decoder.reset()
    torch.testing.assert_close(decoder.step().double(), -want, rtol=1e-4, atol=1e-5)


class Parts(list):
    """A fake state, as large as its tokens."""

    def copy_(self, other):
        self[:] = other


def gates_or_zero(gates, k):
    return k.new_zeros(k.shape[:3]) if gates is None else gates


def test_ledger_of_decoding_by_hand():
    """B = 2, H = 4, Hk = 2, d = e = 16, bf16: D is 136 (SPOW), 256 in their kernels; 7 tokens wait in a cache of 16."""
    case = make_case("retention-triton", "decode", Params(2, chunk_size=16))
    decoding = KERNELS["retention-triton"].decoding
    (step,) = decoding.launches(case)
    assert step.cost.useful_flops == 2 * 4 * (2 * 136 * 16 + 8 * 2 * 32)
    assert step.cost.executed_flops - step.cost.useful_flops == 2 * 4 * 2 * (256 - 136) * 16
    state, token = 2 * 256 * (16 * 2 + 4), 2 * (32 * 2 + 4)
    assert decoding.sequence_bytes(case) == state + 16 * token
    assert step.cost.bytes == 2 * (state + 10 * token + 4 * 32 * 2)


def test_what_it_does_not_decode(fake):
    whole = make_case("retention-triton", "decode", Params(4, chunk_size=70))
    assert "degree 2 only" in KERNELS["retention-triton"].refusal(whole, "cuda")
    plain = make_case("retention-triton", "decode", Params(2, chunk_size=1))
    assert KERNELS["retention-triton"].refusal(plain, "cuda").endswith("chunk size 1 is below 16")
    cuda = make_case("retention-cuda", "decode")
    assert KERNELS["retention-cuda"].refusal(cuda, "cuda") == "retention-cuda does not decode"


def test_a_broken_install_is_a_reason(fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "retention", None)  # importing it raises
    reason = KERNELS["retention-triton"].unsupported(make_case(), "cuda")
    assert reason.startswith("retention does not import: ModuleNotFoundError: ")


def test_ledger_by_hand():
    """B = 2, T = 64, H = 4, Hk = 2, d = e = 16, four chunks of 16; D is 136 (SPOW), 256 in their Triton kernels, 160 in
    vidrial's tiles of 4."""
    forward, backward = KERNELS["retention-triton"].launches(make_case(pass_="fwd+bwd", seqlen=64))
    pairs, useful_pairs = 2 * 4 * 4 * 128 * 64, 2 * 4 * 4 * 136
    assert forward.cost.executed_flops == 2 * 32 * pairs + 2 * 256 * 16 * (128 * 4 + 128 * 2)
    assert forward.cost.useful_flops == 2 * 32 * useful_pairs + 2 * 136 * 16 * (96 * 4 + 96 * 2)
    assert backward.cost.executed_flops == 2 * forward.cost.executed_flops + 4 * 16 * pairs
    (cuda,) = KERNELS["retention-cuda"].launches(make_case("retention-cuda", seqlen=64))
    assert forward.cost.executed_flops - cuda.cost.executed_flops == 2 * (256 - 160) * 16 * (128 * 6)
    assert cuda.cost.useful_flops == forward.cost.useful_flops


def test_one_chunk_has_no_state():
    (whole,) = KERNELS["retention-triton"].launches(make_case(params=Params(chunk_size=70)))
    problem = make_case().problem
    assert whole.cost.useful_flops == 2 * 32 * 2 * 4 * (70 * 71 // 2)
    assert whole.cost.bytes == 2 * problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
