"""Times above the roof are no evidence: not of an improvement, not for a baseline, not for a demand."""

from __future__ import annotations

import msgspec
import pytest

from powerbench.check.baselines import update_baseline
from powerbench.check.compare import compare, compare_pairs
from powerbench.check.demands import hold, parse
from powerbench.check.measure import calibration
from powerbench.check.model import Policy
from powerbench.check.outputs.junit import junit
from powerbench.check.outputs.markdown import markdown
from powerbench.check.outputs.text import not_compared
from powerbench.cost import Cost, Launch
from powerbench.errors import UserError
from powerbench.reports.rows import invalid, rows
from powerbench.reports.show import invalid_text
from powerbench.roofline import Ceilings
from tests.test_check import GPU, one, run

# 1 ms of work at the roof: 7.9e11 FLOPs at 7.9e14 a second.
WORK = (Launch("whole", Cost(790_000_000_000, 790_000_000_000, 10**6)),)


def busy(kernel="power-triton", roof=0.5, seed=0, **changes):
    """A case of 1 ms at the roof, measured at this share of it."""
    return one(kernel, ms=1.0 / roof, seed=seed, launches=WORK, **changes)


def test_a_time_at_45_times_the_roof_is_no_improvement():
    found = compare(run(busy()), run(busy(roof=45.0, seed=1)))
    (case,) = found.cases
    assert (case.verdict, found.exit_status) == ("invalid", 1)
    assert case.reason.startswith("above the roof: 4")
    assert found.summary == "INVALID: 1 invalid"
    assert '<failure type="invalid"' in junit(found)
    assert "\U0001f534 invalid" in markdown(found)


@pytest.mark.parametrize(("roof", "status"), [(1.0, 0), (1.01, 0), (1.05, 1)])
def test_the_limit_is_that_of_the_rows(roof, status):
    new = run(busy(roof=roof, seed=1, noise=1e-5))
    assert compare(run(busy(roof=0.995, noise=1e-5)), new).exit_status == status
    assert bool(invalid(rows(new))) == bool(status)


def test_an_impossible_baseline_is_not_comparable():
    found = compare(run(busy(roof=45.0), one("mine")), run(busy(seed=1), one("mine", seed=1)))
    assert found.counts == {"ok": 1, "not comparable": 1}
    assert found.exit_status == 4
    assert not_compared(found)[0].startswith("1 not comparable (in the baseline above the roof: ")
    assert found.summary.startswith("nothing comparable of power-triton was measured")


def test_both_impossible_and_just_as_fast_is_no_success():
    assert compare(run(busy(roof=45.0)), run(busy(roof=45.0, seed=1))).exit_status == 1


def test_a_new_case_that_is_impossible():
    found = compare(run(one("mine")), run(one("mine", seed=1), busy(roof=45.0)))
    assert (found.exit_status, found.counts) == (1, {"invalid": 1, "ok": 1})


def test_one_run_of_a_session_is_enough():
    fine, fast = run(busy(seed=1)), run(busy(roof=45.0, seed=2))
    assert compare_pairs([(run(busy()), fine), (run(busy(seed=3)), fast)]).exit_status == 1
    assert compare_pairs([(run(busy()), fine), (fast, run(busy(seed=3)))]).exit_status == 4


def test_controls_too_and_whatever_the_policy():
    """Where what nobody changed is impossible, the ceilings or the clock are wrong, and with them the whole run."""
    sides = run(busy("sdpa-cudnn"), one("mine")), run(busy("sdpa-cudnn", roof=3.0, seed=1), one("mine", seed=1))
    assert compare(*sides, Policy(allow_missing=True, allow_inconclusive=9)).exit_status == 1


def test_a_regression_beside_it_is_still_called_so():
    old = run(busy(), one("mine"))
    assert compare(old, run(busy(roof=45.0), one("mine", seed=1, ms=1.5))).summary.startswith(
        "REGRESSION: 1 regression"
    )


def test_by_the_ceilings_of_its_own_run():
    """A slower machine has a lower roof; the baseline's does not count."""
    low = Ceilings({k: v / 10 for k, v in GPU.ceilings.matmul_flops_per_s.items()}, GPU.ceilings.copy_bytes_per_s)
    new = run(busy(seed=1), header=msgspec.structs.replace(GPU, ceilings=low))
    assert compare(run(busy()), new).exit_status == 1
    assert compare(new, run(busy())).exit_status == 4


@pytest.mark.parametrize(
    ("kind", "text", "verdicts"),
    [
        ("max-ms", "20", ["ok", "regression"]),
        ("max-ms", "power=20", ["regression"]),
        ("max-ms", "sdpa=20", ["ok"]),
        ("max-ms", "power@2k=20", ["missing"]),
        ("min-roof", "power=0.5", ["regression"]),
        ("min-speedup", "power:sdpa=2", ["regression"]),
        ("min-speedup", "sdpa:power=2", ["missing"]),
    ],
)
def test_no_impossible_time_meets_a_demand(kind, text, verdicts):
    found = hold([parse(kind, text)], run(busy(roof=45.0), one("sdpa-cudnn")))
    assert [demand.verdict for demand in found] == verdicts
    assert all("above the roof" in demand.reason for demand in found if demand.verdict == "regression")


def test_nothing_is_calibrated_by_it():
    with pytest.raises(UserError, match="below the roof, in every run"):
        calibration([run(busy(seed=1)), run(busy(roof=45.0, seed=2))], Policy())
    assert len(calibration([run(busy(seed=i), one("mine", seed=i)) for i in range(3)], Policy()).cases) == 2


def test_nothing_of_it_makes_a_baseline(tmp_path):
    with pytest.raises(UserError, match="holds no measured case with a time that is possible"):
        update_baseline(tmp_path, run(busy(roof=45.0)))
    assert list(tmp_path.iterdir()) == []


def test_the_line_after_a_sweep():
    found = run(*(busy(roof=45.0, ctx=1024 + i) for i in range(5)), one("mine"))
    said = invalid_text(invalid(rows(found)), len(found.measurements))
    assert said.startswith(
        "INVALID: 5 of 6 cases have a time above the roof, which is impossible and no evidence: power-"
    )
    assert said.endswith(" and 2 more")
