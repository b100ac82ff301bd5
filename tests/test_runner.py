"""The runner and the gate, on contestants that go wrong in every way a kernel can."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
import time
import weakref
from contextlib import closing
from dataclasses import replace

import msgspec
import pytest
import torch
from rich.console import Console

from powerbench import gate
from powerbench.bench import PHASE_POLICY, make_inputs
from powerbench.cost import Cost, Launch
from powerbench.errors import DeviceLostError
from powerbench.kernels.table import available
from powerbench.plan import plan
from powerbench.problem import Case, Params, Problem
from powerbench.protocol import Closed, Fault, Opened, Sampled
from powerbench.results.model import Measurement, Phase
from powerbench.results.visits import together
from powerbench.runner import run
from powerbench.stopping import Stopping
from powerbench.suites import Suite
from powerbench.terminal import Watcher
from powerbench.worker import WorkerLost
from tests.fakes import CEILINGS, CPU, LAUNCHES, PROBLEM, Inline, fake, phased, raising, softmax

SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=(2,), dtype=("fp32",)).on("cpu")


class Silent:
    """An observer that remembers what it was told."""

    def __init__(self):
        self.events = []

    def started(self, planned):
        self.events.append(("started", planned.case.kernel))

    def finished(self, planned, measurement, visit):
        self.events.append((measurement.status, planned.case.kernel))


def measure(*kernels, passes=("fwd",), timed=True, device=CPU, suite=SUITE, phases=False, host=None):
    suite = msgspec.structs.replace(suite, pass_=passes)
    planned = plan(suite, kernels, device, CEILINGS, phases=phases)
    host = host or Inline(kernels, device)
    with closing(run(planned, device, lambda: host, Silent(), timed=timed)) as rows:
        return list(rows)


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_a_right_kernel_is_timed(pass_):
    (row,) = measure(fake("right"), passes=(pass_,))
    assert row.status == "ok"
    assert len(row.samples_ms) >= 10
    assert (row.order, row.timer_reason, row.wall_ms) == ("interleaved", None, ())
    assert row.stop in ("precise", "time", "samples")
    assert all(ms > 0 for ms in row.samples_ms)
    assert row.timer == "wall"
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


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_phases_are_timed_alone_after_the_call(pass_):
    """In the order of the launches, some of which need not be there; the slow one takes the longer time."""
    called = {"scores": 0, "sum": 0}

    def call(name, seconds):
        called[name] += 1
        time.sleep(seconds)

    calls = {"sum": lambda: call("sum", 0.002), "scores": lambda: call("scores", 0.01)}
    (row,) = measure(phased("apart", calls), passes=(pass_,), phases=True)
    assert row.status == "ok"
    assert len(row.samples_ms) >= 5
    assert [phase.name for phase in row.phases] == ["scores", "sum"]
    scores, total = row.phases
    assert min(scores.samples_ms) >= 10
    assert 2 <= min(total.samples_ms) < 10
    for phase in row.phases:
        assert phase.message is None
        assert PHASE_POLICY.min_samples <= len(phase.samples_ms) <= PHASE_POLICY.max_samples
        assert called[phase.name] == len(phase.samples_ms) + 1, "one call to warm up"


def test_phases_come_only_where_asked_for_and_known():
    forbidden = raising(AssertionError("must not run"))
    kernel = phased("apart", dict.fromkeys(("scores", "sum"), forbidden))
    assert [row.phases for row in measure(kernel)] == [()]
    assert [row.phases for row in measure(kernel, timed=False, phases=True)] == [()]
    assert [row.phases for row in measure(fake("whole"), phases=True)] == [()]


def test_a_wrong_kernel_has_no_phases():
    forbidden = raising(AssertionError("must not run"))
    (row,) = measure(phased("wrong", {"sum": forbidden}, prepare=lambda case: _leaky), phases=True)
    assert (row.status, row.phases) == ("wrong", ())


def test_a_phase_that_raises_costs_only_itself():
    first, second, third = (launch.name for launch in LAUNCHES)
    calls = {first: softmax_once, second: raising(RuntimeError("boom\nand a long story")), third: softmax_once}
    rows = {row.case.kernel: row for row in measure(phased("apart", calls), fake("after"), phases=True)}
    row, after = rows["apart"], rows["after"]
    assert (row.status, after.status) == ("ok", "ok")
    assert len(row.samples_ms) >= 5
    assert row.phases[1] == Phase(second, message="RuntimeError: boom")
    assert all(phase.samples_ms and phase.message is None for phase in (row.phases[0], row.phases[2]))


def softmax_once():
    return torch.randn(32, 32).softmax(-1)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (raising(torch.OutOfMemoryError("CUDA out of memory")), "OutOfMemoryError: CUDA out of memory"),
        (lambda case, inputs: {"sum": softmax_once, "product": softmax_once}, "ValueError: phases sum, product are"),
    ],
)
def test_a_kernel_that_cannot_be_taken_apart_after_all_keeps_its_time(phases, message):
    (row,) = measure(fake("apart", launches=lambda case: LAUNCHES, phases=phases), phases=True)
    assert row.status == "ok"
    assert len(row.samples_ms) >= 5
    assert [phase.name for phase in row.phases] == [launch.name for launch in LAUNCHES]
    assert all(phase.message.startswith(message) and phase.samples_ms == () for phase in row.phases)


def test_the_graph_of_the_call_is_gone_when_phases_make_their_buffers():
    """Otherwise a case that fits into memory would not, taken apart."""
    made, alive = [], []

    def forward(*tensors):
        y = softmax(*tensors)
        made.append(weakref.ref(y))
        return y

    def phases(case, inputs):
        alive.extend(ref for ref in made if ref() is not None)
        return {}

    measure(fake("apart", forward, phases=phases), passes=("bwd",), phases=True)
    assert made
    assert alive == []


def test_ctrl_c_in_a_phase_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        measure(phased("apart", {"sum": raising(KeyboardInterrupt())}), phases=True)


def test_phases_take_their_part_of_the_predicted_time():
    kernels = [phased("apart", {}), fake("whole", launches=lambda case: LAUNCHES)]
    apart, whole = plan(SUITE, kernels, CPU, CEILINGS, phases=True)
    alone, _ = plan(SUITE, kernels, CPU, CEILINGS)
    assert (apart.phases, whole.phases, alone.phases) == (True, False, False)
    assert apart.total_seconds > alone.total_seconds == whole.total_seconds > 0


def test_a_kernel_that_tunes_for_long_is_given_the_time():
    """Beyond what each case has; a limit that the user sets is a limit."""
    limits = {}

    class Host(Inline):
        def ask(self, verb, case, argument, timeout_s):
            limits.setdefault(case.kernel, timeout_s)
            return super().ask(verb, case, argument, timeout_s)

    kernels = [fake("quick"), fake("tuned", tuning_seconds=1000.0)]
    for timeout_s in (None, 77.0):
        limits.clear()
        with closing(
            run(
                plan(SUITE, kernels, CPU, CEILINGS),
                CPU,
                lambda: Host(kernels),
                Silent(),
                timed=False,
                timeout_s=timeout_s,
            )
        ) as rows:
            assert [row.status for row in rows] == ["ok", "ok"]
        assert limits["tuned"] == (77.0 if timeout_s else limits["quick"] + 1000.0)


class Scripted(Inline):
    """A host whose answers to some requests are made up: (verb, kernel) -> replies or deaths, one after the other."""

    def __init__(self, kernels, script):
        super().__init__(kernels)
        self.script = {key: list(replies) for key, replies in script.items()}

    def ask(self, verb, case, argument, timeout_s):
        replies = self.script.get((verb, case.kernel))
        if not replies:
            return super().ask(verb, case, argument, timeout_s)
        self.asked.append((verb, case.kernel))
        reply = replies.pop(0)
        if isinstance(reply, WorkerLost):
            raise reply
        return reply


def swept(script, *names, device=CPU, stopping=None):
    """What a sweep of right kernels comes to under a script, the hosts it hired, and what each was asked."""
    kernels = [fake(name) for name in names]
    hosts = []

    def hire():
        hosts.append(Scripted(kernels, script if not hosts else {}))
        return hosts[-1]

    with closing(run(plan(SUITE, kernels, device, CEILINGS), device, hire, Silent(), stopping=stopping)) as rows:
        found = {row.case.kernel: row for row in rows}
    return found, [host.asked for host in hosts]


LOST = Fault("failed", "AcceleratorError: CUDA error: an illegal memory access was encountered", lost=True)
CRASH = WorkerLost("failed", "the process was ended by SIGABRT: terminate called")


def test_a_case_that_costs_the_device_costs_itself_and_the_process():
    """The others begin again in a new one, and none of their samples are mixed."""
    one_more = [Sampled((1e-3,)), LOST]
    found, (first, second) = swept({("sample", "b"): one_more}, "a", "b", "c")
    assert {name: row.status for name, row in found.items()} == {"a": "ok", "b": "failed", "c": "ok"}
    assert "illegal memory access" in found["b"].message
    assert found["b"].samples_ms == ()
    assert first[-1] == ("end", "")
    opened = [name for verb, name in second if verb == "open"]
    assert opened == [name for name in ("a", "c") if ("close", name) not in first]


def test_a_crash_at_the_gate_costs_nobody_else():
    """Those not tried yet come first in the new process, so that two crashes in a row open nothing twice."""
    found, (first, second) = swept({("open", "b"): [CRASH]}, "a", "b", "c")
    assert {name: row.status for name, row in found.items()} == {"a": "ok", "b": "failed", "c": "ok"}
    assert found["b"].message == "the process was ended by SIGABRT: terminate called"
    assert first == [("open", "a"), ("open", "b")]
    assert [name for verb, name in second if verb == "open"] == ["c", "a"]


def test_a_timeout_is_its_own_status():
    found, _ = swept({("sample", "a"): [WorkerLost("timeout", "no answer within 3 s")]}, "a", "b")
    assert (found["a"].status, found["a"].message) == ("timeout", "no answer within 3 s")
    assert found["b"].status == "ok"


def test_when_no_process_can_be_started_the_run_ends_after_the_row():
    kernels = [fake("a"), fake("b")]
    hosts = [Scripted(kernels, {("open", "a"): [CRASH]})]

    def hire():
        if not hosts:
            raise DeviceLostError("no process to measure in can be started: the device is gone")
        return hosts.pop()

    rows = run(plan(SUITE, kernels, CPU, CEILINGS), CPU, hire, Silent())
    assert next(rows).status == "failed"
    with pytest.raises(DeviceLostError, match="the device is gone"):
        next(rows)


def test_contestants_take_turns_after_all_are_open(monkeypatch):
    monkeypatch.setattr("powerbench.stopping.ROUND_SECONDS", 1e9)  # the same turns however busy this machine is
    precise = dataclasses.replace(Stopping(), min_seconds=0.0, max_samples=60, precision=0.0, max_seconds=1e9)
    found, (asked,) = swept({}, "a", "b", "c", stopping=precise)
    assert all(row.order == "interleaved" for row in found.values())
    assert asked[:3] == [("open", name) for name in "abc"]
    turns = [name for verb, name in asked if verb == "sample"]
    assert turns == list("abc") * (len(turns) // 3)
    assert len(turns) >= 9
    assert asked.count(("end", "")) == 1


TWO = msgspec.structs.replace(SUITE, ctx=(24, 40))
PHASES = {LAUNCHES[0].name: lambda: None}


def visited(script, *names, visits=3, phases=False):
    """The rows of a sweep of two contexts in visits, and what was asked."""
    kernels = [phased(name, PHASES) if phases else fake(name) for name in names]
    host = Scripted(kernels, script)
    planned = plan(TWO, kernels, CPU, CEILINGS, visits=visits, phases=phases)
    with closing(run(planned, CPU, lambda: host, Silent())) as rows:
        return list(rows), host.asked


def test_each_visit_goes_over_all_problems():
    rows, asked = visited({}, "a", "b")
    contexts = [row.case.problem.seqlen for row in rows]
    assert contexts == [24, 24, 40, 40] * 3
    assert [{one.visit for one in row.rounds} for row in rows] == [{i // 4} for i in range(12)]
    assert [verb for verb, _ in asked].count("open") == 12
    whole = [together(rows[i::4]) for i in range(4)]
    for row in whole:
        assert row.status == "ok"
        assert len(row.visits) == 3
        assert sum(map(len, row.visits)) == len(row.samples_ms) >= Stopping().min_samples


def test_who_fails_is_not_visited_again():
    rows, _ = visited({("close", "a"): [Closed(), Closed(), Fault("wrong", "not the same twice")]}, "a", "b")
    of_a = [row.status for row in rows if row.case.kernel == "a" and row.case.problem.seqlen == 24]
    assert of_a == ["ok", "wrong"]
    assert [row.status for row in rows if row.case.kernel == "b"] == ["ok"] * 6
    (first, last) = [row for row in rows if row.case.kernel == "a" and row.case.problem.seqlen == 24]
    whole = together([first, last])
    assert (whole.status, whole.message, whole.samples_ms) == ("wrong", "in a later visit: not the same twice", ())


def test_phases_are_timed_in_one_visit_only():
    rows, _ = visited({}, "a", phases=True)
    assert [bool(row.phases) for row in rows] == [True, True] + [False] * 4


def test_passes_of_a_problem_do_not_wait_for_each_other():
    host = Inline([fake("a"), fake("b")])
    rows = measure(fake("a"), fake("b"), passes=("fwd", "bwd"), host=host)
    assert [row.case.pass_ for row in rows] == ["fwd", "fwd", "bwd", "bwd"]
    assert all(row.status == "ok" for row in rows)


def test_what_does_not_fit_together_is_sampled_in_turn_and_says_so():
    kernels = [fake(name, workspace_bytes=lambda case: 2**29) for name in "ab"]
    host = Inline(kernels)
    for row in measure(*kernels, host=host):
        assert row.status == "ok"
        assert row.order == "in turn: all would need about 1.0 GiB, the device has 1.0 GiB free"
    closed = host.asked.index(("close", "a"))
    assert host.asked[closed + 1] == ("open", "b")


def test_the_iterator_ends_its_process():
    host = Inline([fake("a"), fake("b")])
    rows = run(plan(SUITE, [fake("a"), fake("b")], CPU, CEILINGS), CPU, lambda: host, Silent())
    next(rows)
    rows.close()
    assert host.asked[-1] == ("end", "")


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
def test_results_are_checked_again_on_changed_inputs(pass_):
    """A result that does not follow its inputs passes the gate and no further; the inputs are put back exactly."""
    kept = {}

    def caching(*tensors):
        y = softmax(*tensors)
        return kept.setdefault("y", y.detach()) if not y.requires_grad else _Stale.apply(y, kept)

    host = Inline([fake("stale", caching), fake("right")])
    stale, right = sorted(
        measure(fake("stale", caching), fake("right"), passes=(pass_,), host=host),
        key=lambda row: row.case.kernel != "stale",
    )
    assert (stale.status, right.status) == ("wrong", "ok")
    assert stale.message.startswith("after timing, on changed inputs, off by ")
    assert stale.samples_ms == ()
    original = make_inputs(host.bench._made_for[0], torch.device("cpu"), 0)
    for name, tensor in vars(original).items():
        assert torch.equal(tensor, getattr(host.bench._inputs, name))


class _Stale(torch.autograd.Function):
    """The gradient of the first call with a dense dy, ever after."""

    @staticmethod
    def forward(ctx, y, kept):
        ctx.kept = kept
        return y.clone()

    @staticmethod
    def backward(ctx, dy):
        if (dy == 0).any():  # the gate's masked one
            return dy, None
        return ctx.kept.setdefault("dy", dy.clone()), None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["power-torch", "linear-torch", "sdpa-cpu"])
def test_real_contestants_follow_their_inputs(name, dtype):
    """Odd in v, linear in dy, in every pass: the check after timing must not accuse them."""
    kernel = available()[name]
    problem = Problem(1, 100, 2, 1, 16, 16, dtype, True)
    host = Inline([kernel])
    for pass_ in ("fwd", "bwd", "fwd+bwd"):
        wanted = Params(p=2 if name == "power-torch" else None)
        case = Case(problem, name, kernel.resolve(problem, wanted, pass_, "cpu"), pass_)
        assert isinstance(host.ask("open", case, True, 0), Opened)
        assert host.ask("close", case, False, 0) == Closed()


@pytest.mark.parametrize("seqlen", [1024, 8192])
def test_memory_for_results_is_poisoned(seqlen):
    """Without, a kernel that writes nothing mostly gets the results of the call before, whole, from the allocator.

    In a process of its own, as a bench has it: the heap of this one has holes that other tests left.
    """
    stale = subprocess.run(
        [sys.executable, "-c", f"from tests.test_runner import stale_shares; print(*stale_shares({seqlen}))"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout.split()  # fmt: skip
    assert len(stale) == 5
    assert max(map(float, stale)) < 0.1


def stale_shares(seqlen):
    """How much of a fresh tensor still holds the results of 1, 2 ... calls before."""
    inputs = make_inputs(Problem(2, seqlen, 4, 2, 8, 8, "fp32", True), torch.device("cpu"), 0)
    for number in range(1, 6):
        right = [inputs.q * 2 for _ in range(number)]
        del right
        gate.poison(inputs)
        left = torch.empty_like(inputs.q)
        yield float((left == inputs.q * 2).double().mean())


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
    assert (
        "predicted: needs about 1024.0 GiB, 0.0 GiB of it for inputs and reference; the device has 1.0 GiB free"
        in large.message
    )


def test_the_line_of_a_case_knows_its_floor():
    """By the case's own launches and the ceilings of the run."""
    work = (Launch("forward", Cost(10**9, 10**9, 10**6)),)
    (item,) = plan(SUITE, [fake("a", launches=lambda case: work)], CPU, CEILINGS)
    assert item.floor_seconds == pytest.approx(1e9 / CEILINGS.matmul_flops_per_s["fp32"])
    for ms, said in ((9.9, "a/-/fwd"), (9.7, "invalid: 9.7 ms, where this machine needs 10 ms at best")):
        printed = Console(file=io.StringIO(), width=200)
        row = Measurement(case=item.case, status="ok", samples_ms=(ms,) * 5, launches=work, error=1e-6)
        Watcher([item], printed).finished(item, row, 0)
        assert said in printed.file.getvalue()
        assert ("invalid" in printed.file.getvalue()) == said.startswith("invalid")


