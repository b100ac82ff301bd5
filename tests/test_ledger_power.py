"""Power attention's ledger, counted: executed FLOPs against torch's counter, useful ones against the mathematics."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from powerbench.cost import total
from powerbench.kernels.linear import LINEAR_KERNELS
from powerbench.kernels.power.contestants import POWER_KERNELS
from powerbench.kernels.power.cost import causal_pairs, chunk_lengths
from powerbench.kernels.power.feature_map import feature_map, spow_dim
from powerbench.problem import Case, Params, Problem
from powerbench.runner import make_inputs

KERNELS = {kernel.name: kernel for kernel in (*POWER_KERNELS, *LINEAR_KERNELS)}
PROBLEM = Problem(2, 300, 4, 2, 16, 8, "fp32", True)


def case(name="power-torch", problem=PROBLEM, pass_="fwd", **params):
    params = {"p": 2, "d_tile": 4, "chunk_size": 64} | params
    return Case(problem, name, Params(**params), pass_)


def counted(case, backward=False):
    inputs = make_inputs(case.problem, torch.device("cpu"), 0)
    leaves = [t if t is None else t.requires_grad_(backward) for t in (inputs.q, inputs.k, inputs.v, inputs.log_g)]
    forward = KERNELS[case.kernel].prepare(case)
    with FlopCounterMode(display=False) as counter:
        y = forward(*leaves)
        if backward:
            torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], inputs.dy)
    return counter.get_total_flops()


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [64, 100, 300, 512])
def test_executed_flops_of_the_torch_backend_are_what_torch_counts(p, chunk_size):
    problem = Problem(2, 300, 4, 2, 16, 8, "fp32", True)
    one = case(problem=problem, p=p, d_tile=16 if p == 1 else 4, chunk_size=chunk_size)
    launches = KERNELS["power-torch"].launches(one)
    assert total(launches).executed_flops == counted(one)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("chunk_size", [64, 512])
def test_executed_flops_of_its_backward_include_what_is_recomputed(chunk_size, gated):
    problem = Problem(2, 300, 4, 2, 16, 8, "fp32", gated)
    one = case(problem=problem, pass_="fwd+bwd", chunk_size=chunk_size)
    assert total(KERNELS["power-torch"].launches(one)).executed_flops == counted(one, backward=True)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_useful_flops_are_those_of_the_textbook_loops(p):
    """Count attention row by row, and the states token by token with D = SPOW, for every chunk that needs them."""
    d, e, chunk, T = 8, 4, 10, 35
    indices = torch.from_numpy(feature_map(d, p, 1).indices).long()
    q, k, v = torch.randn(3, T, d)[..., :].unbind()
    v = v[:, :e]
    with FlopCounterMode(display=False) as counter:
        for start in range(0, T, chunk):
            end = min(start + chunk, T)
            for i in range(start, end):
                scores = q[i : i + 1] @ k[start : i + 1].T
                scores @ v[start : i + 1]
                if end < T:
                    k[i][indices].prod(1)[:, None] @ v[i : i + 1]
                if start:
                    q[i][indices].prod(1)[None] @ torch.zeros(len(indices), e)
    problem = Problem(1, T, 1, 1, d, e, "fp32", False)
    one = case(problem=problem, p=p, d_tile=2, chunk_size=chunk)
    assert total(KERNELS["power-torch"].launches(one)).useful_flops == counter.get_total_flops()


def test_phases_by_hand():
    """p = 2, d = e = 64, T = 4096, C = 1024, H = 8 over Hk = 2: the formulas of docs/mathematics.md, multiplied out."""
    problem = Problem(1, 4096, 8, 2, 64, 64, "bf16", True)
    one = case("power-triton", problem, d_tile=16, chunk_size=1024)
    useful = {launch.name: launch.cost.useful_flops for launch in KERNELS["power-triton"].launches(one)}
    assert spow_dim(64, 2) == 2080
    assert useful == {
        "update_state": 2 * 3072 * 2080 * 64 * 2,
        "scan": 0,
        "attention": 8 * 4 * (1024 * 1025 // 2) * 2 * 128,
        "query_state": 8 * 3072 * 2080 * 64 * 2,
    }


def test_triton_executes_whole_tiles_and_whole_bricks():
    problem = Problem(1, 4096, 8, 8, 64, 64, "bf16", True)
    costs = {}
    for d_tile in (8, 16, 32, 64):
        launches = KERNELS["power-triton"].launches(case("power-triton", problem, d_tile=d_tile, chunk_size=1024))
        assert all(launch.cost.executed_flops >= launch.cost.useful_flops for launch in launches)
        costs[d_tile] = total(launches)
    assert len({cost.useful_flops for cost in costs.values()}) == 1, "useful work must not depend on d_tile"
    assert costs[64].executed_flops > costs[32].executed_flops > costs[16].executed_flops
    assert costs[64].bytes > costs[16].bytes


def test_one_chunk_is_attention_alone():
    for name in ("power-torch", "power-triton"):
        (launch,) = KERNELS[name].launches(case(name, Problem(1, 64, 2, 2, 16, 16, "fp32", True), chunk_size=64))
        assert launch.name == "attention"
        assert launch.cost.bytes == 4 * 64 * 2 * 16 * 4 + 64 * 2 * 4


def test_linear_is_power_at_p_1():
    problem = Problem(1, 300, 2, 2, 16, 16, "fp32", True)
    params = KERNELS["linear-torch"].resolve(problem, Params(chunk_size=64), "cpu")
    assert params.p == 1
    linear = KERNELS["linear-torch"].launches(Case(problem, "linear-torch", params, "fwd"))
    assert linear == KERNELS["power-torch"].launches(Case(problem, "power-torch", params, "fwd"))


def test_chunk_lengths_cover_the_sequence():
    for T in (1, 63, 64, 65, 128, 1000):
        full, length, last = chunk_lengths(T, 64)
        assert full * length + last == T
        assert 1 <= last <= 64
    assert causal_pairs(4) == 10
