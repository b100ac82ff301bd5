"""Run files of several environments: what may be resumed, what a file then says, and who reads it."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from powerbench.check.compare import compare
from powerbench.errors import UserError
from powerbench.reports.index import index
from powerbench.reports.machine import environment_lines
from powerbench.reports.page import page
from powerbench.reports.rows import COLUMNS, rows
from powerbench.reports.show import render
from powerbench.results.environments import differences, differences_text, known_as, mixture, next_id
from powerbench.results.model import FIRST, EnvironmentRecord, Round
from powerbench.results.resuming import join
from powerbench.results.store import RunWriter, StoreError, load
from powerbench.roofline import Ceilings
from powerbench.session import Session
from powerbench.suites import Suite
from tests import runs
from tests.fakes import CEILINGS, CPU, fake
from tests.test_check import GPU, one, run

HERE = GPU.environment
REPLACED = {
    "torch": {"packages": {**HERE.packages, "torch": "2.14.0"}},
    "triton": {"packages": {**HERE.packages, "triton": "3.10.0"}},
    "no triton": {"packages": {"torch": "2.13.0", "flash-attn-4": "4.0.0"}},
    "a contestant": {"packages": {**HERE.packages, "flash-attn-4": "4.1.0"}},
    "commit": {"commit": "fedcba9876543210"},
    "no commit": {"commit": None},
    "uncommitted changes": {"commit": f"{HERE.commit}-dirty"},
    "powerbench": {"powerbench": "0.2.0"},
    "python": {"python": "3.13.1"},
    "os": {"os": "Linux 6.8.0"},
    "cpu": {"cpu": "another CPU"},
    "driver": {"driver": "590.1"},
    "cuda": {"cuda": "13.1"},
    "threads": {"cores": 7},
    "GPU": {"gpu": msgspec.structs.replace(runs.FACTS, uuid="GPU-another")},
    "power limit": {"gpu": msgspec.structs.replace(runs.FACTS, power_limit_w=500.0)},
    "MIG": {"gpu": msgspec.structs.replace(runs.FACTS, mig="on")},
    "device": {"device": "NVIDIA H100"},
}
SAME = {
    "what may spoil": {"warnings": (runs.BUSY,)},
    "memory that is free": {"memory_bytes": 1},
    "another selection": {"packages": {"torch": "2.13.0", "triton": "3.9.0", "fla-chunk": "1.0"}},
    "NVML has gone": {"gpu": msgspec.structs.replace(runs.FACTS, ecc="unavailable", power_limit_w=None)},
}


def changed(**values):
    return msgspec.structs.replace(HERE, **values)


def record(id_="e2", ceilings=GPU.ceilings, **values):
    return EnvironmentRecord(id_, changed(**values), ceilings, "powerbench sweep -o a.jsonl --resume-anyway", "2026")


def mixed(second=REPLACED["torch"], *, kernels=("power-triton", "sdpa-cudnn"), seed=0, **ceilings):
    """Cases at 1k and 2k in the header's environment, at 4k and 8k in another."""
    cases = [
        one(kernel, ctx=1024 << i, seed=seed + i, environment="e1" if i < 2 else "e2")
        for i in range(4)
        for kernel in kernels
    ]
    return msgspec.structs.replace(run(*cases), more=(record(**ceilings, **second),))


@pytest.mark.parametrize("name", REPLACED)
def test_what_makes_another_environment_is_refused_and_named(name):
    warned = []
    with pytest.raises(UserError, match="--resume-anyway goes on, and the file names both") as refusal:
        join(run(one()), changed(**REPLACED[name]), "", anyway=False, ceilings=pytest.fail, warn=warned.append)
    assert "\n" not in str(refusal.value)
    assert " was " in str(refusal.value)
    assert ", is " in str(refusal.value)
    found = join(run(one()), changed(**REPLACED[name]), "c", anyway=True, ceilings=lambda: CEILINGS, warn=warned.append)
    assert (found.id, found.environment, found.ceilings) == ("e2", changed(**REPLACED[name]), CEILINGS)
    assert len(warned) == 1


def test_both_values_are_named_and_what_follows_from_torch_is_not_repeated():
    old = changed(
        packages={"torch": "2.13.0", "triton": "3.9.0", "sdpa-cudnn": "2.13.0", "power-triton": "0.1.0 on triton 3.9.0"}
    )
    new = changed(
        packages={"torch": "2.14.0", "triton": "3.9.0", "sdpa-cudnn": "2.14.0", "power-triton": "0.1.0 on triton 3.9.0"}
    )
    assert differences_text(differences(old, new)) == "torch was 2.13.0, is 2.14.0"
    later = msgspec.structs.replace(
        old, powerbench="0.2.0", packages={**old.packages, "power-triton": "0.2.0 on triton 3.9.0"}
    )
    assert differences_text(differences(old, later)) == "powerbench was 0.1.0, is 0.2.0"
    many = changed(python="3", os="x", cpu="y", driver="z", cuda="1", cores=2)
    assert differences_text(differences(HERE, many)).endswith("; and 2 more")


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_make_another_environment(name):
    found = join(run(one()), changed(**SAME[name]), "", anyway=False, ceilings=pytest.fail, warn=pytest.fail)
    if name != "another selection":
        assert found == FIRST
        return
    assert (found.id, found.ceilings) == (FIRST, None)
    assert found.environment.packages == HERE.packages | SAME[name]["packages"]


