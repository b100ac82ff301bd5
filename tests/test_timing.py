"""How calls are timed: what each device allows, and on a GPU that the modes agree and say what they are."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from powerbench.errors import UserError
from powerbench.timing import Method, method, spin_ms, time_call, timer, wall_beside

CPU_DEVICE = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("given", "device_type", "timers"),
    [
        (Method(), "cuda", {"graph-cold", "events-cold"}),  # whichever the call allows
        (Method("events", "hot"), "cuda", {"events-hot"}),
        (Method("wall"), "cuda", {"wall-cold"}),
        (Method("wall", "hot"), "cpu", {"wall"}),
    ],
)
def test_which_times_may_stand_together(given, device_type, timers):
    names = {f"{mode}-{l2}" for mode in ("graph", "events", "wall") for l2 in ("cold", "hot")} | {"wall", None}
    assert {name for name in names if given.gives(name, device_type)} == timers


def test_methods_by_device():
    assert method("cpu", None, None) == method("cpu", "wall", None) == Method("wall", "hot")
    assert method("cuda", None, None) == Method(None, "cold")
    assert method("cuda", "wall", "hot") == Method("wall", "hot")
    with pytest.raises(UserError, match="--timer: graph needs a CUDA device; on a CPU allowed is wall"):
        method("cpu", "graph", None)
    with pytest.raises(UserError, match="--l2: cold needs a CUDA device"):
        method("cpu", None, "cold")


def test_on_a_cpu_a_sample_is_wall_time():
    clock = timer(lambda: lambda: time.sleep(0.01), CPU_DEVICE, Method("wall", "hot"))
    assert (clock.name, clock.reason) == ("wall", None)
    assert clock.sample().ms >= 10
    assert len(wall_beside(lambda: None, CPU_DEVICE, "hot")) == 5


def test_time_call_of_ceilings_and_phases():
    samples = time_call(lambda: time.sleep(0.001), CPU_DEVICE)
    assert samples.timer == "wall"
    assert 5 <= len(samples.ms) <= 100
    assert min(samples.ms) >= 1


@pytest.mark.parametrize(
    ("enqueue_ms", "whole_ms", "expected"),
    [(0.1, 0.2, 1.0), (1.5, 1.6, 3.0), (0.2, 8.0, 4.0), (0.2, 300.0, 20.0), (300.0, 300.0, 20.0)],
)
def test_the_device_spins_for_the_host_and_for_its_rest(enqueue_ms, whole_ms, expected):
    assert spin_ms(enqueue_ms, whole_ms) == expected


def _matmuls(n=2048, times=8):
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)

    def call():
        x = a
        for _ in range(times):
            x = a @ x
        return x

    return call


def _median(clock, n=20):
    return statistics.median(clock.sample().ms for _ in range(n))


@pytest.mark.gpu
@needs_gpu
def test_graph_and_events_agree_where_the_work_is_long():
    call, device = _matmuls(), torch.device("cuda")
    call()
    by_graph = timer(lambda: call, device, Method())
    by_events = timer(lambda: call, device, Method("events"))
    assert (by_graph.name, by_graph.reason) == ("graph-cold", None)
    assert (by_events.name, by_events.reason) == ("events-cold", None)
    assert _median(by_graph) == pytest.approx(_median(by_events), rel=0.05)
    torch.testing.assert_close(by_graph.run(), call())


@pytest.mark.gpu
@needs_gpu
def test_a_hot_cache_is_not_slower():
    a, device = torch.randn(4 * 2**20, device="cuda"), torch.device("cuda")
    cold, hot = (timer(lambda: a.sum, device, Method("events", l2)) for l2 in ("cold", "hot"))
    a.sum()
    assert _median(hot, 50) < _median(cold, 50)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", [None, "graph"])
def test_what_cannot_be_captured(mode):
    """Falls back to events and says why; where a graph was asked for by name, it is an error. The device goes on."""
    device = torch.device("cuda")

    def call():
        return torch.ones(8, device="cuda").sum().item()

    call()
    if mode == "graph":
        with pytest.raises(RuntimeError):
            timer(lambda: call, device, Method(mode))
    else:
        clock = timer(lambda: call, device, Method(mode))
        assert clock.name == "events-cold"
        assert "captur" in clock.reason
        assert clock.sample().ms > 0
    again = timer(lambda: _matmuls(256, 1), device, Method())
    assert again.name == "graph-cold"


@pytest.mark.gpu
@needs_gpu
def test_a_sleeping_host_shows_in_wall_and_not_on_the_device():
    device, work = torch.device("cuda"), _matmuls(256, 1)

    def call():
        time.sleep(0.01)
        return work()

    call()
    assert min(wall_beside(call, device, "cold")) > 10
    assert _median(timer(lambda: call, device, Method())) < 1


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_a_contestant_in_each_pass(pass_):
    """Gated, captured, sampled and re-checked in a bench on the device; peak memory is its own."""
    from powerbench.bench import Bench
    from powerbench.device import pick
    from powerbench.problem import Case, Params, Problem
    from powerbench.protocol import Closed, Opened, Sampled
    from tests.fakes import fake

    case = Case(Problem(2, 256, 4, 4, 64, 64, "fp32", False), "right", Params(), pass_)
    bench = Bench(pick("cuda"), 0, {"right": fake("right", _sdpa)}, Method())
    opened = bench.answer("open", case, True)
    assert isinstance(opened, Opened), opened
    assert (opened.timer, opened.timer_reason, len(opened.wall_ms)) == ("graph-cold", None, 5)
    assert opened.peak_memory_bytes > 0
    sampled = bench.answer("sample", case, 10)
    assert isinstance(sampled, Sampled), sampled
    assert isinstance(bench.answer("close", case, False), Closed)


def _sdpa(q, k, v, log_g):
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
