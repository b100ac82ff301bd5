"""Run files: written, read back the same, and honest about every kind of damage."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from powerbench.cost import Cost, Launch
from powerbench.errors import UserError
from powerbench.problem import DTYPES, PASSES, Case, Params, Problem
from powerbench.results.model import Measurement, Phase, Run
from powerbench.results.store import RunWriter, StoreError, load
from tests import runs


def write(path, measurements=(), header=None):
    with RunWriter.create(path, header or runs.header()) as writer:
        for measurement in measurements:
            writer.append(measurement)
    return path


SIZES, WIDTHS, DEGREES = st.integers(1, 2**40), st.integers(1, 2**20), st.integers(0, 32)
TIMES = st.floats(1e-9, 1e12, allow_nan=False)
CASES = st.builds(
    Case,
    problem=st.builds(Problem, st.integers(1, 2**32), SIZES, *[WIDTHS] * 4, st.sampled_from(DTYPES), st.booleans()),
    kernel=st.text(max_size=20),
    params=st.builds(Params, *[st.none() | sizes for sizes in (DEGREES, WIDTHS, SIZES)]),
    pass_=st.sampled_from(PASSES),
)
LAUNCHES = st.lists(st.builds(Launch, st.text(), st.builds(Cost, SIZES, SIZES, SIZES)), max_size=3).map(tuple)
SAMPLES = st.lists(TIMES, min_size=1, max_size=9).map(tuple)
PHASES = st.lists(
    st.builds(Phase, st.text(), SAMPLES) | st.builds(Phase, st.text(), message=st.text()),
    max_size=3,
    unique_by=lambda phase: phase.name,
).map(tuple)
OK = st.builds(
    Measurement,
    case=CASES,
    status=st.just("ok"),
    samples_ms=SAMPLES,
    timer=st.none() | st.text(),
    launches=LAUNCHES,
    error=st.none() | TIMES,
    tolerance=st.none() | TIMES,
    peak_memory_bytes=st.none() | SIZES,
    config=st.dictionaries(st.text(), st.text(), max_size=3),
    phases=PHASES,
)
NOT_OK = st.builds(
    Measurement,
    case=CASES,
    status=st.sampled_from(["unsupported", "wrong", "oom", "timeout", "failed"]),
    message=st.none() | st.text(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(measurements=st.lists(OK | NOT_OK, max_size=5, unique_by=lambda measurement: measurement.case_id))
def test_round_trip(tmp_path, measurements):
    path = tmp_path / "run.jsonl"
    path.unlink(missing_ok=True)
    write(path, measurements)
    assert load(path) == Run(str(path), runs.header(), tuple(measurements))


def test_each_append_is_on_disk_before_it_returns(tmp_path):
    path = tmp_path / "deep" / "er" / "run.jsonl"
    with RunWriter.create(path, runs.header()) as writer:
        for count, measurement in enumerate(runs.cpu_run().measurements, start=1):
            writer.append(measurement)
            assert len(load(path).measurements) == count
        assert writer.header == runs.header()


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("precious")
    with pytest.raises(StoreError, match="exists already"):
        RunWriter.create(path, runs.header())
    assert path.read_text() == "precious"


def test_a_second_writer_is_kept_off(tmp_path):
    path = tmp_path / "run.jsonl"
    with RunWriter.create(path, runs.header()), pytest.raises(StoreError, match="another sweep"):
        RunWriter.resume(path)
    RunWriter.resume(path)[0].close()


@pytest.mark.parametrize("kept", [1, 20, 200])
def test_a_half_written_last_line_loads_with_a_warning_and_resumes(tmp_path, kept):
    first, second, third = runs.cpu_run().measurements[:3]
    path = write(tmp_path / "run.jsonl", [first, second])
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:kept])
    run = load(path)
    assert run.measurements == (first,)
    assert len(run.warnings) == 1
    assert "line 3 is half written" in run.warnings[0]
    writer, resumed = RunWriter.resume(path)
    with writer:
        assert resumed == run
        writer.append(second)
        writer.append(third)
    assert load(path) == Run(str(path), runs.header(), (first, second, third))


def test_a_line_that_lacks_only_its_newline_counts(tmp_path):
    first, second = runs.cpu_run().measurements[:2]
    path = write(tmp_path / "run.jsonl", [first])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert load(path) == Run(str(path), runs.header(), (first,))
    writer, _ = RunWriter.resume(path)
    with writer:
        writer.append(second)
    assert load(path).measurements == (first, second)


def test_kill_9_loses_at_most_the_line_in_flight(tmp_path):
    path = tmp_path / "run.jsonl"
    code = (
        "import sys; from tests import runs; from powerbench.results.store import RunWriter\n"
        "writer = RunWriter.create(sys.argv[1], runs.header())\n"
        "for ctx in range(1, 100000):\n"
        "    writer.append(runs.measurement('k', ctx, 1.0)); print(ctx, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        said = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert [m.case.problem.seqlen for m in load(path).measurements][:said] == list(range(1, said + 1))


def test_the_last_of_duplicates_wins(tmp_path):
    path = write(tmp_path / "run.jsonl", [runs.measurement("a", 1024, 1.0), runs.measurement("b", 1024, 1.0)])
    again = runs.measurement("a", 1024, 2.0)
    writer, _ = RunWriter.resume(path)
    with writer:
        writer.append(again)
    run = load(path)
    assert [m.case.kernel for m in run.measurements] == ["a", "b"]
    assert run.measurements[0] == again
    assert run.warnings == (f"measured more than once, the last one counts: {again.case_id}",)


def _lines(path):
    return path.read_bytes().split(b"\n")


HEADER = msgspec.json.encode(runs.header())
LINE = msgspec.json.encode(runs.measurement("a", 1024, 1.0))
APART = msgspec.json.encode(runs.with_phases(runs.measurement("a", 1024, 1.0)))
FAILED = msgspec.json.encode(runs.measurement("a", 1024, None, status="failed"))


def _phase(text: bytes, line: bytes = LINE) -> bytes:
    return HEADER + b"\n" + line[:-1] + b',"phases":[{"name":"scan"' + text + b"}]}\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\n", ["line 1"]),
        (b"\x00\x01\xff\xfe" * 50, ["line 1", "header"]),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ["line 1", "header"]),
        (HEADER[:100], ["line 1", "header"]),
        (LINE + b"\n", ["line 1", "header"]),
        (b'{"case_id": 3}\n', ["line 1", "header"]),
        (HEADER.replace(b'"schema":1', b'"schema":2') + b"\n", ["line 1", "newer", "schema 2"]),
        (HEADER.replace(b'"seed":0', b'"seed":"x"') + b"\n", ["line 1", "seed"]),
        (HEADER.replace(b'"copy_bytes_per_s":20000000000.0', b'"copy_bytes_per_s":0') + b"\n", ["line 1", "ceiling"]),
        (HEADER + b"\n" + LINE[:50] + b"\n" + LINE + b"\n", ["line 2"]),
        (HEADER + b"\n" + LINE + b"\n{}\n", ["line 3"]),
        (HEADER + b"\n\n" + LINE + b"\n", ["line 2"]),
        (HEADER + b"\n" + LINE + b"\n" + HEADER + b"\n", ["line 3", "header"]),
        (HEADER + b"\n" + LINE.replace(b'"a"', b'"\xff"') + b"\n", ["line 2"]),
        (HEADER + b"\n" + LINE.replace(b'"ok"', b'"great"') + b"\n", ["line 2", "great"]),
        (HEADER + b"\n" + LINE.replace(b'"ok"', b'"oom"') + b"\n", ["line 2", "oom with 7 samples"]),
        (HEADER + b"\n" + LINE.replace(b'"samples_ms":[', b'"samples_ms":[-1,') + b"\n", ["line 2", "sample"]),
        (HEADER + b"\n" + LINE.replace(b'"heads":8', b'"heads":0') + b"\n", ["line 2", "heads"]),
        (HEADER + b"\n" + LINE.replace(b'"samples_ms":[', b'"samples_ms":[1e999,') + b"\n", ["line 2"]),
        (_phase(b""), ["line 2", "phase 'scan'", "either samples or a message"]),
        (_phase(b',"samples_ms":[1],"message":"x"'), ["line 2", "phase 'scan'", "either samples or a message"]),
        (_phase(b',"samples_ms":[1,0]'), ["line 2", "positive"]),
        (_phase(b',"samples_ms":[1]', FAILED), ["line 2", "status failed with 1 phases"]),
        (HEADER + b"\n" + APART.replace(b'"attention"', b'"scan"') + b"\n", ["line 2", "same name"]),
    ],
)
def test_damage_is_one_line_that_says_where(tmp_path, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    for read in (load, RunWriter.resume):
        with pytest.raises(StoreError) as error:
            read(path)
        message = str(error.value)
        assert "\n" not in message
        assert message.isprintable()
        assert message.startswith(f"{path}: ")
        assert all(word in message for word in words), message
    assert path.read_bytes() == content
    assert issubclass(StoreError, UserError)


def test_what_cannot_be_opened(tmp_path):
    for path in (tmp_path, tmp_path / "missing.jsonl"):
        for read in (load, RunWriter.resume):
            with pytest.raises(StoreError, match=str(path)):
                read(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        RunWriter.create(tmp_path / "file" / "run.jsonl", runs.header())


def test_fields_of_a_later_version_are_ignored(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(HEADER[:-1] + b',"colour":"red"}\n' + LINE[:-1] + b',"joules":[1,2]}\n')
    assert load(path) == Run(str(path), runs.header(), (runs.measurement("a", 1024, 1.0),))


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "results").rglob("*.jsonl")), ids=lambda p: p.stem)
def test_published_runs_would_be_written_the_same_today(path):
    """Whatever the model has gained since: a case that does not use it leaves no trace in its line."""
    lines = [line for line in _lines(path) if line.startswith(b'{"type":"measurement"')]
    again = (msgspec.json.encode(msgspec.json.decode(line, type=Measurement)) for line in lines)
    assert [msgspec.json.decode(line) for line in again] == [msgspec.json.decode(line) for line in lines]


def test_what_json_cannot_hold(tmp_path):
    path = write(tmp_path / "run.jsonl")
    good = runs.measurement("a", 1024, 1.0)
    wrong = runs.measurement("b", 1024, None, status="wrong", message="the output holds NaN")
    writer, _ = RunWriter.resume(path)
    with writer:
        for bad in (
            msgspec.structs.replace(good, samples_ms=(1.0, math.nan)),
            msgspec.structs.replace(good, samples_ms=(0.0,)),
            msgspec.structs.replace(good, samples_ms=()),
            msgspec.structs.replace(good, error=math.inf),
            msgspec.structs.replace(good, phases=(Phase("scan", (math.nan,)),)),
        ):
            with pytest.raises(ValueError, match="a/-/fwd"):
                writer.append(bad)
        writer.append(msgspec.structs.replace(wrong, error=math.nan))
    assert load(path).measurements == (wrong,)
