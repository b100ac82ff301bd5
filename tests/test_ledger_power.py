"""Power attention's ledger, counted: executed FLOPs against torch's counter, useful ones against the mathematics."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from powerbench.bench import make_inputs
from powerbench.cost import total
from powerbench.device import Device
from powerbench.kernels.linear import LINEAR_KERNELS
from powerbench.kernels.power.contestants import POWER_KERNELS
from powerbench.kernels.power.cost import causal_pairs, chunk_lengths
from powerbench.kernels.power.feature_map import feature_map, spow_dim
from powerbench.plan import plan
from powerbench.problem import Case, Params, Problem
from powerbench.suites import Suite
from tests.fakes import CEILINGS

KERNELS = {kernel.name: kernel for kernel in (*POWER_KERNELS, *LINEAR_KERNELS)}
PROBLEM = Problem(2, 300, 4, 2, 16, 8, "fp32", True)


INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter counts, which a GPU replaces")


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


@pytest.mark.parametrize("p", [1, 2, 3])
def test_useful_flops_of_the_fused_launches_are_those_of_the_textbook_loops(p):
    """The same loops with their backward pass written out, each product under the launch that computes it."""
    d, e, chunk, T = 16, 32, 10, 35
    indices = torch.from_numpy(feature_map(d, p, 1).indices).long()
    q, k = torch.randn(2, T, d).unbind()
    v, dy = torch.randn(2, T, e).unbind()
    state = torch.randn(len(indices), e)
    flops = Counter()

    def product(launch, a, b):
        with FlopCounterMode(display=False) as counter:
            c = a @ b
        flops[launch] += counter.get_total_flops()
        return c

    for i in range(T):
        start = i // chunk * chunk
        q_i, k_i, v_i, dy_i, keys = q[i, None], k[i, None], v[i, None], dy[i, None], slice(start, i + 1)
        phi_q, phi_k = (x[0, indices].prod(1)[:, None] for x in (q_i, k_i))
        s = product("attend", q_i, k[keys].T)
        product("attend", s**p, v[keys])
        s = product("query_gradient" if p > 1 else "key_value_gradient", q_i, k[keys].T)
        ds = product("query_gradient", dy_i, v[keys].T) * p * s ** (p - 1)
        product("query_gradient", ds, k[keys])
        product("key_value_gradient", ds.T, q_i)
        product("key_value_gradient", (s**p).T, dy_i)
        if start:
            product("attend", phi_q.T, state)
            product("query_gradient", state, dy_i.T)  # the gradient of phi(q)
            product("state_gradient", phi_q, dy_i)
        if start + chunk < T:
            product("update_state", phi_k, v_i)
            product("key_value_gradient", state, v_i.T)  # the gradient of phi(k)
            product("key_value_gradient", phi_k.T, state)
    one = case("power-triton", Problem(1, T, 1, 1, d, e, "fp32", False), "fwd+bwd", p=p, d_tile=4, chunk_size=chunk)
    launches = KERNELS["power-triton"].launches(one)
    assert {launch.name: launch.cost.useful_flops for launch in launches if launch.cost.useful_flops} == flops


def test_launches_by_hand():
    """p = 2, d = e = 64, T = 4096, C = 1024, H = 8 over Hk = 2: the formulas of `triton_cost`, multiplied out."""
    problem = Problem(1, 4096, 8, 2, 64, 64, "bf16", True)
    one = case("power-triton", problem, "fwd+bwd", d_tile=16, chunk_size=1024)
    launches = {launch.name: launch.cost for launch in KERNELS["power-triton"].launches(one)}
    assert spow_dim(64, 2) == 2080
    pair_of_64, of_key_heads, of_query_heads = (
        8 * 4 * (1024 * 1025 // 2) * 2 * 64, 2 * 3072 * 2080 * 64 * 2, 8 * 3072 * 2080 * 64 * 2,
    )  # fmt: skip
    assert {name: cost.useful_flops for name, cost in launches.items()} == {
        "gates": 0,
        "update_state": of_key_heads,
        "scan": 0,
        "attend": 2 * pair_of_64 + of_query_heads,
        "query_gradient": 3 * pair_of_64 + of_query_heads,
        "state_gradient": of_query_heads,
        "scan_gradient": 0,
        "key_value_gradient": 2 * pair_of_64 + 2 * of_key_heads,
        "gate_gradient": 0,
    }
    q, k = 4096 * 8 * 64 * 2, 4096 * 2 * 64 * 2  # bytes; y, dy and dq like q, v, dk and dv like k
    row, gate = 4096 * 8 * 4, 4096 * 2 * 4
    states = 2 * 3 * (2560 * 64 + 64 * 64) * 2
    assert {name: cost.bytes for name, cost in launches.items()} == {
        "gates": 4 * gate,
        "update_state": (2 * k + gate) * 3 // 4 + states,
        "scan": 2 * states,
        "attend": 2 * q + 2 * k + gate + states + row,
        "query_gradient": 4 * q + 2 * k + row + gate + states + 4 * row,  # q, dy, y, dq; den, delta, w, z_w, q . dq
        "state_gradient": (2 * q + 2 * row) * 3 // 4 + states,
        "scan_gradient": 3 * states,
        "key_value_gradient": 2 * q + 2 * k + 2 * row + gate + states + 2 * k + gate + 2 * 2 * k,
        "gate_gradient": row + 3 * gate,
    }


def counted_dots(monkeypatch, calls):
    """FLOPs of the tl.dot calls that Triton's interpreter makes in each of `calls`."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    flops = Counter()
    dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, *rest):
        (m, k), (_, n) = a.data.shape, b.data.shape
        flops[name] += 2 * m * n * k
        return dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    for name, call in calls.items():  # noqa: B007  read above
        call()
    return flops


