"""Verdicts, reasons and words of the gate, on runs made for each."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from powerbench.check import clocks, triage
from powerbench.check.baselines import load_calibration, save_calibration
from powerbench.check.compare import compare, compare_pairs
from powerbench.check.demands import hold, parse
from powerbench.check.measure import calibration
from powerbench.check.model import Comparison, Demand, Policy
from powerbench.check.noise import ASSUMED, Calibration, CaseNoise, floor_of, moderated
from powerbench.check.outputs.json import to_json
from powerbench.check.outputs.markdown import markdown
from powerbench.errors import UserError
from powerbench.problem import Params
from powerbench.results.model import Phase, Round
from powerbench.roofline import Ceilings
from tests import runs

GPU = runs.header("NVIDIA H200", peak=7.9e14, bandwidth=4.1e12)


def one(kernel="power-triton", ms=1.0, ctx=1024, seed=0, noise=0.003, n=60, **changes):
    """A case with its own noise; two calls differ in their seed only."""
    generator = np.random.default_rng(seed)
    made = runs.measurement(kernel, ctx, 1.0, dtype=changes.pop("dtype", "bf16"), params=changes.pop("params", None))
    samples = tuple((ms * np.exp(noise * generator.standard_normal(n))).tolist())
    return msgspec.structs.replace(made, samples_ms=samples, timer="graph-cold", **changes)


def run(*cases, header=GPU, **environment):
    header = msgspec.structs.replace(header, environment=msgspec.structs.replace(header.environment, **environment))
    return runs.run(cases, header)


def lost(status, message="why", kernel="power-triton"):
    return msgspec.structs.replace(one(kernel), status=status, samples_ms=(), message=message)


def only(comparison):
    (case,) = comparison.cases
    return case


@pytest.mark.parametrize(
    ("factor", "verdict", "status"),
    [(1.0, "ok", 0), (1.01, "ok", 0), (1.06, "regression", 1), (0.94, "improvement", 0), (1.027, "inconclusive", 3)],
)
def test_verdicts_by_how_much_slower(factor, verdict, status):
    found = compare(run(one(seed=1)), run(one(seed=2, ms=factor)))
    case = only(found)
    assert case.verdict == verdict, case
    assert found.exit_status == status
    assert case.ratio == pytest.approx(factor, abs=0.003)
    assert case.low < case.ratio < case.high
    assert case.new_ms / case.baseline_ms == pytest.approx(case.ratio)


def test_a_sure_change_below_the_threshold_is_none():
    """The noise is known to be tiny, so 2 % are sure; and no regression at 3 %, but one at 1 %."""
    known = Calibration("NVIDIA H200", GPU.environment.gpu.uuid, 20, 30, "", {one().case_id: CaseNoise(0.001, 0.03)})
    old, new = run(one(seed=1)), run(one(seed=2, ms=1.02))
    assert only(compare(old, new, calibration=known)).verdict == "ok"
    strict = only(compare(old, new, Policy(threshold=0.01), known))
    assert strict.verdict == "regression"
    assert strict.noise_source == "20 A/A runs"


def test_a_calibration_counts_only_where_it_was_made():
    known = Calibration("NVIDIA H200", "GPU-another", 20, 30, "", {one().case_id: CaseNoise(0.001, 0.03)})
    old, new = run(one(seed=1)), run(one(seed=2))
    assert floor_of(one().case_id, old.header.environment, new.header.environment, known) == ASSUMED["same gpu"]


def test_two_gpus_of_one_model_differ_by_more_than_one_from_itself():
    other = run(one(seed=2, ms=1.05), gpu=msgspec.structs.replace(runs.FACTS, uuid="GPU-another"))
    case = only(compare(run(one(seed=1)), other))
    assert (case.verdict, case.noise) == ("inconclusive", ASSUMED["gpu"].sd)


def test_few_samples_are_no_verdict():
    assert only(compare(run(one()), run(one(n=4)))).reason == "4 samples; the gate needs at least 5"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"device": "NVIDIA H100"}, "device: NVIDIA H200 against NVIDIA H100"),
        ({"packages": {"power-triton": "2.0"}}, "versions of power-triton: 1.0 against 2.0"),
    ],
)
def test_not_comparable_for_the_run(changed, reason):
    found = compare(run(one(), packages={"power-triton": "1.0"}), run(one(ms=2.0), **changed))
    assert (only(found).verdict, only(found).reason) == ("not comparable", reason)
    assert found.exit_status == 4


def test_a_new_schema_is_not_comparable():
    newer = run(one(), header=msgspec.structs.replace(GPU, schema=2))
    assert only(compare(run(one()), newer)).reason == "schema 1 against 2: measure the baseline again"


def test_not_comparable_for_the_case():
    timer = only(compare(run(one()), run(msgspec.structs.replace(one(), timer="events-hot"))))
    assert (timer.verdict, timer.reason) == ("not comparable", "timer: graph-cold against events-hot")
    dtype = only(compare(run(one()), run(one(dtype="fp16"))))
    assert (dtype.verdict, dtype.reason) == ("not comparable", "dtype: bf16 against fp16")


def test_other_versions_may_be_compared_and_powerbench_is_on_trial_itself():
    old, new = run(one(seed=1), packages={"power-triton": "1.0"}), run(one(seed=2), packages={"power-triton": "2.0"})
    assert only(compare(old, new, Policy(ignore_versions=True))).verdict == "ok"
    own = [
        run(one(seed=i), powerbench=v, packages={"power-triton": f"{v} on triton 3.9.0"})
        for i, v in ((1, "1"), (2, "2"))
    ]
    assert only(compare(*own)).verdict == "ok"


@pytest.mark.parametrize(
    ("status", "verdict", "reason"),
    [
        ("wrong", "regression", "correctness lost: why"),
        ("failed", "regression", "fails now: why"),
        ("oom", "regression", "runs out of memory now: why"),
        ("timeout", "regression", "takes too long now: why"),
        ("unsupported", "missing", "unsupported now: why"),
    ],
)
def test_a_case_that_has_no_time_any_more(status, verdict, reason):
    case = only(compare(run(one()), run(lost(status))))
    assert (case.verdict, case.reason) == (verdict, reason)


def test_missing_new_and_never_measured():
    found = compare(run(lost("unsupported"), one("gone")), run(one("came"), lost("unsupported")))
    verdicts = {case.case_id.partition("/")[0]: case.verdict for case in found.cases}
    assert verdicts == {"came": "new", "power-triton": "not comparable", "gone": "missing"}
    assert found.exit_status == 1, "what is gone is a regression"
    allowed = compare(
        run(lost("unsupported"), one("gone")), run(one("came"), lost("unsupported")), Policy(allow_missing=True)
    )
    assert allowed.exit_status == 4, "nothing was compared, and that is no success"


def test_another_choice_of_tiles_is_the_same_case_and_named():
    old = run(one(seed=1, params=Params(2, 8, 1024), config={"num_warps": "4"}))
    new = run(one(seed=2, ms=1.2, params=Params(2, 16, 1024), config={"num_warps": "8"}))
    case = only(compare(old, new))
    assert case.verdict == "regression"
    assert case.triage == ("config changed: d_tile 8, now 16, num_warps 4, now 8",)


def test_a_sweep_of_tiles_is_paired_by_id_alone():
    """Two left over on a side: which of them is the other's is not known."""
    old = run(one(params=Params(2, 8, 512)), one(params=Params(2, 8, 256)))
    found = compare(old, run(one(params=Params(2, 16, 512))))
    assert found.counts == {"missing": 2, "new": 1}