def test_the_eta_is_not_that_of_the_first_case(monkeypatch):
    """Which starts the process and compiles; later ones correct the prediction by how they came out."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    (one,) = plan(SUITE, [fake("a")], CPU, CEILINGS)
    items = [replace(one, fixed_seconds=1.0 - one.total_seconds + one.fixed_seconds) for _ in range(200)]
    assert items[0].total_seconds == pytest.approx(1.0)
    watcher = Watcher(items, Console(file=io.StringIO()))
    assert watcher.eta() == "3 min 20 s"
    row = Measurement(case=one.case, status="ok", samples_ms=(1.0,) * 5, error=1e-6)
    now = 12.0
    watcher.finished(items[0], row, 0)
    assert watcher.eta() == "5 min 03 s", "199 s are left by the plan: half as long again, not twelve times"
    for _ in range(100):
        now += 3.0
        watcher.finished(items[0], row, 0)
    assert watcher.eta() == "4 min 32 s", "99 s are left by the plan, and the others took three times as long"


def test_plan_leaves_out_what_is_done():
    kernels = [fake("a"), fake("b")]
    first = plan(SUITE, kernels, CPU, CEILINGS)
    done = {first[0].case.case_id: {0}}
    rest = plan(SUITE, kernels, CPU, CEILINGS, done)
    assert [item.case.kernel for item in rest] == ["b"]
    more = plan(SUITE, kernels, CPU, CEILINGS, done, visits=3)
    assert [(item.case.kernel, item.visits) for item in more] == [("a", (1, 2)), ("b", (0, 1, 2))]
    assert more[0].total_seconds == pytest.approx(2 / 3 * more[1].total_seconds)


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