@INTERPRETED
@pytest.mark.parametrize(
    ("p", "d_tile", "chunk_size", "d", "e"),
    [
        (1, 16, 32, 16, 16), (2, 16, 32, 16, 16), (2, 4, 32, 16, 16), (2, 1, 32, 16, 16), (3, 8, 32, 16, 16),
        (3, 2, 32, 16, 16), (2, 8, 48, 32, 16), (2, 4, 33, 16, 32), (1, 16, 20, 16, 32), (2, 16, 70, 16, 16),
    ],
)  # fmt: skip
def test_executed_flops_of_the_triton_backend_are_its_dots(monkeypatch, p, d_tile, chunk_size, d, e):
    """Launch by launch. Chunks that are no multiple of a tile, a short last chunk, masked bricks, two heads a key."""
    T, heads = (70, 2) if p < 3 else (40, 1)  # p = 3 takes the interpreter ten seconds a chunk
    problem = Problem(1, T, heads, 1, d, e, "fp32", True)
    one = case("power-triton", problem, "fwd+bwd", p=p, d_tile=d_tile, chunk_size=chunk_size)
    kernel = KERNELS["power-triton"]
    found = counted_dots(monkeypatch, kernel.phases(one, make_inputs(problem, torch.device("cpu"), 0)))
    assert {x.name: x.cost.executed_flops for x in kernel.launches(one) if x.cost.executed_flops} == found


@INTERPRETED
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_wider_than_a_brick(monkeypatch, itemsize):
    """d = e = 128, whose tiles of 16 bits are of queries and keys as unequal as they get."""
    problem = Problem(1, 150, 1, 1, 128, 128, "bf16" if itemsize == 2 else "fp32", False)
    one = case("power-triton", problem, "fwd+bwd", p=1, d_tile=128, chunk_size=140)
    kernel = KERNELS["power-triton"]
    found = counted_dots(monkeypatch, kernel.phases(one, make_inputs(problem, torch.device("cpu"), 0)))
    assert {x.name: x.cost.executed_flops for x in kernel.launches(one) if x.cost.executed_flops} == found


@INTERPRETED
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("chunk_size", [32, 70])
@pytest.mark.parametrize("name", ["power-triton", "linear-triton"])
def test_phases_are_the_launches_and_can_be_repeated(monkeypatch, name, chunk_size, gated, pass_):
    for make in ("empty", "empty_like"):  # some arrays have elements that nobody reads or writes
        monkeypatch.setattr(torch, make, getattr(torch, make.replace("empty", "zeros")))
    kernel, problem = KERNELS[name], Problem(1, 70, 2, 1, 16, 16, "fp32", gated)
    one = Case(problem, name, kernel.resolve(problem, Params(chunk_size=chunk_size), pass_, "cuda"), pass_)
    phases = kernel.phases(one, make_inputs(problem, torch.device("cpu"), 0))
    assert list(phases) == [launch.name for launch in kernel.launches(one)]
    for call in phases.values():
        first, second = (_tensors(call()) for _ in range(2))
        assert first
        for x, y in zip(first, second, strict=True):
            assert not x.requires_grad
            assert x.data_ptr() != y.data_ptr()
            assert torch.equal(x, y)


def _tensors(result):
    return [x for x in (result if isinstance(result, tuple) else (result,)) if x is not None]


