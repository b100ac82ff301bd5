"""Which tests of a GPU run side by side, and which alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import gpu_tests

ROOT = Path(__file__).parents[1]
ALONE = {  # they judge times, clocks or bandwidth
    "test_a_large_batch_is_bound_by_memory", "test_graph_and_events_agree_where_the_work_is_long",
    "test_a_hot_cache_is_not_slower", "test_a_sleeping_host_shows_in_wall_and_not_on_the_device",
}  # fmt: skip
ALONE_FILES = {"test_ceilings.py", "test_worker_gpu.py", "test_telemetry.py"}


def collected(marks):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-m", marks, "-p", "no:xdist"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {line for line in done.stdout.splitlines() if "::" in line}


def test_each_runs_in_one_of_the_two():
    first, alone = (next(word for word in command if "gpu" in word) for command in gpu_tests.commands(4, []))
    both = collected(first), collected(alone)
    assert not both[0] & both[1]
    assert both[0] | both[1] == collected("gpu")
    names = {line.partition("::")[2].partition("[")[0] for line in both[1]}
    assert names >= ALONE
    assert {line.partition("::")[0].removeprefix("tests/") for line in both[1]} >= ALONE_FILES


@pytest.mark.parametrize(
    ("statuses", "status"), [([0, 0], 0), ([0, 5], 0), ([1, 0], 1), ([0, 1], 1), ([5, 5], 1), ([0, 2], 1)]
)
def test_what_fails_in_either_fails(monkeypatch, statuses, status):
    left, ran = list(statuses), []

    def run(command, **_):
        ran.append(command)
        return subprocess.CompletedProcess(command, left.pop(0))

    monkeypatch.setattr(gpu_tests.subprocess, "run", run)
    assert gpu_tests.main(["--workers", "3", "-k", "decode"]) == status
    assert len(ran) == 2
    assert all(command[-2:] == ["-k", "decode"] for command in ran)
    assert ran[0][ran[0].index("-n") + 1] == "3"