def test_one_phase_slower():
    phases = [Phase(name, (1.0, 1.0, 1.0)) for name in ("scan", "attention", "query_state")]
    slow = [phases[0], Phase("attention", (1.4, 1.4, 1.4)), phases[2]]
    old, new = one(seed=1, phases=tuple(phases)), one(seed=2, ms=1.13, phases=tuple(slow))
    assert only(compare(run(old), run(new))).triage == ("only phase attention (1.40x) of 3 slower",)
    all_of_them = tuple(Phase(phase.name, (1.2, 1.2, 1.2)) for phase in phases)
    assert triage.phase_changes(old, one(phases=all_of_them), 0.03) == []


def test_the_environment_is_said_once():
    slow = msgspec.structs.replace(runs.FACTS, power_limit_w=500.0)
    found = compare(run(one(seed=1)), run(one(seed=2), gpu=slow, packages={"torch": "2.14.0", "triton": "3.9.0"}))
    assert found.notes == (
        "environment changed: torch: 2.13.0, now 2.14.0",
        "environment changed: power limit, W: 700.0, now 500.0",
    )


def test_a_slower_machine_by_its_ceilings_is_not_a_slower_kernel():
    rates = GPU.ceilings
    slower = Ceilings({k: v / 1.08 for k, v in rates.matmul_flops_per_s.items()}, rates.copy_bytes_per_s / 1.08)
    new = run(one(seed=2, ms=1.08), header=msgspec.structs.replace(GPU, ceilings=slower))
    case = only(compare(run(one(seed=1)), new))
    assert (case.verdict, case.machine_ratio) == ("inconclusive", pytest.approx(1.08))
    assert case.reason == "the machine itself took +8.0 % for such work, by its measured ceilings"
    worse = run(one(seed=2, ms=1.3), header=new.header)
    assert only(compare(run(one(seed=1)), worse)).verdict == "regression", "8 % do not explain 30 %"