@INTERPRETED
def test_phases_compute_what_the_operator_does():
    """Inputs that want gradients are no obstacle, and the last results are those of the call."""
    problem = Problem(1, 70, 2, 1, 16, 16, "fp32", True)
    one = case("power-triton", problem, "fwd+bwd", chunk_size=32)
    kernel, inputs = KERNELS["power-triton"], make_inputs(problem, torch.device("cpu"), 0)
    leaves = [x.requires_grad_() for x in (inputs.q, inputs.k, inputs.v, inputs.log_g)]
    phases = kernel.phases(one, inputs)
    y = kernel.prepare(one)(*leaves)
    dq, dk, dv, dlog_g = torch.autograd.grad(y, leaves, inputs.dy)
    assert torch.equal(phases["attend"]()[0], y)
    assert torch.equal(phases["query_gradient"]().dq, dq)
    assert all(map(torch.equal, phases["key_value_gradient"]()[:2], (dk, dv)))
    assert torch.equal(phases["gate_gradient"](), dlog_g)


@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_a_million_tokens_fit_one_gpu(pass_):
    """Eight heads of d = 64 at p = 2 on an H200, inputs and the gate's float64 copies included."""
    suite = Suite(ctx=(2**20,), heads=(8,), kv_heads=(8,), head_dim=(64,), batch=(1,), dtype=("bf16",), pass_=(pass_,))
    device = Device("cuda", "a test GPU", 141 * 10**9)
    (item,) = plan(suite.on("cuda"), [KERNELS["power-triton"]], device, CEILINGS)
    assert item.reason is None
    assert item.memory_bytes < device.memory_bytes
    assert item.kernel.workspace_bytes(item.case) < 8 * 10**9


def test_triton_executes_whole_tiles_and_whole_bricks():
    problem = Problem(1, 4096, 8, 8, 64, 64, "bf16", True)
    costs = {}
    for d_tile in (8, 16, 32, 64):
        one = case("power-triton", problem, "fwd+bwd", d_tile=d_tile, chunk_size=1024)
        launches = KERNELS["power-triton"].launches(one)
        assert all(launch.cost.executed_flops >= launch.cost.useful_flops for launch in launches)
        costs[d_tile] = total(launches)
    assert len({cost.useful_flops for cost in costs.values()}) == 1, "useful work must not depend on d_tile"
    assert costs[64].executed_flops > costs[32].executed_flops > costs[16].executed_flops
    assert costs[64].bytes > costs[16].bytes


def test_one_chunk_is_attention_alone():
    for name in ("power-torch", "power-triton"):
        *gates, launch = KERNELS[name].launches(case(name, Problem(1, 64, 2, 2, 16, 16, "fp32", True), chunk_size=64))
        assert [launch.name for launch in gates] == (["gates"] if name == "power-triton" else [])
        assert launch.name == ("attend" if name == "power-triton" else "attention")
        sums = 2 if name == "power-triton" else 1  # pairs of float32
        assert launch.cost.bytes == 4 * 64 * 2 * 16 * 4 + sums * 64 * 2 * 4


def test_linear_is_power_at_p_1():
    problem = Problem(1, 300, 2, 2, 16, 16, "fp32", True)
    params = KERNELS["linear-torch"].resolve(problem, Params(chunk_size=64), "fwd", "cpu")
    assert params.p == 1
    linear = KERNELS["linear-torch"].launches(Case(problem, "linear-torch", params, "fwd"))
    assert linear == KERNELS["power-torch"].launches(Case(problem, "power-torch", params, "fwd"))


def test_chunk_lengths_cover_the_sequence():
    for T in (1, 63, 64, 65, 128, 1000):
        chunks = chunk_lengths(T, 64)
        assert chunks.past + chunks.last == chunks.total(int) == T
        assert 1 <= chunks.last <= 64
        assert chunks.later == max(T - 64, 0)
    assert causal_pairs(4) == 10


def test_values_in_fp16_are_multiplied_in_two_parts():
    """What the interpreter, which has no bf16, cannot count: e of d + e columns twice, and no more useful work."""
    of = {}
    for dtype in ("bf16", "fp16"):
        one = case("power-triton", Problem(1, 300, 2, 1, 32, 64, dtype, False), chunk_size=300)
        (of[dtype],) = (launch.cost for launch in KERNELS["power-triton"].launches(one))
    assert of["fp16"].executed_flops * (32 + 64) == of["bf16"].executed_flops * (32 + 2 * 64)
    assert of["fp16"].useful_flops == of["bf16"].useful_flops
    assert of["fp16"].bytes == of["bf16"].bytes
