"""What becomes of the words of a command changes nothing of what it did: readers that leave, full disks, encodings."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import pytest

from powerbench.streams import write_json
from tests import runs
from tests.test_check import one
from tests.test_check_cli import write as write_run
from tests.test_outputs import COMMAND, is_one_line, powerbench

SWEEP = ["sweep", "--ctx", "64,128", "--head-dim", "16", "--device", "cpu", "--visits", "1", "--kernels", "sdpa-cpu"]
# commands that print by each of the ways there are, and their exit status
PRINTING = [
    (["show", "a.jsonl"], 0),
    (["show", "a.jsonl", "--format", "csv"], 0),
    (["show", "a.jsonl", "--crossovers"], 0),
    (["report", "a.jsonl", "-o", "page.html"], 0),
    (["index", "a.jsonl", "-o", "pages"], 0),
    (["check", "a.jsonl", "slow.jsonl"], 1),
    (["check", "a.jsonl", "other.jsonl"], 4),
    (["check", "a.jsonl", "unsure.jsonl"], 3),
    (["check", "a.jsonl", "slow.jsonl", "--json", "-"], 1),
    (["check", "a.jsonl", "--baseline-dir", "baselines", "--update-baseline"], 0),
    (["list", "kernels"], 0),
    (["list", "models"], 0),
    (["wsfr", "--format", "json"], 0),
    (["--help"], 0),
]
MEASURING = [([*SWEEP, "-o", "run.jsonl"], 0), (["verify", *SWEEP[1:7], "--kernels", "flash-2"], 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_run(folder / "a.jsonl", one(seed=1), one("mine", seed=2))
    write_run(folder / "b.jsonl", one(seed=3), one("mine", seed=4))
    write_run(folder / "slow.jsonl", one(seed=3, ms=2.0), one("mine", seed=4, ms=2.0))
    write_run(folder / "unsure.jsonl", one(seed=13, ms=1.027), one("mine", seed=23))
    write_run(folder / "other.jsonl", one("another"))
    return folder


def gone():
    """A pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def name(case):
    return " ".join(case[0])


@pytest.mark.parametrize("case", PRINTING + MEASURING, ids=name)
def test_a_reader_that_leaves_changes_nothing(folder, tmp_path, case):
    """Of standard output, and of standard error with it where that is used."""
    args, status = case
    pipe = gone()
    both = {"stderr": pipe} if case in MEASURING else {}
    done = powerbench(*args, cwd=tmp_path if case in MEASURING else folder, stdout=pipe, **both)
    os.close(pipe)
    assert done.returncode == status
    assert both or done.stderr == ""


def test_files_are_written_before_the_reader_leaves(folder, tmp_path):
    files = {name: tmp_path / name for name in ("json", "junit", "markdown", "summary")}
    args = [f"--{name}={path}" for name, path in files.items() if name != "summary"]
    pipe = gone()
    done = powerbench(
        "check", "a.jsonl", "slow.jsonl", *args, cwd=folder, stdout=pipe,
        env={"GITHUB_STEP_SUMMARY": str(files["summary"])},
    )  # fmt: skip
    os.close(pipe)
    assert done.returncode == 1
    assert json.loads(files["json"].read_text())["exit_status"] == 1
    assert all(path.stat().st_size for path in files.values())


def test_a_sweep_whose_reader_leaves_is_complete(tmp_path):
    pipe = gone()
    done = powerbench(*SWEEP, "-o", "run.jsonl", cwd=tmp_path, stderr=subprocess.STDOUT, stdout=pipe)
    os.close(pipe)
    assert done.returncode == 0
    records = [json.loads(line)["type"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert records == ["header", "measurement", "measurement", "ceilings"]


@pytest.mark.parametrize("case", [*PRINTING[:4], *PRINTING[8:], MEASURING[0]], ids=name)
def test_a_full_disk_under_standard_output_is_one_line(folder, tmp_path, case):
    where = tmp_path if case in MEASURING else folder
    with open("/dev/full", "wb") as full:
        done = powerbench(*case[0], cwd=where, stdout=full)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last == "powerbench: error: cannot write to standard output: No space left on device"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if "-o" in case[0] and case[0][0] == "sweep":
        assert (where / "run.jsonl").read_bytes().count(b"\n") == 4


def test_a_file_that_cannot_be_written_costs_no_other_output(folder, tmp_path):
    """/dev/full may be opened, and takes nothing."""
    args = ["check", "a.jsonl", "slow.jsonl", "--json", "/dev/full", "--junit", str(tmp_path / "junit.xml")]
    done = powerbench(*args, cwd=folder)
    is_one_line(done, "cannot write /dev/full: No space left on device")
    assert "REGRESSION" in done.stdout
    assert (tmp_path / "junit.xml").stat().st_size


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_take_no_file(folder, tmp_path, closed):
    shell = f'"$@" {closed}'
    words = [*COMMAND, "check", "a.jsonl", "slow.jsonl", "--json", str(tmp_path / "x.json")]
    done = subprocess.run(["bash", "-c", shell, "bash", *words], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 1
    assert json.loads((tmp_path / "x.json").read_text())["exit_status"] == 1


ENCODINGS = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX"},
]


@pytest.mark.parametrize(
    ("args", "env"),
    [
        *(([], env) for env in ENCODINGS),
        *((["--format", format_], ENCODINGS[0]) for format_ in ("json", "csv", "markdown")),
    ],
    ids=str,
)
def test_an_encoding_without_the_character_degrades(tmp_path, env, args):
    """The hostile run has a character of each kind in each of its fields."""
    write_hostile(tmp_path / "hostile.jsonl")
    done = powerbench("show", "hostile.jsonl", *args, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    if "json" in args:
        assert len(json.loads(done.stdout)) == len(runs.hostile_run().measurements)
    elif not args and env.get("PYTHONIOENCODING") == "ascii":
        assert "+-" in done.stdout
        assert done.stdout.isascii()


@pytest.mark.parametrize(
    "args", [["list", "kernels"], ["list", "models"], ["wsfr"], [*SWEEP, "-o", "run.jsonl"]], ids=str
)
def test_every_table_prints_in_ascii(tmp_path, args):
    done = powerbench(*args, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert done.stdout


def test_json_in_ascii_is_the_same_json(monkeypatch):
    text = json.dumps({"é": "±", "😀": "\u202e"}, ensure_ascii=False)
    for encoding in ("ascii", "latin-1", "utf-8"):
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, write_through=True))
        write_json(text)
        assert json.loads(out.getvalue().decode(encoding)) == json.loads(text)


def test_a_terminal_that_does_not_wait_is_waited_for():
    """Descriptors are shared: another process may have made ours one that does not block."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "from powerbench.streams import guarded\nwith guarded(): print('x' * 10**6)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert len(pipe.read()) == 10**6 + 1
    assert process.wait(60) == 0


def test_a_terminal_is_still_one():
    ours, theirs = pty.openpty()
    code = "import sys; from powerbench.streams import guarded\nwith guarded(): print(sys.stdout.isatty())"
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=theirs, check=False)
    assert done.returncode == 0
    assert os.read(ours, 100).split() == [b"True"]
    os.close(ours)
    os.close(theirs)


def write_hostile(path):
    from powerbench.results.store import RunWriter

    found = runs.hostile_run()
    with RunWriter.create(path, found.header) as writer:
        for measurement in found.measurements:
            writer.append(measurement)