def test_back_in_an_environment_that_the_file_knows():
    again = join(mixed(), HERE, "", anyway=False, ceilings=pytest.fail, warn=pytest.fail)
    assert (again, known_as(mixed(), changed(**REPLACED["torch"]))) == (FIRST, "e2")
    assert next_id(mixed()) == "e3"


def test_uncommitted_changes_are_said():
    warned = []
    dirty = run(one(), commit="abc-dirty")
    assert join(dirty, dirty.header.environment, "", anyway=False, ceilings=pytest.fail, warn=warned.append) == FIRST
    assert "nobody knows" in warned[0]


def write(path, found):
    with RunWriter.create(path, found.header) as writer:
        for measured in found.measurements:
            if measured.environment != writer.environment:
                writer.append_environment(found.more[0])
            writer.append(measured)
    return load(path)


def test_written_and_read_back(tmp_path):
    found = mixed()
    loaded = write(tmp_path / "run.jsonl", found)
    assert (loaded.measurements, loaded.more, loaded.warnings) == (found.measurements, found.more, ())
    kinds = [json.loads(line)["type"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert kinds == ["header"] + ["measurement"] * 4 + ["environment"] + ["measurement"] * 4
    first = json.loads((tmp_path / "run.jsonl").read_text().splitlines()[1])
    assert "environment" not in first, "as files of before"


def test_files_of_before_load_as_they_did():
    from pathlib import Path

    old = load(Path(__file__).parents[1] / "results" / "cpu" / "context.jsonl")
    assert list(old.environments) == [FIRST]
    assert {measured.environment for measured in old.measurements} == {FIRST}
    assert mixture(old) is None


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([msgspec.json.encode(one(environment="e9"))], "line 2: environment 'e9' is none of those before it"),
        ([msgspec.json.encode(one(environment="e2")), msgspec.json.encode(record())], "line 2: environment 'e2'"),
        ([msgspec.json.encode(record(ceilings=None))], "line 2: environment 'e2' has no ceilings"),
        ([msgspec.json.encode(record(ceilings=Ceilings({"bf16": -1.0}, 1.0)))], "line 2: a ceiling is not positive"),
        ([b'{"type":"environment","id":"e2"}'], "line 2: Object missing required field `environment`"),
        ([b'{"type":"ceilings","ceilings":{"matmul_flops_per_s":{},"copy_bytes_per_s":1},"environment":"e3"}'],
         "line 2: environment 'e3' is none"),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused(tmp_path, lines, word):
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"\n".join([msgspec.json.encode(GPU), *lines, b""]))
    with pytest.raises(StoreError, match=word):
        load(path)


def visits(*numbers, environment="e1"):
    return [
        msgspec.structs.replace(one(seed=i, n=6), rounds=(Round(6, visit=i),), environment=environment) for i in numbers
    ]


def test_visits_of_two_environments_are_not_mixed(tmp_path):
    cases = [*visits(0, 1, 2), *visits(0, 1, environment="e2")]
    found = msgspec.structs.replace(run(*cases), more=(record(),))
    loaded = write(tmp_path / "run.jsonl", found)
    (case,) = loaded.measurements
    assert (case.environment, len(case.visits)) == ("e2", 2)
    assert loaded.warnings[0].startswith("measured in more than one environment, the last one counts: power-triton/")


def test_each_row_by_the_ceilings_of_its_own_environment():
    low = Ceilings({"bf16": 7.9e11}, 4.1e9)
    found = rows(mixed(ceilings=low))
    assert found[-1].roof_fraction > 100 * found[0].roof_fraction
    assert mixed(ceilings=low).ceilings.matmul_flops_per_s["bf16"] == GPU.ceilings.matmul_flops_per_s["bf16"]


def test_exports_have_the_environment_as_their_last_column():
    assert COLUMNS[-1] == "environment"
    lines = render(mixed(), "csv").splitlines()
    assert [lines[0].split(",")[-1], lines[1].split(",")[-1], lines[-1].split(",")[-1]] == ["environment", "e1", "e2"]
    assert {row["environment"] for row in json.loads(render(mixed(), "json"))} == {"e1", "e2"}


def test_every_reader_says_that_a_run_is_mixed():
    found, alone = mixed(), run(one())
    said = "e2 (4 cases): torch was 2.13.0, is 2.14.0"
    for text in (render(found, "table", width=300), render(found, "markdown"), page([found]), index([found])):
        assert said in text
    for text in (render(alone, "table"), render(alone, "markdown"), page([alone]), index([alone])):
        assert "environments" not in text
    named = dict(environment_lines(found))["Environment e2"]
    assert named.startswith("4 cases; torch was 2.13.0, is 2.14.0; started 2026: powerbench sweep -o a.jsonl")
    assert "environment" in render(found, "table", width=300).splitlines()[2]
    commits = index([mixed(REPLACED["commit"])])
    assert "commit 0123456789abcdef and fedcba9876543210" in commits


def test_a_check_compares_each_case_by_its_own_environments():
    """sdpa of the second environment has another version: there it is none to compare, in the first it is."""
    versions = {"packages": {**HERE.packages, "sdpa-cudnn": "2"}}
    base = run(*mixed().measurements, packages={**HERE.packages, "sdpa-cudnn": "1"})
    base = msgspec.structs.replace(
        base, measurements=tuple(msgspec.structs.replace(m, environment="e1") for m in base.measurements)
    )
    new = mixed(versions, seed=50)
    new = msgspec.structs.replace(new, header=base.header)
    found = compare(base, new)
    assert found.counts == {"ok": 6, "not comparable": 2}
    assert any("measured in 2 environments" in note for note in found.notes)
    changes = [note for note in found.notes if "environment changed" in note]
    assert changes == ["e1 of the baseline against e2: environment changed: sdpa-cudnn: 1, now 2"]


def test_the_noise_of_two_gpus_for_the_cases_that_were_measured_on_the_other():
    other = {"gpu": msgspec.structs.replace(runs.FACTS, uuid="GPU-another")}
    found = compare(run(*(msgspec.structs.replace(m, environment="e1") for m in mixed().measurements)), mixed(other))
    noises = {case.noise_source for case in found.cases}
    assert noises == {"assumed", "assumed, another GPU"}


def test_controls_allow_for_what_moved_in_their_own_environment_only():
    """The second day was not quiet: its controls moved by 20 %, and so its cases say nothing; the first's do."""
    old = mixed(kernels=("sdpa-cudnn", "sdpa-flash", "power-triton"))
    new = mixed(kernels=("sdpa-cudnn", "sdpa-flash", "power-triton"), seed=70)
    new = msgspec.structs.replace(
        new,
        measurements=tuple(
            msgspec.structs.replace(m, samples_ms=tuple(1.2 * ms for ms in m.samples_ms))
            if m.environment == "e2"
            else m
            for m in new.measurements
        ),
    )
    found = compare(old, new)
    assert found.counts == {"inconclusive": 6, "ok": 6}
    assert any(note.startswith("e2 of the baseline against e2: the machine was not quiet") for note in found.notes)


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr("powerbench.session.measure_ceilings", lambda *_: CEILINGS)
    monkeypatch.setattr("powerbench.session.measure_all_ceilings", lambda *_: CEILINGS)
    environment = {"now": runs.header().environment}
    monkeypatch.setattr("powerbench.session.collect", lambda *_: environment["now"])
    said = io.StringIO()
    console = Console(file=said, width=300)
    made = Session(Suite(ctx=(16,)).on("cpu"), [fake("a")], CPU, 0, console, visits=2)
    header = msgspec.structs.replace(
        runs.header(), environment=msgspec.structs.replace(environment["now"], device=CPU.name), ceilings=CEILINGS
    )
    environment["now"] = header.environment
    return made, header, environment, said


def planned(session_, path):
    """The visits that a sweep would make that goes on with this file."""
    writer, earlier = session_._open(path, "c", (), resume=True, anyway=True)
    with writer:
        found = session_._plan(CEILINGS, session_._done(earlier, writer.environment))
        return writer.environment, {item.case.kernel: item.visits for item in found}


def test_a_session_measures_anew_what_another_environment_left_half_done(session, tmp_path):
    made, header, environment, _ = session
    path = tmp_path / "run.jsonl"
    (case,) = made.suite.cases(made.kernels, "cpu")
    first = msgspec.structs.replace(one(n=6, rounds=(Round(6),)), case=case, timer="wall")
    with RunWriter.create(path, header) as writer:
        writer.append(first)
    assert planned(made, path) == ("e1", {"a": (1,)})
    environment["now"] = msgspec.structs.replace(header.environment, python="3.13.1")
    assert planned(made, path) == ("e2", {"a": (0, 1)})
    with RunWriter.resume(path)[0] as writer:
        writer.environment = "e2"
        for visit in (0, 1):
            writer.append(msgspec.structs.replace(first, rounds=(Round(6, visit=visit),)))
    assert planned(made, path) == ("e2", {})
    environment["now"] = header.environment
    assert planned(made, path) == ("e1", {}), "complete is complete, wherever"
    assert len(load(path).more) == 1


def test_a_refused_session_leaves_the_file_as_it_was_and_unlocked(session, tmp_path):
    made, header, environment, said = session
    path = tmp_path / "run.jsonl"
    RunWriter.create(path, header).close()
    before = path.read_bytes()
    environment["now"] = msgspec.structs.replace(header.environment, python="3.13.1")
    for _ in range(2):
        with pytest.raises(UserError, match=r"python was 3.12.4, is 3.13.1; --resume-anyway"):
            made.sweep(path, "c", resume=True)
    assert path.read_bytes() == before
    assert "ceilings" not in said.getvalue(), "refused before anything was measured"
