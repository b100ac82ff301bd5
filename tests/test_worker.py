"""The measuring process, for real: planted faults each cost their own case, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial

import pytest

from powerbench.errors import DeviceLostError
from powerbench.plan import plan
from powerbench.results.model import Measurement
from powerbench.results.store import RunWriter, load
from powerbench.runner import run
from powerbench.suites import Suite
from powerbench.worker import Setup, Worker, WorkerLost
from tests import planted, runs
from tests.fakes import CEILINGS, CPU, WALL

SUITE = Suite(ctx=(40,), heads=(4,), kv_heads=(2,), head_dim=(8,), batch=(2,), dtype=("fp32",)).on("cpu")
SETUP = Setup(CPU, 0, WALL, kernels="tests.planted:kernels")
TIMEOUT = 6.0


class Silent:
    def started(self, planned):
        pass

    def finished(self, planned, measurement, visit):
        pass


def planned(*names):
    return plan(SUITE, [planted.kernels()[name] for name in names], CPU, CEILINGS)


def sweep(*names, timed=True, timeout_s=TIMEOUT):
    hire = partial(Worker, SETUP)
    return closing(run(planned(*names), CPU, hire, Silent(), timed=timed, timeout_s=timeout_s))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One sweep over all faults, into a file: name -> row as read back."""
    path = tmp_path_factory.mktemp("planted") / "run.jsonl"
    with RunWriter.create(path, runs.header()) as writer, sweep(*planted.kernels()) as rows:
        for row in rows:
            writer.append(row)
            last = load(path).measurements[-1]  # compared in part: an error may be nan
            on_disk = (last.case_id, last.status, last.samples_ms, last.message)
            assert on_disk == (row.case_id, row.status, row.samples_ms, row.message), "the moment it is complete"
    loaded = load(path)
    assert loaded.warnings == ()
    assert len(loaded.measurements) == len(planted.kernels())
    return {row.case.kernel: row for row in loaded.measurements}


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("ooms", "oom", "can't allocate memory"),
        ("hangs", "timeout", "no answer within the 6 s left to this case; it was ended"),
        ("aborts", "failed", "the process was ended by SIGABRT: terminate called after a planted fault"),
        ("exits", "failed", "the process exited with status 3"),
        ("exits-at-once", "failed", "the process exited with status 0"),
        ("segfaults", "failed", "the process was ended by SIGSEGV"),
        ("wrong", "wrong", "against the float64 reference"),
        ("writes-nothing", "wrong", "against the float64 reference"),
        ("caches", "wrong", "after timing, on changed inputs, off by "),
        ("aborts-later", "failed", "the process was ended by SIGABRT: terminate called after a planted fault"),
    ],
)
def test_a_planted_fault_is_its_row(swept, name, status, message):
    row: Measurement = swept[name]
    assert row.status == status
    assert message in row.message
    assert row.samples_ms == ()
    assert "\n" not in row.message


@pytest.mark.parametrize("name", ["first", "sleeps", "last"])
def test_the_right_ones_are_measured_all_the_same(swept, name):
    row = swept[name]
    assert (row.status, row.timer, row.order) == ("ok", "wall", "interleaved")
    assert len(row.samples_ms) >= 10
    assert row.stop in ("precise", "time", "samples")


def test_a_host_that_sleeps_is_in_its_time(swept):
    assert min(swept["sleeps"].samples_ms) >= 1e3 * planted.SLEEP_SECONDS


def test_verify_goes_on_too():
    with sweep("aborts", "last", timed=False) as rows:
        found = {row.case.kernel: row for row in rows}
    assert (found["aborts"].status, found["last"].status) == ("failed", "ok")
    assert found["last"].samples_ms == ()


def test_the_process_is_used_again_and_ends_with_the_iterator():
    pids = []

    class Watched(Worker):
        def __init__(self, setup):
            super().__init__(setup)
            pids.append(self.pid)

    with closing(run(planned("first", "wrong", "last"), CPU, lambda: Watched(SETUP), Silent())) as rows:
        assert [row.status for row in rows].count("ok") == 2
    assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_a_process_that_cannot_start_is_a_lost_device():
    with pytest.raises(DeviceLostError, match=r"no process to measure in can be started: .*no_such_table"):
        Worker(Setup(CPU, 0, WALL, kernels="tests.planted:no_such_table"))


def test_a_dead_process_says_so_when_asked():
    worker = Worker(SETUP)
    worker._process.kill()
    worker._process.wait()
    with pytest.raises(WorkerLost, match=r"ended by SIGKILL \(as the system does when memory runs out\)"):
        worker.ask("open", planned("first")[0].case, True, 5.0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_sweep_that_is_ended(tmp_path, how):
    """Hung in a contestant, with its parent interrupted or killed: the file is complete, and nothing is left over."""
    code = (
        "import sys; from powerbench.worker import Worker; from tests import test_worker as t\n"
        "class Telling(Worker):\n"
        "    def __init__(self, setup):\n"
        "        super().__init__(setup); print(self.pid, flush=True)\n"
        "from powerbench.runner import run; from contextlib import closing\n"
        "if __name__ == '__main__':\n"
        "    with closing(run(t.planned('hangs'), t.CPU, lambda: Telling(t.SETUP), t.Silent())) as rows: list(rows)\n"
    )
    script = tmp_path / "sweep.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    worker = int(parent.stdout.readline())
    time.sleep(1)
    parent.send_signal(how)
    parent.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while _is_running(worker):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)


def _is_running(pid):
    """Not gone, and not merely waiting for somebody to note its death."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
