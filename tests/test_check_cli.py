"""`powerbench check` from the command line: every exit status, every output, and what is bad usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from powerbench.check.model import CaseVerdict, Comparison, Demand, Policy
from powerbench.check.outputs.junit import junit
from powerbench.check.outputs.markdown import markdown
from powerbench.results.store import RunWriter
from tests import runs
from tests.test_check import one, run

SLOW = {"regression.jsonl": 1.3, "improvement.jsonl": 0.7, "ok.jsonl": 1.0, "unsure.jsonl": 1.027}


def check(*args, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    code = "from powerbench.cli import main; main()"
    root = Path(__file__).parents[1]
    clean = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
    return subprocess.run(
        [sys.executable, "-c", code, "check", *map(str, args)], cwd=cwd, capture_output=True, text=True, check=False,
        timeout=500, env={**clean, "PYTHONPATH": str(root), "XDG_STATE_HOME": str(cwd / "state"), **env},
    )  # fmt: skip


def write(path, *cases, **environment):
    found = run(*cases, **environment)
    with RunWriter.create(path, found.header) as writer:
        for case in found.measurements:
            writer.append(case)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A baseline, and runs that differ from it in known ways."""
    folder = tmp_path_factory.mktemp("check")
    write(folder / "base.jsonl", one(seed=1), one("mine", seed=2))
    for seed, (name, factor) in enumerate(SLOW.items()):
        write(folder / name, one(seed=10 + seed, ms=factor), one("mine", seed=20 + seed))
    write(folder / "other.jsonl", one("another"))
    write(folder / "half.jsonl", one(seed=4))
    write(folder / "empty.jsonl")
    write(folder / "h100.jsonl", one(), device="NVIDIA H100")
    return folder


