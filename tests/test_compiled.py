"""Power attention in plain PyTorch: its mathematics uncompiled, compiled once, its ledger and its reasons."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from powerbench import gate
from powerbench.bench import make_inputs
from powerbench.kernels import compiled
from powerbench.kernels.power.feature_map import feature_map
from powerbench.problem import Case, Params, Problem

KERNELS = {kernel.name: kernel for kernel in compiled.COMPILED_KERNELS}
CPU = torch.device("cpu")


def make_case(name, pass_="fwd+bwd", params=None, **changes):
    fields = {"batch": 2, "seqlen": 70, "heads": 4, "kv_heads": 2, "head_dim": 8, "value_dim": 6, "dtype": "fp64"}
    problem = Problem(**{**fields, "gated": True, **changes})
    params = KERNELS[name].resolve(problem, params or Params(p=2, chunk_size=16), pass_, "cpu")
    return Case(problem, name, params, pass_)


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(compiled, "compiled", lambda function: function)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("p", "gated", "seqlen"),
    [(1, True, 70), (2, True, 70), (2, False, 64), (2, True, 1), (3, False, 70), (4, True, 70)],
)
def test_passes_the_gate(name, p, gated, seqlen, uncompiled):
    pass_ = "fwd" if seqlen == 1 else "fwd+bwd"  # of one key the weight is 1: gradients of 0 have no relative error
    case = make_case(name, pass_, Params(p=p, d_tile=4, chunk_size=16), gated=gated, seqlen=seqlen)
    inputs, kernel = make_inputs(case.problem, CPU, 0), KERNELS[name]
    assert kernel.unsupported(case, "cpu") is None
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < 1e-6  # the multiplicities are float32


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("dtype", "p"), [("fp32", 2), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("bf16", 4)])
def test_in_other_dtypes(name, dtype, p, uncompiled):
    case = make_case(name, params=Params(p=p, chunk_size=64), dtype=dtype, seqlen=600, head_dim=16, value_dim=16)
    inputs, kernel = make_inputs(case.problem, CPU, 0), KERNELS[name]
    assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < gate.tolerance(case)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_phi_is_the_feature_map_and_its_gradients_add_up_in_float32(p):
    """In bfloat16 the sum over the rows that hold a coordinate loses it, and torch's compiled code the heap."""
    table = feature_map(8, p, 2)
    indices, multiplicity = torch.from_numpy(table.indices).long(), torch.from_numpy(table.multiplicity).double()
    q, k = (torch.randn(5, 8, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (0, 1))
    phi = compiled._phi(q.requires_grad_(), indices)
    assert phi.dtype == torch.float32
    want = (q.double() * k.double()).sum(-1) ** p
    got = (phi.double() * compiled._phi(k.double(), indices) * multiplicity).sum(-1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(phi.sum(), q)
    exact = q.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(compiled._phi(exact, indices).sum(), exact)
    torch.testing.assert_close(gradient, want.bfloat16(), rtol=2**-8, atol=1e-6)


def test_compiles_whole(uncompiled, monkeypatch):
    """Without a graph break; what a compiler makes of it is torch's own affair, and slow to find out on a CPU."""
    monkeypatch.setattr(compiled, "compiled", lambda f: torch.compile(f, backend="eager", fullgraph=True))
    for name, kernel in KERNELS.items():
        case = make_case(name)
        inputs = make_inputs(case.problem, CPU, 0)
        assert gate.check(kernel, case, inputs, kernel.prepare(case), 0).error < 1e-6


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("p", [1, 2])
def test_executed_flops_are_what_torch_counts(name, p, uncompiled):
    """Forward, and backward two gradients for each product."""
    case = make_case(name, params=Params(p=p, chunk_size=16))
    inputs, kernel = make_inputs(case.problem, CPU, 0), KERNELS[name]
    q, k, v = (t.requires_grad_() for t in (inputs.q, inputs.k, inputs.v))
    log_g = inputs.log_g.requires_grad_()
    forward, backward = kernel.launches(case)
    with FlopCounterMode(display=False) as counter:
        y = kernel.prepare(case)(q, k, v, log_g)
    assert counter.get_total_flops() == forward.cost.executed_flops
    with FlopCounterMode(display=False) as counter:
        y.backward(inputs.dy)
    assert counter.get_total_flops() == backward.cost.executed_flops
    assert forward.cost.useful_flops <= forward.cost.executed_flops
    assert backward.cost.useful_flops <= backward.cost.executed_flops


def test_useful_work_is_that_of_the_other_rows():
    from powerbench.kernels.power.contestants import POWER_KERNELS

    case = make_case("compile-chunked")
    ours = POWER_KERNELS[1].launches(case)
    theirs = KERNELS["compile-chunked"].launches(case)
    assert sum(launch.cost.useful_flops for launch in ours) == sum(launch.cost.useful_flops for launch in theirs)


def test_reasons(monkeypatch):
    kernel = KERNELS["compile-chunked"]
    assert kernel.unsupported(make_case("compile-chunked", dtype="fp16"), "cpu").startswith("fp16 is not supported")
    assert "at most 4" in kernel.unsupported(make_case("compile-chunked", params=Params(p=7)), "cpu")
    assert "does not divide" in kernel.unsupported(make_case("compile-chunked", params=Params(d_tile=7)), "cpu")
    if not torch.cuda.is_available():
        assert kernel.unsupported(make_case("compile-chunked"), "cuda") == "needs a CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert kernel.unsupported(make_case("compile-chunked"), "cuda").startswith("triton is not installed")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in kernel.unsupported(make_case("compile-chunked"), "cpu")
