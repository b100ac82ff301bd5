"""Which contexts are measured next, and a whole refined sweep of contestants whose times are known."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from rich.console import Console

from powerbench.errors import UserError
from powerbench.problem import Params
from powerbench.protocol import Sampled
from powerbench.refine import LIMIT, ROUND, WIDTH, begun, check, next_steps, rounded, summary
from powerbench.reports.crossovers import crossover_table
from powerbench.reports.rows import rows
from powerbench.session import Session
from powerbench.suites import Suite
from tests import runs
from tests.fakes import CEILINGS, CPU, Inline, fake

NAMES = ("power-torch", "sdpa-cpu")
SUITE = Suite(
    ctx=(1024, 4096, 16384), heads=(8,), head_dim=(64,), dtype=("fp32",), gated=False, kernels=NAMES, batch=(1,),
)  # fmt: skip


def softmax_ms(ctx):
    return 0.5 + 1e-3 * ctx + 4e-7 * ctx**2


def power_ms(ctx):
    return 5.0 + 3e-3 * ctx


TRUTH = (2e-3 + (4e-6 + 4 * 4e-7 * 4.5) ** 0.5) / (2 * 4e-7)  # where the two are equal


def measured(contexts, noise=0.003, **changes):
    found = []
    for ctx in contexts:
        more = {"noise": noise, "n": 15, "flops": 1e6, **changes}
        found.append(runs.measurement("sdpa-cpu", ctx, softmax_ms(ctx), **more))
        found.append(runs.measurement("power-torch", ctx, power_ms(ctx), params=Params(2, 8, 256), **more))
    return rows(runs.run(found))


def test_a_wide_crossing_is_measured_where_it_is_thought_to_be():
    (step,) = next_steps(measured(SUITE.ctx), SUITE, NAMES)
    assert step.crossings == 1
    (ctx,) = step.contexts
    assert ctx % 128 == 0
    assert ctx == pytest.approx(TRUTH, rel=0.2)
    assert step.text == f"Forward, fp32, d = 64: 1 too wide, measuring {ctx}"
    assert (step.suite.ctx, step.suite.kernels, step.suite.batch) == ((ctx,), NAMES[::-1], (1,))


def test_it_ends_and_the_interval_holds_the_truth():
    contexts = list(SUITE.ctx)
    for _ in range(LIMIT):
        steps = next_steps(measured(contexts), SUITE, NAMES)
        if not steps:
            break
        contexts += steps[0].contexts
    assert 3 < len(contexts) < 3 + LIMIT
    found = runs.run([row.measurement for row in measured(contexts)])
    (pair,) = crossover_table(found)
    (crossing,) = pair.crossover.crossings
    assert crossing.width < WIDTH
    assert crossing.low <= TRUTH <= crossing.high
    assert "every crossing is known to 10 % or better" in summary(measured(contexts), SUITE, NAMES)


def test_no_more_than_the_limit(monkeypatch):
    """So noisy that contexts do not help: it ends all the same, and says so."""
    near = int(TRUTH)
    crowd = measured([*SUITE.ctx, *(near - 800 + 200 * i for i in range(LIMIT))], noise=0.15)
    assert next_steps(crowd, SUITE, NAMES) == []
    assert "--refine: wider than 10 % after 8 contexts or for want of samples" in summary(crowd, SUITE, NAMES)
    monkeypatch.setattr("powerbench.refine.LIMIT", LIMIT + 2)
    (step,) = next_steps(crowd, SUITE, NAMES)
    assert 1 <= len(step.contexts) <= min(2, ROUND)


def test_curves_that_do_not_cross_are_left_alone():
    never = [row for row in measured((1024, 2048)) if row.ctx]
    assert next_steps(never, msgspec.structs.replace(SUITE, ctx=(1024, 2048)), NAMES) == []
    assert "no two contestants change places" in summary(never, SUITE, NAMES)
    assert next_steps([], SUITE, NAMES) == []


def test_only_what_the_suite_asks_for():
    both = measured(SUITE.ctx) + measured(SUITE.ctx, pass_="fwd+bwd") + measured(SUITE.ctx, dtype="bf16")
    assert [step.setting.pass_ for step in next_steps(both, SUITE, NAMES)] == ["fwd"]
    assert next_steps(both, SUITE, ("sdpa-cpu",)) == []
    wanted = msgspec.structs.replace(SUITE, pass_=("fwd", "fwd+bwd"), dtype=("fp32", "bf16"))
    assert len(next_steps(both, wanted, NAMES)) == 3


def test_the_work_of_a_call_stays_that_of_the_suite():
    suite = msgspec.structs.replace(SUITE, batch=None)
    (step,) = next_steps(measured(SUITE.ctx, tokens=16384), suite, NAMES)
    (problem,) = step.suite.problems()
    assert problem.batch == 16384 // problem.seqlen > 1


def test_rounding_does_not_leave_the_range():
    """A crossing just above the smallest context, which is no multiple of 128: there is no room below it."""
    near = msgspec.structs.replace(SUITE, ctx=(int(TRUTH) - 20, int(TRUTH) + 4000))
    (step,) = next_steps(measured(near.ctx, noise=0.0001), near, NAMES)
    assert all(near.ctx[0] < ctx < near.ctx[1] for ctx in step.contexts)


def test_what_was_begun_comes_first_when_a_sweep_goes_on():
    found = measured((*SUITE.ctx, 6016))
    (step,) = begun(found, SUITE, NAMES)
    assert step.contexts == (6016,)
    assert begun(measured(SUITE.ctx), SUITE, NAMES) == []


@pytest.mark.parametrize(
    ("ctx", "expected"), [(5325.3, 5376), (1100.0, 1088), (70000.0, 70016), (100.0, 100), (33.0, 32), (3.0, 3)]
)
def test_contexts_are_multiples_that_kernels_take(ctx, expected):
    assert rounded(ctx, None) == expected


@pytest.mark.parametrize(
    ("ctx", "expected"),
    [(4224.0, 4096), (5325.3, 5376), (1100.0, 1152), (900.0, 896), (3000.0, 2688), (26000.0, 25984)],
)
def test_with_constant_tokens_a_call_does_its_work_where_a_batch_fills_it(ctx, expected):
    tokens = 8192 if ctx < 10_000 else 65536
    found = rounded(ctx, tokens)
    assert found == expected
    whole = abs(tokens / round(tokens / ctx) - ctx) <= 0.1 * ctx
    assert not whole or tokens // found * found > 0.93 * tokens


def test_each_block_of_a_suite_has_its_own_crossings():
    """Dtypes, contexts and batches are those of the block, not of the suite around it."""
    half = msgspec.structs.replace(SUITE, dtype=("bf16",), ctx=(2048, 8192))
    one = msgspec.structs.replace(SUITE, ctx=(1024,))
    suite = Suite(name="both", kernels=NAMES).of_blocks((SUITE, half, SUITE, one))
    check(suite)
    found = measured(SUITE.ctx) + measured((2048, 8192), dtype="bf16")
    first, second = next_steps(found, suite, NAMES)
    assert (first.suite.dtype, second.suite.dtype) == (("fp32",), ("bf16",))
    assert all(1024 < ctx < 16384 for ctx in first.contexts)
    assert all(2048 < ctx < 8192 for ctx in second.contexts)
    assert all(list(step.suite.problems()) for step in (first, second))
    assert "wider than 10 %" in summary(found, suite, NAMES)
    (step,) = begun(found + measured((6016,), dtype="bf16"), suite, NAMES)
    assert (step.suite.dtype, step.contexts) == (("bf16",), (6016,))
    with pytest.raises(UserError, match="at least two contexts"):
        check(Suite(name="both").of_blocks((one, one)))


def test_one_context_cannot_be_refined():
    with pytest.raises(UserError, match="--refine: --ctx has to name at least two contexts"):
        check(Suite(ctx=(1024,)))


class Clocked(Inline):
    """A bench whose clock is scripted, so that a busy machine changes nothing; all else is real."""

    def ask(self, verb, case, argument, timeout_s):
        reply = super().ask(verb, case, argument, timeout_s)
        if not isinstance(reply, Sampled):
            return reply
        noise = np.random.default_rng(case.problem.seqlen).normal(1, 0.01, len(reply.ms))
        ctx = case.problem.seqlen
        ms = 4 + 0.25 * (ctx if case.kernel == "fake-linear" else ctx**2 / 96)
        return Sampled(tuple(float(x) for x in ms * noise))


@pytest.fixture
def session(monkeypatch):
    """Two contestants: one takes a time in proportion to the context, one to its square; equal at 96 tokens."""
    kernels = [fake("fake-linear"), fake("fake-square")]
    monkeypatch.setattr("powerbench.session.measure_ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr("powerbench.session.measure_all_ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr("powerbench.session.Worker", lambda _: Clocked(kernels))
    monkeypatch.setattr("powerbench.runner.implausible", lambda *_: (None, None))  # that no such time has passed
    suite = Suite(ctx=(32, 256), head_dim=(8,), kernels=("fake",), batch=(1,)).on("cpu")
    return Session(suite, kernels, CPU, 0, Console(file=io.StringIO(), width=200), refine=True)


def test_a_refined_sweep_end_to_end(session, tmp_path):
    path = tmp_path / "run.jsonl"
    run = session.sweep(path, "powerbench sweep --refine", resume=False)
    contexts = sorted({m.case.problem.seqlen for m in run.measurements})
    added = set(contexts) - {32, 256}
    assert 1 <= len(added) <= LIMIT
    assert all(m.status == "ok" for m in run.measurements)
    assert len(run.measurements) == 2 * len(contexts), "every contestant at every context"
    (pair,) = crossover_table(run)
    (crossing,) = pair.crossover.crossings
    assert crossing.at == pytest.approx(96, rel=0.2)
    said = session.console.file.getvalue()
    assert f"--refine: then up to {LIMIT} contexts more around the crossings of each setting, at most about" in said
    assert "Forward, fp32, d = 8: 1 too wide, measuring" in said
    assert crossing.width < WIDTH or len(added) == LIMIT

    lines = path.read_text().splitlines(keepends=True)
    cases = [i for i, line in enumerate(lines) if '"type":"measurement"' in line]
    path.write_text("".join(lines[: cases[4] + 1]))  # killed within the first refined context
    again = session.sweep(path, "powerbench sweep --refine", resume=True)
    assert [m.case_id for m in again.measurements[:5]] == [m.case_id for m in run.measurements[:5]]
    assert again.warnings == (), "nothing is measured twice"
    by_context = {}
    for m in again.measurements:
        by_context.setdefault(m.case.problem.seqlen, set()).add(m.case.kernel)
    assert all(len(kernels) == 2 for kernels in by_context.values())


def test_the_plan_says_what_refining_may_add(session):
    printed = Console(file=io.StringIO(), width=200)
    session.dry_run(printed)
    assert "--refine: then up to 8 contexts more" in printed.file.getvalue()
