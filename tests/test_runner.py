"""The runner and the gate, on contestants that go wrong in every way a kernel can."""

from __future__ import annotations

import pytest
import torch

from powerbench import gate
from powerbench.device import Device
from powerbench.errors import DeviceLostError
from powerbench.problem import Case, Params, Problem
from powerbench.runner import make_inputs, plan, run
from powerbench.suites import Suite
from tests.fakes import CEILINGS, CPU, PROBLEM, fake, raising, softmax

SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=2, dtype=("fp32",)).on("cpu")


class Silent:
    """An observer that remembers what it was told."""

    def __init__(self):
        self.events = []

    def started(self, planned):
        self.events.append(("started", planned.case.kernel))

    def finished(self, planned, measurement):
        self.events.append((measurement.status, planned.case.kernel))


def measure(*kernels, passes=("fwd",), timed=True, device=CPU, suite=SUITE):
    import msgspec

    suite = msgspec.structs.replace(suite, pass_=passes)
    return list(run(plan(suite, kernels, device, CEILINGS), device, 0, Silent(), timed=timed))


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_a_right_kernel_is_timed(pass_):
    (row,) = measure(fake("right"), passes=(pass_,))
    assert row.status == "ok"
    assert len(row.samples_ms) >= 5
    assert all(ms > 0 for ms in row.samples_ms)
    assert row.timer == "perf_counter"
    assert 0 < row.error < row.tolerance
    assert row.cost.executed_flops == 2000
    assert row.config == {"gates": "none: this kernel has no gates"}


def test_verify_does_not_time():
    (row,) = measure(fake("right"), timed=False)
    assert (row.status, row.samples_ms, row.timer) == ("ok", (), None)


def _leaky(q, k, v, log_g):
    """Right but for one row of one head."""
    y = softmax(q, k, v, log_g).clone()
    y[:, 17, 0] *= 1.01
    return y


class _WrongBackward(torch.autograd.Function):
    """The forward is right; the gradient of v is 1 % too long."""

    @staticmethod
    def forward(ctx, v):
        return v.clone()

    @staticmethod
    def backward(ctx, dv):
        return dv * 1.01


@pytest.mark.parametrize(
    ("forward", "passes"),
    [
        (lambda q, k, v, g: softmax(q, k, v, g) + 0.01, ("fwd", "bwd")),
        (lambda q, k, v, g: torch.full_like(q, float("nan")), ("fwd",)),
        (lambda q, k, v, g: torch.zeros_like(q), ("fwd",)),
        (_leaky, ("fwd", "fwd+bwd")),
        (lambda q, k, v, g: softmax(q, k, _WrongBackward.apply(v), g), ("bwd", "fwd+bwd")),
    ],
)
def test_a_wrong_kernel_has_no_speed(forward, passes):
    for row in measure(fake("wrong", forward), passes=passes):
        assert row.status == "wrong"
        assert row.samples_ms == ()
        assert "relative error" in row.message


def test_the_wrong_backward_has_a_right_forward():
    (row,) = measure(fake("half", lambda q, k, v, g: softmax(q, k, _WrongBackward.apply(v), g)))
    assert row.status == "ok"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), "oom", "Tried to allocate"),
        (MemoryError(), "oom", "MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "oom", "allocate"),
        (RuntimeError("boom\nand a long story"), "failed", "RuntimeError: boom"),
        (KeyError("shape"), "failed", "KeyError"),
    ],
)
def test_a_failing_kernel_is_a_row_and_not_the_end(error, status, message):
    bad, good = measure(fake("bad", raising(error)), fake("good"))
    assert (bad.status, good.status) == (status, "ok")
    assert message in bad.message
    assert "\n" not in bad.message


def test_a_lost_device_ends_the_run_after_its_row(monkeypatch):
    """After a failure on a GPU that then no longer answers, nothing more can be measured in this process."""

    def gone():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr("powerbench.runner.make_inputs", lambda *_: gone())
    device = Device("cuda", "a test GPU", 2**40)
    observer = Silent()
    rows = run(plan(SUITE, [fake("a"), fake("b")], device, CEILINGS), device, 0, observer)
    assert next(rows).status == "failed"
    with pytest.raises(DeviceLostError, match=r"lost after a/.*illegal memory access"):
        next(rows)
    assert ("started", "b") not in observer.events


def test_ctrl_c_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        measure(fake("bad", raising(KeyboardInterrupt())))


def test_unsupported_and_predicted_oom_never_run():
    forbidden = raising(AssertionError("must not run"))
    refused, large = measure(
        fake("refused", forbidden, reason="needs a flux capacitor"),
        fake("large", forbidden, workspace_bytes=lambda case: 2**40),
    )
    assert (refused.status, refused.message) == ("unsupported", "needs a flux capacitor")
    assert large.status == "oom"
    assert "predicted: needs about 1024.0 GiB, the device has 1.0 GiB free" in large.message


def test_plan_leaves_out_what_is_done():
    kernels = [fake("a"), fake("b")]
    first = plan(SUITE, kernels, CPU, CEILINGS)
    rest = plan(SUITE, kernels, CPU, CEILINGS, {first[0].case.case_id})
    assert [item.case.kernel for item in rest] == ["b"]


def test_inputs_are_seeded_and_never_zero():
    one, same, other = (make_inputs(PROBLEM, torch.device("cpu"), seed) for seed in (0, 0, 1))
    assert torch.equal(one.q, same.q)
    assert torch.equal(one.log_g, same.log_g)
    assert not torch.equal(one.q, other.q)
    assert one.q.shape == (2, 40, 4, 8)
    assert one.k.shape == (2, 40, 2, 8)
    assert one.dy.std() > 0.5
    half_life = -0.6931 / one.log_g.mean().item()
    assert 200 < half_life < 2000


def test_sampled_rows_cover_the_ends_and_stay_within_memory():
    long = Problem(1, 65536, 8, 8, 64, 64, "bf16", True)
    rows = gate.sample_rows(long, 0)
    assert rows[0] == 0
    assert rows[-1] == 65535
    assert len(rows) <= 2 * gate.REFERENCE_ELEMENTS // (8 * 65536)
    assert torch.equal(rows, rows.unique())
    assert torch.equal(gate.sample_rows(PROBLEM, 0), torch.arange(40))


def test_a_wrong_row_is_seen_at_long_context(monkeypatch):
    """With rows sampled, an error in the state shows in all later rows; it must be seen in y and in dk."""
    monkeypatch.setattr(gate, "REFERENCE_ELEMENTS", 1)

    def forgetful(q, k, v, g):
        return softmax(q, torch.cat([k[:, :1] * 1.2, k[:, 1:]], 1), v, g)

    for row in measure(fake("forgetful", forgetful), passes=("fwd", "bwd")):
        assert row.status == "wrong"


def test_tolerance_grows_with_the_degree():
    def at(p):
        return gate.tolerance(Case(PROBLEM, "k", Params(p=p), "fwd"))

    assert at(1) == at(2) == at(None) == gate.TOLERANCE["fp32"]
    assert at(4) == 2 * at(2)