@pytest.mark.parametrize(
    ("factor", "mhz", "verdict", "word"),
    [
        (1.10, "1800", "inconclusive", "not confirmed in cycles"),
        (1.10, "1980", "regression", ""),
        (1.00, "2160", "inconclusive", "a higher clock hides it"),
        (0.90, "2200", "inconclusive", "not confirmed in cycles"),
    ],
)
def test_confirmed_in_cycles(factor, mhz, verdict, word):
    old = one(seed=1, rounds=(Round(20, 1980.0), Round(40, 1980.0)))
    new = one(seed=2, ms=factor, rounds=(Round(60, float(mhz)),))
    case = only(compare(run(old), run(new)))
    assert case.verdict == verdict
    assert word in case.reason
    assert case.cycles_ratio == pytest.approx(factor * float(mhz) / 1980, rel=0.003)
    said = [text for text in case.triage if text.startswith("clock")]
    assert said == ([] if mhz == "1980" else [f"clock {'lower' if mhz < '1980' else 'higher'}: 1980 MHz, now {mhz}"])


def test_without_clocks_nothing_is_said_of_them():
    assert clocks.sample_mhz(one()) is None
    assert clocks.sample_mhz(one(rounds=(Round(30, 1980.0), Round(30)))) is None
    assert only(compare(run(one(seed=1)), run(one(seed=2)))).cycles_ratio is None
    three = msgspec.structs.replace(one(), samples_ms=(1.0, 2.0, 3.0), rounds=(Round(3, 1000.0),))
    assert clocks.log_cycles(three) == pytest.approx(math.log(2e6)), "2 ms at 1000 MHz"


def test_what_slowed_the_gpu_down_is_said():
    old, new = one(seed=1), one(seed=2, ms=1.1, rounds=(Round(60, reasons=("sw thermal slowdown",)),))
    assert only(compare(run(old), run(new))).triage == ("the GPU was slowed down: sw thermal slowdown",)


def test_controls_that_moved_widen_everything():
    cases = [("sdpa-cudnn", ctx) for ctx in (1024, 2048, 4096)] + [("power-triton", 1024)]
    old = run(*(one(kernel, ctx=ctx, seed=i) for i, (kernel, ctx) in enumerate(cases)))
    new = run(*(one(kernel, ctx=ctx, seed=i + 9, ms=1.2) for i, (kernel, ctx) in enumerate(cases)))
    found = compare(old, new)
    assert found.counts == {"inconclusive": 4}
    assert found.notes[0].startswith(
        "the machine was not quiet: 3 cases of contestants that are not on trial moved by +19.9 %"
    )
    alone = compare(old, new, Policy(controls=()))
    assert alone.counts == {"regression": 4}


