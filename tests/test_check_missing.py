"""Cases that vanish: the gate cannot be passed by measuring less."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import msgspec
import pytest

from powerbench.check.compare import compare, compare_pairs
from powerbench.check.model import Policy
from powerbench.check.outputs.json import to_json
from powerbench.check.outputs.junit import junit
from powerbench.check.outputs.markdown import markdown
from powerbench.check.outputs.text import not_compared
from powerbench.problem import Params
from powerbench.reports.comparison import comparison as beside
from powerbench.reports.rows import rows
from powerbench.results.model import CeilingsAgain, Phase
from tests.test_check import GPU, lost, one, run

CONTEXTS = [1024 << i for i in range(6)]
KERNELS = ("power-triton", "linear-triton", "sdpa-cudnn")


def whole(seed=0, kernels=KERNELS):
    """18 cases, 6 of them of a control; the file is complete."""
    cases = [one(kernel, ctx=ctx, seed=seed + i) for i, ctx in enumerate(CONTEXTS) for kernel in kernels]
    return msgspec.structs.replace(run(*cases), again=(CeilingsAgain(GPU.ceilings),))


def cut(found, *keep):
    """The run without the measurements that none of `keep`, prefixes of case ids, names."""
    kept = tuple(one for one in found.measurements if one.case_id.startswith(keep))
    return msgspec.structs.replace(found, measurements=kept)


def outputs(found):
    """What a reader of each format sees: failures of JUnit, of JSON, and red lines of markdown."""
    suite = ElementTree.fromstring(junit(found).partition("\n")[2]).find("testsuite")
    assert len(suite.findall("testcase/failure")) == int(suite.get("failures"))
    as_json = json.loads(to_json(found))
    assert as_json["failures"] == sum(case["lost"] or case["verdict"] == "regression" for case in as_json["cases"])
    assert markdown(found).startswith(f"### powerbench check: {found.summary}")
    red = sum(line.startswith("| \U0001f534") for line in markdown(found).splitlines())
    return int(suite.get("failures")), as_json["failures"], red


def test_a_run_cut_to_two_cases_is_no_success():
    found = compare(whole(), cut(whole(), "power-triton/-/fwd/T1024-", "power-triton/-/fwd/T2048-"))
    assert found.exit_status == 1
    assert found.summary == "REGRESSION: 2 ok, 16 missing (10 counted as regressions)"
    assert outputs(found) == (10, 10, 10)
    assert not_compared(found)[0].startswith("10 missing (in the baseline only): linear-triton/")
    assert not_compared(found)[1].startswith("6 missing (in the baseline only; not on trial): sdpa-cudnn/")
    allowed = compare(whole(), cut(whole(), "power-triton/-/fwd/T1024-"), Policy(allow_missing=True))
    assert (allowed.exit_status, outputs(allowed)) == (0, (0, 0, 0))
    assert allowed.summary == "no regression: 1 ok, 17 missing (not counted as regressions)"


@pytest.mark.parametrize(("kernel", "status"), [("power-triton", 1), ("sdpa-cudnn", 0)], ids=["on trial", "a control"])
def test_a_kernel_that_became_unsupported(kernel, status):
    gone = [lost("unsupported", "no luck", one_.case.kernel) if one_.case.kernel == kernel else one_
            for one_ in run(*(one(name, seed=5) for name in KERNELS)).measurements]  # fmt: skip
    found = compare(run(*(one(name) for name in KERNELS)), run(*gone))
    assert found.exit_status == status
    assert outputs(found) == (status, status, status)
    said = "unsupported now: no luck" + ("" if status else "; not on trial")
    assert f"1 missing ({said}): {kernel}/-/fwd" in "\n".join(not_compared(found))


def test_every_case_of_a_kernel_gone():
    found = compare(whole(), cut(whole(), "power", "sdpa"))
    assert (found.exit_status, found.counts) == (1, {"ok": 12, "missing": 6})
    named = compare(whole(), cut(whole(), "power", "sdpa"), Policy(controls=("linear-triton",)))
    assert named.exit_status == 0


def test_a_contestant_that_is_on_trial_by_an_empty_list_of_controls():
    assert compare(whole(), cut(whole(), "power", "linear"), Policy(controls=("",))).exit_status == 1


@pytest.mark.parametrize("new", [run(), run(one("another"))], ids=["empty", "no case in common"])
def test_nothing_in_common(new):
    found = compare(whole(), new)
    assert found.exit_status == 1
    assert found.summary.startswith("REGRESSION: 18 missing (12 counted as regressions)")
    assert compare(whole(), new, Policy(allow_missing=True)).exit_status == 4


def test_an_empty_baseline_compares_nothing():
    assert compare(run(), whole()).exit_status == 4


def test_what_the_baseline_had_no_time_of_cannot_be_lost():
    found = compare(run(one(), lost("oom", "96 GiB", "linear-triton")), run(one(seed=2)))
    assert found.exit_status == 0
    assert not_compared(found)[0].startswith("1 missing (in the baseline only; oom there)")


def test_of_another_device_nothing_is_lost():
    """A run on another machine is not comparable, whatever it holds."""
    found = compare(whole(), msgspec.structs.replace(run(one(), device="NVIDIA H100"), again=()))
    assert (found.exit_status, found.counts) == (4, {"not comparable": 18})


def test_a_sweep_that_was_interrupted_says_so():
    full, part = whole(), msgspec.structs.replace(cut(whole(), "power"), again=())
    note = "perhaps it was interrupted"
    assert any(note in text for text in compare(full, part).notes)
    assert not any(note in text for text in compare(full, cut(whole(), "power")).notes)
    assert not any(note in text for text in compare(part, part).notes)


def test_a_case_that_a_later_run_of_a_session_did_not_reach():
    """And one that a later baseline did not: that says nothing of the new code."""
    first, short = (whole(1), whole(2)), cut(whole(3), "power-triton", "sdpa")
    assert compare_pairs([first, (whole(4), short)]).exit_status == 1
    assert compare_pairs([first, (short, whole(4))]).exit_status == 0


def test_a_later_run_that_chose_other_tiles_has_lost_nothing():
    old, new = one(seed=1, params=Params(2, 8, 1024)), one(seed=2, params=Params(2, 8, 1024))
    other = one(seed=3, params=Params(2, 16, 1024))
    assert compare_pairs([(run(old), run(new)), (run(old), run(other))]).exit_status == 0


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"timer": "events-cold"}, "timer: "), ({"dtype": "fp16"}, "dtype: ")],
)
def test_a_kernel_on_trial_of_which_nothing_can_be_compared_is_no_success(changes, word):
    """As when it is not captured into a graph any more, and the controls are well."""
    changed = one(seed=3)
    changed = one(seed=3, **changes) if "dtype" in changes else msgspec.structs.replace(changed, **changes)
    old = run(one(), one("sdpa-cudnn"))
    found = compare(old, run(changed, one("sdpa-cudnn", seed=7)))
    assert found.exit_status == 4
    assert found.summary == "nothing comparable of power-triton was measured: 1 ok, 1 not comparable"
    assert word in not_compared(found)[0]
    assert "<error" in junit(found)
    assert compare(old, run(changed, one("sdpa-cudnn", seed=7)), Policy(controls=("power", "sdpa"))).exit_status == 0


def test_phases_that_are_gone_are_said_and_no_regression():
    timed = tuple(Phase(name, (1.0, 1.0, 1.0)) for name in ("scan", "attention"))
    old = run(one(seed=1, phases=timed))
    without = compare(old, run(one(seed=2)))
    assert (without.exit_status, without.notes) == (0, ("phases were timed in the baseline only: 1 cases",))
    failed = compare(old, run(one(seed=2, phases=(timed[0], Phase("attention", message="out of memory")))))
    assert failed.exit_status == 0
    assert failed.cases[0].triage == ("not timed any more: phase attention",)


def test_the_page_puts_two_suites_beside_each_other_without_a_verdict_on_what_is_missing():
    sides = whole(), cut(whole(seed=9), "power-triton/-/fwd/T1024-")
    found = beside(*sides, ("run 1", "run 2"), tuple(rows(side) for side in sides))
    assert found.summary == "No regression: 1 ok, 17 missing (not counted as regressions)."


def test_the_table_of_markdown_is_not_endless():
    contexts = [1024 + i for i in range(40)]
    found = compare(run(*(one(ctx=ctx) for ctx in contexts)), run())
    text = markdown(found)
    assert text.count("\U0001f534 missing") == 20
    assert "40 missing (in the baseline only)" in text
