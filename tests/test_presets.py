"""The preset suites: what each says of itself, and whether it is true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from powerbench.device import Device
from powerbench.kernels.table import select
from powerbench.models import presets as models
from powerbench.plan import plan
from powerbench.results.store import load as load_run
from powerbench.stopping import VISITS
from powerbench.suites import load, presets

ROOT = Path(__file__).parents[1]
H200 = Device("cuda", "NVIDIA H200", 140 * 2**30)
SWEEP_SECONDS = 15.0  # beside its cases: ceilings, the start of the measuring process
ASKED_FOR = {
    "paper", "crossover", "tiles", "degree", "heads", "dtype", "fla-shapes", "models", "ci", "smoke", "context",
    "decode",
}  # fmt: skip


def on_an_h200(kernel):
    """The kernel as it would answer where all is installed: by what it declares, which here is all there is to ask."""
    return replace(kernel, unsupported=lambda case, device_type: kernel.support.refusal(case))


def planned(name):
    suite = load(name).on("cuda")
    ceilings = load_run(ROOT / "results/h200/crossover.jsonl").ceilings
    kernels = [on_an_h200(kernel) for kernel in select(suite.kernels)]
    items = plan(suite, kernels, H200, ceilings, visits=VISITS)
    return [item for item in items if item.reason is None and item.memory_bytes <= H200.memory_bytes]


def test_all_are_there():
    assert set(presets()) == ASKED_FOR


@pytest.mark.parametrize("name", sorted(ASKED_FOR))
def test_each_says_what_it_is_for_and_its_cost_is_its_plans(name):
    suite = load(name)
    assert suite.name == name
    assert len(suite.purpose) > 20
    assert len(suite.shows) > 20
    items = planned(name)
    predicted = (sum(item.total_seconds for item in items) + SWEEP_SECONDS) / 60
    assert suite.minutes
    rounding = max(0.5, 0.1 * predicted)  # whole minutes, and what the ceilings of the next run may differ by
    assert abs(suite.minutes - predicted) <= rounding, f"{len(items)} cases, {predicted:.1f} minutes"
    assert any(item.case.kernel == "power-triton" for item in items)


def test_the_published_runs_can_be_asked_for_again():
    """Their header's suite is still one, with the cases that they hold where they were sweeps of it unchanged."""
    for path in (ROOT / "results/h200").glob("*.jsonl"):
        assert load_run(path).header.suite in {*presets(), "sweep"}


def test_fla_shapes():
    """benchmarks/ops/registry.py in flash-linear-attention: B, T, H, D."""
    problems = load("fla-shapes").on("cuda").problems()
    assert [(p.batch, p.seqlen, p.heads, p.head_dim) for p in problems] == [
        (1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128), (4, 4096, 64, 128), (8, 2048, 32, 256),
        (8, 1024, 8, 64),
    ]  # fmt: skip


def test_models_are_those_of_the_shapes():
    shapes = {(m.heads, m.kv_heads, m.head_dim) for m in models().values()}
    problems = list(load("models").on("cuda").problems())
    assert {(p.heads, p.kv_heads, p.head_dim) for p in problems} <= shapes
    assert {p.batch for p in problems} == {1}
    assert max(p.seqlen for p in problems) == 2**20


def test_the_paper_has_a_window_for_each_degree():
    suite = load("paper").on("cuda")
    windows = {c.params for c in suite.cases(select(("window-flash-4",)), "cuda") if c.problem.seqlen == 65536}
    assert {(params.p, params.window) for params in windows if params.window in (64, 2112)} == {(1, 64), (2, 2112)}
