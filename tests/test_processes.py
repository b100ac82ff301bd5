"""What a signal leaves behind: nothing that measures, no folder and no worktree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from powerbench.check.scratch import LOCK, PREFIX, prune, scratch
from powerbench.processes import child
from tests.test_check_measure import git, repository  # noqa: F401  a fixture
from tests.test_cli import command


def alive(marker: str) -> list[int]:
    """Processes in whose environment the marker stands, zombies aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            running = path.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if running and marker.encode() in path.joinpath("environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def started(tmp_path, cwd, *args):
    """A command in an environment that all its children have, too, with temporary files in a folder of its own."""
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    marker = f"POWERBENCH_TEST_MARKER={tmp_path}"
    environment = {**os.environ, "POWERBENCH_TEST_MARKER": str(tmp_path), "TMPDIR": str(temporary)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*args), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return process, marker, temporary


CHECK = ["check", "--against", "HEAD~1", "--suite", "suite.toml", "--device", "cpu", "--rounds", "1"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_check_against_ends_with_all_it_started(repository, tmp_path, monkeypatch, how):  # noqa: F811
    process, marker, temporary = started(tmp_path, repository, *CHECK)
    wait_for(lambda: len(alive(marker)) >= 3 or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    wait_for(lambda: not alive(marker), 10.0)
    if how is signal.SIGKILL:
        assert len(git(repository, "worktree", "list").splitlines()) == 2, "nobody could remove it"
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        prune()
    else:
        assert process.returncode == 130
        assert b"powerbench: interrupted" in said
        assert b"Traceback" not in said
    assert list(temporary.glob(f"{PREFIX}*")) == []
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_sweep_ends_with_its_worker(tmp_path, how):
    args = ["--ctx", "64,128", "--head-dim", "16", "--device", "cpu", "--kernels", "sdpa-cpu,linear-torch"]
    process, marker, _ = started(tmp_path, tmp_path, "sweep", *args, "-o", "run.jsonl")
    path = tmp_path / "run.jsonl"
    wait_for(lambda: process.poll() is not None or (path.exists() and path.read_bytes().count(b"\n") >= 2))
    assert process.poll() is None
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    wait_for(lambda: not alive(marker), 10.0)
    if how is not signal.SIGKILL:
        assert process.returncode == 130
        assert b"--resume goes on with -o run.jsonl" in said
        assert b"Traceback" not in said


def test_a_child_and_what_it_starts_end_with_the_context(tmp_path):
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
    environment = {**os.environ, "POWERBENCH_TEST_MARKER": str(tmp_path)}
    with child([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"up\n"
        assert len(alive(f"POWERBENCH_TEST_MARKER={tmp_path}")) == 2
    wait_for(lambda: not alive(f"POWERBENCH_TEST_MARKER={tmp_path}"), 5.0)


def test_only_folders_whose_process_is_dead_are_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, another = tmp_path / f"{PREFIX}dead", tmp_path / f"{PREFIX}without-a-lock"
    for folder in (dead, another):
        folder.mkdir()
    (dead / LOCK).touch()
    with scratch() as first, scratch() as second:
        assert first.exists()
        assert second.exists()
        assert not dead.exists()
    assert list(tmp_path.iterdir()) == [another]


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from powerbench.processes import interrupt_on_end_signals; interrupt_on_end_signals()\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN\n"
        "try:\n    signal.raise_signal(signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n    signal.raise_signal(signal.SIGTERM); print('cleaned up')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "cleaned up\n"), done.stderr
