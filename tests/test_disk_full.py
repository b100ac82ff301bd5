"""A disk that is full, and a file that may not grow: one line, exit status 2, and what was written stays readable."""

from __future__ import annotations

import os
import resource
import subprocess

import pytest

from powerbench.outputs import PREFIX
from powerbench.results.store import RunWriter, StoreError, load
from tests import runs
from tests.test_check import one
from tests.test_check_cli import write as write_run
from tests.test_outputs import is_one_line, powerbench

SWEEP = ["sweep", "--ctx", "64,128,256", "--head-dim", "16", "--device", "cpu", "--kernels", "sdpa-cpu,power-torch"]


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of 12 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "a.jsonl", *(one(f"kernel-{i}", seed=i) for i in range(30)))
    return tmp_path


WRITING = [
    ["report", "a.jsonl", "-o", "{}/page.html"],
    ["report", "a.jsonl", "-o", "/dev/null", "--static", "{}/figures"],
    ["index", "a.jsonl", "-o", "{}"],
    ["check", "a.jsonl", "a.jsonl", "--json", "{}/x.json"],
    ["check", "a.jsonl", "a.jsonl", "--junit", "{}/x.xml"],
    ["check", "a.jsonl", "a.jsonl", "--markdown", "{}/x.md"],
    ["check", "a.jsonl", "--baseline-dir", "{}", "--update-baseline"],
]


def nothing_half_written(folder):
    assert not [path for path in folder.rglob("*") if path.is_file() and path.name != "filler"]
    assert not list(folder.rglob(f"{PREFIX}*"))


@pytest.mark.parametrize("args", WRITING, ids=" ".join)
def test_a_full_disk_is_one_line(folder, disk, args):
    (disk / "filler").write_bytes(b"x" * 12288)
    is_one_line(powerbench(*[arg.format(disk) for arg in args], cwd=folder), "cannot write", "No space left on device")
    nothing_half_written(disk)


@pytest.mark.parametrize("args", WRITING[:4], ids=" ".join)
def test_a_file_that_may_not_grow_is_one_line(folder, args):
    """`ulimit -f`, without root."""
    out = folder / "out"
    out.mkdir()
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))}
    done = powerbench(*[arg.format(out) for arg in args], cwd=folder, **limit)
    is_one_line(done, "cannot write", "File too large")
    nothing_half_written(out)


def test_what_was_there_stays(folder, disk):
    (disk / "page.html").write_text("before")
    is_one_line(powerbench("report", "a.jsonl", "-o", disk / "page.html", cwd=folder), "No space left on device")
    assert (disk / "page.html").read_text() == "before"


def test_the_summary_of_a_job_on_a_full_disk(folder, disk):
    (disk / "filler").write_bytes(b"x" * 12288)
    done = powerbench("check", "a.jsonl", "a.jsonl", cwd=folder, env={"GITHUB_STEP_SUMMARY": str(disk / "summary")})
    is_one_line(done, "No space left on device")
    assert "no regression" in done.stdout


def test_a_sweep_on_a_full_disk_stays_readable_and_goes_on(disk, tmp_path):
    path = disk / "run.jsonl"
    full = powerbench(*SWEEP, "-o", path, cwd=tmp_path)
    assert full.returncode == 2
    said = [line for line in full.stderr.splitlines() if line.startswith("powerbench")]
    assert said == [
        f"powerbench: error: cannot write {path}: No space left on device; what it holds is complete, and --resume "
        "goes on from there"
    ]
    assert "Traceback" not in full.stderr
    kept = path.read_bytes()
    assert kept.endswith(b"\n")
    assert len(kept) > 4096
    run = load(path)
    assert run.warnings == ()
    assert run.measurements
    is_full = powerbench(*SWEEP, "-o", path, "--resume", cwd=tmp_path)
    assert (is_full.returncode, path.read_bytes()[: len(kept)]) == (2, kept)
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    resumed = powerbench(*SWEEP, "-o", path, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert path.read_bytes().startswith(kept)
    assert [len(case.visits) for case in load(path).measurements] == [5] * 6


def test_no_header_no_file(disk, tmp_path):
    (disk / "filler").write_bytes(b"x" * 12288)
    done = powerbench(*SWEEP, "-o", disk / "run.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last == f"powerbench: error: {disk}/run.jsonl: No space left on device"
    assert "Traceback" not in done.stderr
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_an_append_that_fails_half_way_leaves_no_half_line(tmp_path, monkeypatch):
    """Without root: the disk takes 20 bytes of a line, then nothing."""
    writer = RunWriter.create(tmp_path / "run.jsonl", runs.header())
    first, second = runs.cpu_run().measurements[:2]
    writer.append(first)
    before = (tmp_path / "run.jsonl").read_bytes()
    limit = len(before) + 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StoreError, match="File too large; what it holds is complete"):
            writer.append(second)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run.jsonl").read_bytes() == before
    again, found = RunWriter.resume(tmp_path / "run.jsonl")
    with again:
        again.append(second)
    assert found.warnings == ()
    assert load(tmp_path / "run.jsonl").measurements == (first, second)


def test_a_sync_that_fails_is_a_write_that_fails(tmp_path, monkeypatch):
    """As on network file systems, which find out late."""
    writer = RunWriter.create(tmp_path / "run.jsonl", runs.header())
    before = (tmp_path / "run.jsonl").read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left on device; what it holds is complete"):
        writer.append(runs.cpu_run().measurements[0])
    writer.close()
    assert (tmp_path / "run.jsonl").read_bytes() == before
