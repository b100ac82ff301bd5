"""Contestants that spoil what all share, or that cheat: each is found out, and costs only itself."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from powerbench import gate
from powerbench.inputs import Guard, Variation, make_inputs
from powerbench.kernels.kernel import Inputs
from powerbench.plan import plan
from powerbench.problem import Case, Params, Problem
from powerbench.protocol import Sampled
from powerbench.reports.rows import COLUMNS
from powerbench.results.store import load
from powerbench.runner import ALONE, implausible, run
from powerbench.suites import Suite
from powerbench.worker import Setup, Worker
from tests import hostile_kernels
from tests.fakes import CEILINGS, CPU, PROBLEM, WALL, Inline, fake, softmax
from tests.test_worker import Silent

ROOT = Path(__file__).parents[1]
TABLE = hostile_kernels.kernels()
SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=(2,), dtype=("fp32",)).on("cpu")


def measure(*kernels, suite=SUITE, hire=None, timed=True):
    planned = plan(suite, kernels, CPU, CEILINGS)
    with closing(run(planned, CPU, hire or (lambda: Inline(kernels)), Silent(), timed=timed)) as rows:
        return {row.case.kernel: row for row in rows}


# --- what all share ---


@pytest.mark.parametrize("name", [kernel.name for kernel in hostile_kernels.SPOILERS])
@pytest.mark.parametrize("timed", [True, False])
def test_who_changes_the_inputs_is_blamed_and_nobody_else(name, timed):
    found = measure(fake("first"), TABLE[name], fake("last"), timed=timed)
    assert {name: row.status for name, row in found.items()} == {"first": "ok", name: "wrong", "last": "ok"}
    tensor = "k" if name == "writes-one-element" else "q"
    assert found[name].message == f"it changed the inputs of all contestants in place: {tensor}"


def late(tensor, number):
    """Right, but from a call of this number on it changes one element of an input, where only a whole look finds it."""
    left = [number]

    def forward(q, k, v, log_g):
        left[0] -= 1
        y = softmax(q, k, v, log_g)
        if left[0] < 0:
            x = {"q": q, "k": k, "v": v}[tensor]
            x.detach().numpy()[0, 0, 0, 0] += 1.0
        return y

    return forward


@pytest.mark.parametrize("tensor", ["q", "k", "v"])
def test_a_change_that_shows_late_is_not_an_others(tensor, monkeypatch):
    """Where it is not known whose it was, each is measured alone, and then it is."""
    monkeypatch.setattr("powerbench.inputs.SPOTS", 1)
    monkeypatch.setattr("powerbench.inputs.torch.randint", lambda *_, **__: torch.tensor([5]), raising=True)
    found = measure(fake("first"), fake("late", late(tensor, 6)), fake("last"))
    assert {name: row.status for name, row in found.items()} == {"first": "ok", "late": "wrong", "last": "ok"}
    assert found["late"].message == f"it changed the inputs of all contestants in place: {tensor}"
    assert ALONE in {row.order for row in found.values()}


@pytest.mark.parametrize("change", [
    lambda x: x.mul_(1.0), lambda x: x.data.mul_(2.0), lambda x: x.copy_(x.flip(1)), lambda x: x.resize_(1),
    lambda x: x.set_(torch.zeros_like(x)), lambda x: x.detach().neg_(), lambda x: x[0, 0].zero_(),
    lambda x: x.view(torch.int32).add_(1), lambda x: x.transpose_(0, 1), lambda x: x.numpy().fill(0),
])  # fmt: skip
def test_every_kind_of_write_is_seen_at_once(change):
    inputs = make_inputs(PROBLEM, torch.device("cpu"), 0)
    guard = Guard(inputs)
    assert (guard.quick(), guard.thorough()) == ((), ())
    change(inputs.k)
    assert guard.quick() == ("k",)


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 39, 1, 6)])
def test_a_whole_look_sees_one_bit(dtype, place):
    inputs = make_inputs(Problem(2, 40, 4, 2, 8, 7, dtype, True), torch.device("cpu"), 0)
    guard = Guard(inputs)
    inputs.v[place] *= -1
    assert guard.thorough() == ("v",)


# --- changes between timed calls ---


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd", "decode"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_changes_are_taken_back_exactly(pass_, dtype):
    problem = Problem(2, 40, 4, 2, 8, 8, dtype, True)
    inputs, same = (make_inputs(problem, torch.device("cpu"), 0) for _ in range(2))
    guard = Guard(inputs)
    with Variation(Case(problem, "k", Params(), pass_), inputs, guard, 1) as variation:
        for _ in range(20):
            variation.once()
        with variation.only(torch.tensor([3, 7])):
            assert float(inputs.dy.abs().sum((0, 2, 3)).count_nonzero()) == 2
        assert not torch.equal(inputs.v, same.v) or not torch.equal(inputs.dy, same.dy)
    assert all(torch.equal(x, getattr(same, name)) for name, x in vars(inputs).items())
    assert (guard.quick(), guard.thorough()) == ((), ())


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_results_follow_as_said(pass_, everywhere):
    """By the reference: y and all gradients are their factor times what they were."""
    case = Case(Problem(2, 20, 4, 2, 8, 6, "fp64", False), "k", Params(), pass_)
    inputs, kernel = make_inputs(case.problem, torch.device("cpu"), 0), fake("k")

    def results(of: Inputs):
        y, gradients = gate.differentiable(kernel, of, softmax)
        return gradients(of.dy) if "bwd" in pass_ else (y.detach(),)

    before = results(inputs)
    with Variation(case, inputs, Guard(inputs), 1) as variation:
        if everywhere:
            variation.everywhere()
        for _ in range(0 if everywhere else 20):
            variation.once()
        after = results(inputs)
        for x, factor, was in zip(after, variation.factors(), before, strict=False):
            assert not torch.equal(x, was) or pass_ != "fwd"
            torch.testing.assert_close(x, factor * was)


# --- cheats ---


def test_a_result_kept_by_a_sign_is_seen():
    found = measure(fake("first"), TABLE["cached-by-sign"])
    assert (found["cached-by-sign"].status, found["first"].status) == ("wrong", "ok")
    assert found["cached-by-sign"].message.startswith("after timing, on changed inputs, off by ")


def test_a_result_kept_by_its_content_is_made_for_every_sample():
    """So that its samples have the work in them; it is no cheat then."""
    row = measure(fake("content", prepare=lambda case: hostile_kernels.CachedByContent()))["content"]
    assert row.status == "ok"
    assert min(row.samples_ms) >= 20


@pytest.mark.parametrize("pass_", ["fwd", "bwd"])
def test_a_lazy_tensor_is_refused(pass_):
    found = measure(TABLE["lazy"], suite=Suite(**{**vars_of(SUITE), "pass_": (pass_,)}))
    assert found["lazy"].status == "wrong"
    assert found["lazy"].message == "it returned a Lazy, not a plain torch.Tensor"


def vars_of(suite):
    return {name: getattr(suite, name) for name in suite.__struct_fields__}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.nn.Parameter, "it returned a Parameter, not a plain torch.Tensor"),
        (lambda q: q.to_sparse(), "it returned a tensor of layout torch.sparse_coo"),
        (
            torch._neg_view,
            "it returned a tensor of layout torch.strided and dtype torch.float32, not dense",
        ),
        (lambda q: q.long(), "it returned a tensor of layout torch.strided and dtype torch.int64, not dense"),
        (lambda q: q[:1], "it returned [1, 40, 4, 8] on cpu, not [2, 40, 4, 8] on cpu"),
        (lambda q: q.to("meta"), "it returned [2, 40, 4, 8] on meta, not [2, 40, 4, 8] on cpu"),
        (lambda q: None, "it returned a NoneType, not a plain torch.Tensor"),
    ],
)
def test_only_plain_results_are_taken(returned, message):
    row = measure(fake("odd", lambda q, k, v, g: returned(q)))["odd"]
    assert row.status == "wrong"
    assert row.message.startswith(message)


@pytest.mark.parametrize("timed", [True, False])
def test_rows_that_nobody_knew_are_looked_at(timed, monkeypatch):
    monkeypatch.setattr(gate, "REFERENCE_ELEMENTS", 2**12)
    suite = Suite(**{**vars_of(SUITE), "ctx": (256,), "heads": (1,), "kv_heads": (1,), "batch": (1,)})
    found = measure(TABLE["only-sampled-rows"], fake("right"), suite=suite, timed=timed)
    assert (found["only-sampled-rows"].status, found["right"].status) == ("wrong", "ok")


def test_work_that_goes_on_in_a_thread_is_seen():
    assert measure(TABLE["later"])["later"].status == "wrong"


@pytest.mark.parametrize("name", ["slow-clock", "fast-clock"])
def test_a_patched_clock_is_held_against_the_parents(name):
    def hire():
        return Worker(Setup(CPU, 0, WALL, kernels="tests.hostile_kernels:kernels"))

    found = measure(TABLE[name], hire=hire)
    assert found[name].status == "failed"
    assert f"a clock runs {name.split('-')[0]}" in found[name].message


CASE = Case(PROBLEM, "k", Params(), "fwd")


@pytest.mark.parametrize(
    ("sampled", "elapsed_s", "word"),
    [
        (Sampled((10.0,) * 5), 0.055, None),
        (Sampled((10.0,) * 5), 0.020, "fast"),
        (Sampled((0.01,) * 5), 0.500, "slow"),
        (Sampled((0.01,) * 5), 0.005, None),
        (Sampled((10.0,) * 5, calls=4), 0.22, None),
        (Sampled((10.0,) * 5, calls=4), 0.15, "fast"),
        (Sampled((1000.0,)), 2.5, None),
    ],
)
def test_samples_and_the_time_waited_for_them(sampled, elapsed_s, word):
    impossible, doubtful = implausible(sampled, CASE, elapsed_s, "cpu")
    assert (word == "fast") == bool(impossible)
    assert (word == "slow") == bool(doubtful)


def test_one_round_in_which_the_machine_stood_still_accuses_nobody(monkeypatch):
    found = iter([(None, "doubt"), (None, None), (None, "doubt")])
    monkeypatch.setattr("powerbench.runner.implausible", lambda *_: next(found, (None, None)))
    assert measure(fake("right"))["right"].status == "ok"


def test_tolerance_has_an_end():
    assert gate.tolerance(Case(PROBLEM, "k", Params(p=100_000), "fwd")) == gate.WIDEST


# --- as a package ---

NAMES = (
    "own-word",
    "wide",
    "lazy",
    "cached-by-sign",
    "later",
    "normalises-in-place",
    "announces-2gb",
    "forks-and-exits",
)
OPTIONS = "--device cpu --ctx 64 --heads 2 --head-dim 8 --dtype fp32"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the metadata of an installed package."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "hostile-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(hostile_kernels.entry_points(NAMES))
    return folder


def powerbench(site, cwd, *args):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "COLUMNS": "200"}
    command = [sys.executable, "-m", "powerbench", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


IMPORTS = ("oserror", "exits", "interrupts", "unreadable")


def test_a_hostile_package_costs_its_own_rows_of_a_sweep(site, tmp_path):
    names = ",".join((*NAMES, *IMPORTS, "sdpa-cpu"))
    done = powerbench(site, tmp_path, "sweep", *OPTIONS.split(), "--visits", "1", "--kernels", names, "-o", "run.jsonl")
    assert "Traceback" not in done.stderr, done.stderr
    found = {row.case.kernel: row for row in load(tmp_path / "run.jsonl").measurements}
    assert {name: row.status for name, row in found.items()} == {
        **dict.fromkeys(IMPORTS, "unsupported"), "wide": "unsupported", "own-word": "ok", "lazy": "wrong",
        "cached-by-sign": "wrong", "later": "wrong", "normalises-in-place": "wrong", "announces-2gb": "failed",
        "forks-and-exits": "failed", "sdpa-cpu": "ok",
    }  # fmt: skip
    assert found["own-word"].third_party == "reference and ledger of hostile 1.0"
    assert found["sdpa-cpu"].third_party is None
    shown = powerbench(site, tmp_path, "show", "run.jsonl", "--format", "csv").stdout.splitlines()
    assert shown[0].split(",")[-1] == COLUMNS[-1] == "third_party"
    assert sum(line.endswith(",reference and ledger of hostile 1.0") for line in shown) >= 1
    assert (
        "reference and ledger of hostile 1.0, not powerbench's"
        in powerbench(site, tmp_path, "show", "run.jsonl").stdout
    )


def test_a_hostile_package_costs_its_own_rows_of_verify_and_list(site, tmp_path):
    names = ",".join((*NAMES, *IMPORTS, "sdpa-cpu"))
    done = powerbench(site, tmp_path, "verify", *OPTIONS.split(), "--kernels", names)
    assert "Traceback" not in done.stderr, done.stderr
    assert "sdpa-cpu/-/fwd" in done.stdout
    listed = powerbench(site, tmp_path, "list", "kernels")
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in ("sdpa-cpu", *NAMES, *IMPORTS))