def test_a_control_of_another_version_is_none():
    versions = {"sdpa-cudnn": "2.13.0"}, {"sdpa-cudnn": "2.14.0"}
    old, new = (
        run(*(one("sdpa-cudnn", ctx=ctx, seed=ctx + i, ms=ms) for ctx in (1024, 2048, 4096)), packages=packages)
        for i, (ms, packages) in enumerate(zip((1.0, 1.2), versions, strict=True))
    )
    assert compare(old, new, Policy(ignore_versions=True)).counts == {"regression": 3}
    assert compare(old, new).counts == {"not comparable": 3}


def test_all_slower_together_is_said():
    kernels = ("power-triton", "linear-triton", "mine")
    old = run(*(one(kernel, seed=i) for i, kernel in enumerate(kernels)))
    new = run(*(one(kernel, seed=i + 9, ms=1.2) for i, kernel in enumerate(kernels)))
    assert compare(old, new).notes[-1].endswith("rather the machine than a kernel")


def test_pairs_take_their_noise_from_their_own_spread():
    """Four pairs 1 % apart from each other: what is 6 % slower is seen without any assumption."""
    shifts = (1.0, 1.01, 0.99, 1.005)
    kernels = ("power-triton", "linear-triton", "mine")

    def pairs(factor):
        return [
            (
                run(*(one(kernel, seed=10 * i + j, ms=shift) for j, kernel in enumerate(kernels))),
                run(*(one(kernel, seed=50 + 10 * i + j, ms=shift * factor) for j, kernel in enumerate(kernels))),
            )
            for i, shift in enumerate(shifts)
        ]

    assert compare_pairs(pairs(1.06)).counts == {"regression": 3}
    quiet = compare_pairs(pairs(1.0))
    assert quiet.counts == {"ok": 3}
    assert quiet.cases[0].noise_source == "4 pairs of runs"


def test_a_case_that_was_wrong_in_any_run_of_a_session_is_lost():
    found = compare_pairs([(run(one(seed=1)), run(one(seed=2))), (run(one(seed=3)), run(lost("wrong")))])
    assert only(found).reason == "correctness lost: why"


def test_where_nothing_can_be_seen_every_output_says_so():
    noisy = [one(seed=i, noise=3.0, n=8) for i in range(2)]
    found = compare(run(noisy[0]), run(noisy[1]))
    assert math.isinf(only(found).detectable)
    assert only(found).verdict == "inconclusive"
    assert '"detectable": null' in to_json(found)
    assert "no slowdown would be seen" in markdown(found)
    assert "| nothing |" in markdown(found)


def test_moderated_variances():
    """Four cases of one degree of freedom: prior min(4, 3) = 3, so (3 * mean + own) / 4."""
    found, freedom = moderated({"a": 1e-2, "b": 0.0, "c": 0.0, "d": 0.0}, 1)
    assert freedom == 4
    assert found["a"] == pytest.approx((3 * 2.5e-3 + 1e-2) / 4)
    assert found["b"] == pytest.approx(3 * 2.5e-3 / 4)
    assert moderated({"a": 4e-4}, 5) == ({"a": pytest.approx(4e-4)}, 5)