@pytest.mark.parametrize(
    ("args", "status", "word"),
    [
        (["base.jsonl", "ok.jsonl"], 0, "no regression: 2 ok"),
        (["base.jsonl", "improvement.jsonl"], 0, "no regression: 1 improvement, 1 ok"),
        (["base.jsonl", "regression.jsonl"], 1, "REGRESSION: 1 regression, 1 ok"),
        (["base.jsonl", "unsure.jsonl"], 3, "inconclusive: 1 inconclusive, 1 ok"),
        (["base.jsonl", "unsure.jsonl", "--allow-inconclusive", "1"], 0, "no regression: 1 inconclusive, 1 ok"),
        (["base.jsonl", "unsure.jsonl", "--threshold", "10%"], 0, "no regression: 2 ok"),
        (["base.jsonl", "other.jsonl"], 1, "REGRESSION: 2 missing (counted as regressions), 1 new"),
        (
            ["base.jsonl", "other.jsonl", "--allow-missing"],
            4,
            "nothing comparable was measured: 2 missing (not counted as regressions), 1 new",
        ),
        (["base.jsonl", "half.jsonl"], 1, "REGRESSION: 1 ok, 1 missing (counted as regressions)"),
        (["base.jsonl", "half.jsonl", "--allow-missing"], 0, "1 ok, 1 missing (not counted as regressions)"),
        (
            ["base.jsonl", "half.jsonl", "--controls", "mine"],
            0,
            "1 missing (in the baseline only; not on trial): mine/",
        ),
        (["base.jsonl", "empty.jsonl"], 1, "REGRESSION: 2 missing (counted as regressions)"),
        (["base.jsonl", "h100.jsonl"], 4, "device: NVIDIA H200 against NVIDIA H100"),
        (["ok.jsonl", "--max-ms", "2"], 0, "no regression: 2 ok"),
        (["ok.jsonl", "--max-ms", "mine=0.5"], 1, "REGRESSION: 1 regression"),
        (["ok.jsonl", "--max-ms", "nobody=0.5"], 4, "nothing comparable was measured: 1 missing"),
        (["base.jsonl", "ok.jsonl", "--min-speedup", "mine:power=3"], 1, "--min-speedup mine:power=3"),
        (["base.jsonl", "ok.jsonl", "--min-roof", "0.0001"], 0, "no regression: 4 ok"),
    ],
)
def test_exit_status_and_table(folder, args, status, word):
    done = check(*args, cwd=folder)
    assert done.returncode == status, done.stderr + done.stdout
    assert word in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "nothing to compare with"),
        (["base.jsonl"], "nothing to compare with"),
        (["base.jsonl", "ok.jsonl", "other.jsonl"], "one or two run files, not 3"),
        (["base.jsonl", "ok.jsonl", "--against", "HEAD"], "exclude each other"),
        (["--calibrate", "--against", "HEAD"], "exclude each other"),
        (["base.jsonl", "ok.jsonl", "--suite", "ci"], "--suite: has no effect here"),
        (["base.jsonl", "ok.jsonl", "--rounds", "2"], "--rounds: has no effect here"),
        (["--against", "HEAD", "--noise", "x"], "--noise: has no effect here"),
        (["base.jsonl", "ok.jsonl", "--baseline-dir", "x"], "there is a baseline already"),
        (["base.jsonl", "--update-baseline"], "goes with --baseline-dir"),
        (["ok.jsonl", "--baseline-dir", "nowhere"], "has no baseline for NVIDIA H200"),
        (["base.jsonl", "ok.jsonl", "--threshold", "much"], "'much' is not a share such as 3% or 0.03"),
        (["base.jsonl", "ok.jsonl", "--threshold", "300%"], "is not a share"),
        (["base.jsonl", "ok.jsonl", "--max-ms", "x"], "--max-ms: 'x' is not a demand such as"),
        (["base.jsonl", "absent.jsonl"], "absent.jsonl: No such file"),
        (["base.jsonl", "ok.jsonl", "--junit", "/dev/null/x"], "cannot write /dev/null/x"),
        (["--against", "HEAD", "--suite", "nosuch"], "'nosuch' is neither a TOML file nor one of"),
        (["--against", "HEAD"], "in no git repository"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(folder, args, word):
    done = check(*args, cwd=folder)
    assert done.returncode == 2, done.stdout
    assert word in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_output_at_once(folder, tmp_path):
    """One comparison, four formats; and the job's summary is added to, not overwritten."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    files = {name: tmp_path / "out" / f"check.{name}" for name in ("json", "junit", "markdown")}
    args = [f"--{name}={path}" for name, path in files.items()]
    done = check("base.jsonl", "regression.jsonl", *args, cwd=folder, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 1
    assert "regression" in done.stdout
    found = json.loads(files["json"].read_text())
    assert (found["schema"], found["exit_status"], found["counts"]) == (1, 1, {"regression": 1, "ok": 1})
    assert found["cases"][0]["verdict"] == "regression"
    assert found["cases"][0]["ratio"] == pytest.approx(1.3, rel=0.01)
    assert found["policy"]["threshold"] == 0.03
    text = files["markdown"].read_text()
    assert text.startswith("### powerbench check: REGRESSION: 1 regression, 1 ok")
    assert summary.read_text() == "before\n" + text
    root = ElementTree.parse(files["junit"]).getroot()
    assert root.find("testsuite").get("failures") == "1"


def test_json_to_standard_output_is_nothing_but_json(folder):
    done = check("base.jsonl", "unsure.jsonl", "--json", "-", cwd=folder)
    assert json.loads(done.stdout)["exit_status"] == done.returncode == 3


def test_a_folder_of_baselines(folder, tmp_path):
    written = check(folder / "base.jsonl", "--baseline-dir", "baselines", "--update-baseline", cwd=tmp_path)
    assert (written.returncode, written.stdout) == (0, "baseline: baselines/nvidia-h200.jsonl\n")
    assert check(folder / "ok.jsonl", "--baseline-dir", "baselines", cwd=tmp_path).returncode == 0
    assert check(folder / "regression.jsonl", "--baseline-dir", "baselines", cwd=tmp_path).returncode == 1
    absent = check(folder / "h100.jsonl", "--baseline-dir", "baselines", cwd=tmp_path)
    assert absent.returncode == 2
    assert "has no baseline for NVIDIA H100 (nvidia-h100.jsonl; there is nvidia-h200)" in absent.stderr
    again = check(folder / "regression.jsonl", "--baseline-dir", "baselines", "--update-baseline", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert check(folder / "regression.jsonl", "--baseline-dir", "baselines", cwd=tmp_path).returncode == 0


# The schema that Jenkins, Azure and others publish (JUnit.xsd of the Ant task): what each element may and must have.
# Attributes: name -> must it be there. Children, in this order: tag -> may there be many.
JUNIT = {
    "testsuites": ({}, {"testsuite": True}),
    "testsuite": (
        {"name": True, "timestamp": True, "hostname": True, "tests": True, "failures": True, "errors": True,
         "time": True, "package": True, "id": True, "skipped": False},
        {"properties": False, "testcase": True, "system-out": False, "system-err": False},
    ),
    "properties": ({}, {"property": True}),
    "property": ({"name": True, "value": True}, {}),
    "testcase": (
        {"name": True, "classname": True, "time": True}, {"skipped": False, "error": False, "failure": False},
    ),
    "skipped": ({"message": False}, {}),
    "error": ({"type": True, "message": False}, {}),
    "failure": ({"type": True, "message": False}, {}),
    "system-out": ({}, {}),
    "system-err": ({}, {}),
}  # fmt: skip


def assert_junit(text):
    """Structure as in the schema, counts as in the content, numbers where it wants them."""
    root = ElementTree.fromstring(text.partition("\n")[2])
    assert root.tag == "testsuites"
    for element in root.iter():
        attributes, children = JUNIT[element.tag]
        assert set(element.attrib) <= set(attributes)
        assert {name for name, must in attributes.items() if must} <= set(element.attrib)
        tags = [child.tag for child in element]
        assert tags == sorted(tags, key=list(children).index)
        assert all(many or tags.count(tag) <= 1 for tag, many in children.items())
    (suite,) = root
    cases = suite.findall("testcase")
    assert all(len(case) <= 1 for case in cases)
    assert int(suite.get("tests")) == len(cases)
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(name)) == sum(case.find(tag) is not None for case in cases)
    assert all(float(element.get("time")) >= 0 for element in (suite, *cases))
    assert all(suite.find(tag) is not None for tag in ("properties", "system-out", "system-err"))
    assert len(suite.get("timestamp")) == len("2026-01-02T03:04:05")
    return suite


@pytest.mark.parametrize(
    ("verdicts", "failures", "errors"),
    [
        (["ok", "improvement"], 0, 0),
        (["regression", "inconclusive"], 1, 0),
        (["ok", "inconclusive"], 0, 1),
        (["missing", "new", "not comparable"], 0, 1),
        ([], 0, 1),
    ],
)
def test_junit_is_as_its_schema_says_and_red_where_the_status_is(verdicts, failures, errors):
    cases = tuple(CaseVerdict(f"kernel/{i}", verdict, runs.HOSTILE) for i, verdict in enumerate(verdicts))
    found = Comparison(runs.HOSTILE, "b", runs.HOSTILE, "2026-01-02T03:04:05Z", Policy(), cases, notes=(runs.HOSTILE,))
    suite = assert_junit(junit(found))
    assert (int(suite.get("failures")), int(suite.get("errors"))) == (failures, errors)
    assert bool(failures + errors) == bool(found.exit_status)
    unmet = msgspec.structs.replace(found, demands=(Demand("--max-ms 1", "", "missing", runs.HOSTILE),))
    assert int(assert_junit(junit(unmet)).get("errors")) >= 1


def test_markdown_takes_nothing_from_a_run_file_for_markup():
    case = CaseVerdict(runs.HOSTILE, "inconclusive", runs.HOSTILE, (runs.HOSTILE,))
    demand = Demand("--max-ms 1", runs.HOSTILE, "ok", runs.HOSTILE)
    text = markdown(
        Comparison(runs.HOSTILE, runs.HOSTILE, runs.HOSTILE, "", Policy(), (case,), (demand,), (runs.HOSTILE,))
    )
    outside = "".join(part for i, part in enumerate(text.split("`")) if i % 2 == 0)
    assert "<img" not in outside
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (8, 5) for line in rows)


def test_a_baseline_that_loses_cases_says_so(folder, tmp_path):
    for name, said in (("base", ""), ("half", "had a time of before, and has none of now: 1\n"), ("base", "")):
        done = check(folder / f"{name}.jsonl", "--baseline-dir", "baselines", "--update-baseline", cwd=tmp_path)
        assert done.returncode == 0
        assert done.stderr.endswith(said)
        assert bool(done.stderr) == bool(said)