def test_calibration_finds_the_noise_between_runs(tmp_path):
    """Runs made with 1.41 % between two of them; the median of 60 samples adds nearly nothing."""
    generator = np.random.default_rng(5)
    contexts = [1024 << i for i in range(6)]
    made = [
        run(
            *(
                one(ctx=ctx, seed=100 * i + j, ms=math.exp(0.01 * generator.standard_normal()))
                for j, ctx in enumerate(contexts)
            )
        )
        for i in range(16)
    ]
    found = calibration(made, Policy())
    assert np.mean([case.sd for case in found.cases.values()]) == pytest.approx(0.0141, rel=0.2)
    assert all(0.05 < case.detectable < 0.15 for case in found.cases.values())
    assert (found.runs, found.freedom, found.device) == (16, 15 + 4, "NVIDIA H200")
    assert found.fits(made[0].header.environment)
    save_calibration(found, tmp_path / "a" / "noise.json")
    assert load_calibration(tmp_path / "a" / "noise.json") == found
    with pytest.raises(UserError, match="no case was measured"):
        calibration([run(one()), run(one("another"))], Policy())


DEMANDED = run(
    *(one("power-triton", ms=1.0, ctx=ctx, seed=ctx) for ctx in (4096, 65536)),
    one("sdpa-cudnn", ms=8.0, ctx=65536), one("sdpa-flash", ms=9.0, ctx=65536), lost("oom"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "verdicts"),
    [
        ("max-ms", "10", ["ok"] * 4),
        ("max-ms", "power=1.05", ["ok"] * 2),
        ("max-ms", "power@64k=0.9", ["regression"]),
        ("max-ms", "sdpa-flash=8", ["regression"]),
        ("max-ms", "power@4k=0.9993", ["inconclusive"]),
        ("max-ms", "flash=8", ["missing"]),
        ("max-ms", "@2k=8", ["missing"]),
        ("min-speedup", "power:sdpa@65536=6", ["ok"]),
        ("min-speedup", "power:sdpa@64k=9", ["regression"]),
        ("min-speedup", "power:sdpa-flash=8.5", ["ok"]),
        ("min-speedup", "power:sdpa=8", ["inconclusive"]),
        ("min-speedup", "power:sdpa@4k=6", ["missing"]),
        ("min-roof", "power=0.0001", ["ok"] * 2),
        ("min-roof", "power@64k=0.99", ["regression"]),
    ],
)
def test_demands(kind, text, verdicts):
    found = hold([parse(kind, text)], DEMANDED)
    assert [demand.verdict for demand in found] == verdicts, found
    assert all(demand.demand == f"--{kind} {text}" for demand in found)


def test_a_speedup_says_by_how_much_and_of_which():
    (demand,) = hold([parse("min-speedup", "power:sdpa@64k=6")], DEMANDED)
    assert demand.reason.startswith(("8.0", "7.9"))
    assert demand.of.startswith("power-triton/")
    assert "against sdpa-cudnn/" in demand.of


@pytest.mark.parametrize(
    ("kind", "text"),
    [("max-ms", "soon"), ("max-ms", "power=-1"), ("max-ms", "a:b=1"), ("min-speedup", "6"), ("min-speedup", "power=6"),
     ("min-speedup", "power:=6"), ("min-roof", ""), ("max-ms", "power@never=1")],
)  # fmt: skip
def test_a_bad_demand_is_one_line_that_names_the_option(kind, text):
    with pytest.raises(UserError, match=f"--{kind}"):
        parse(kind, text)


@pytest.mark.parametrize(
    ("verdicts", "allowed", "status"),
    [
        ([], 0, 4), (["missing", "new"], 0, 4), (["not comparable"], 0, 4), (["ok"], 0, 0), (["improvement"], 0, 0),
        (["ok", "missing"], 0, 0), (["ok", "inconclusive"], 0, 3), (["ok", "inconclusive"], 1, 0),
        (["inconclusive", "regression"], 5, 1),
    ],
)  # fmt: skip
def test_exit_status(verdicts, allowed, status):
    from powerbench.check.model import CaseVerdict

    cases = tuple(CaseVerdict(str(i), verdict, "") for i, verdict in enumerate(verdicts))
    found = Comparison("a", "b", "device", "", Policy(allow_inconclusive=allowed), cases)
    assert found.exit_status == status
    unmet = msgspec.structs.replace(found, demands=(Demand("--max-ms 1", "", "missing", ""),))
    assert unmet.exit_status == (1 if status == 1 else 4)
