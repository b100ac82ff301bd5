"""Two sweeps in turns: one works at a time, and neither waits for one that has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from powerbench.turns import VARIABLE, Turns, ring

# Says "name" at each thing it does, into a file that all append to; `fate` is what it does after `number` of them.
MEMBER = """
import os, subprocess, sys, time
from powerbench.turns import Turns
name, number, fate, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
turns = Turns.of_environment()
turns.take()
child = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL) if fate == "child" else None
print("ready", flush=True)
for _ in range(number):
    with open(path, "a") as file:
        file.write(name)
    time.sleep(0.01)
    turns.hand_on()
if fate == "hang":
    time.sleep(60)
if child:
    print(child.pid)
"""


def start(place, name, number, path, fate="end"):
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER, name, str(number), fate, str(path)], pass_fds=place, stdout=subprocess.PIPE,
        env=os.environ | {VARIABLE: "{},{}".format(*place)}, text=True,
    )  # fmt: skip


def both(path, first, second):
    """Start two members of a ring, the second before the first."""
    with ring(2) as (one, two):
        late = start(two, *second[:2], path, *second[2:])
        return start(one, *first[:2], path, *first[2:]), late


def test_they_alternate_whoever_started_first(tmp_path):
    path = tmp_path / "said"
    for process in both(path, ("a", 6), ("b", 6)):
        assert process.wait(30) == 0
        process.stdout.close()
    assert path.read_text() == "ab" * 6


@pytest.mark.parametrize(("a", "b"), [(2, 6), (6, 2)])
def test_one_that_has_ended_is_not_waited_for(tmp_path, a, b):
    path = tmp_path / "said"
    for process in both(path, ("a", a), ("b", b)):
        assert process.wait(30) == 0
        process.stdout.close()
    assert path.read_text() == "ab" * 2 + ("b" if a < b else "a") * 4


def test_one_that_was_killed_is_not_waited_for(tmp_path):
    path = tmp_path / "said"
    first, second = both(path, ("a", 1, "hang"), ("b", 3))
    assert first.stdout.readline() == "ready\n"
    while not path.exists() or "b" not in path.read_text():  # it has the token back, and keeps it
        assert second.poll() is None
    first.send_signal(signal.SIGKILL)
    assert second.wait(30) == 0
    assert path.read_text() == "abbb"
    for process in (first, second):
        process.wait()
        process.stdout.close()


def test_what_it_leaves_behind_is_not_waited_for(tmp_path):
    """A child that inherits all descriptors does not keep the ring open."""
    path = tmp_path / "said"
    first, second = both(path, ("a", 1, "child"), ("b", 3))
    assert first.wait(30) == 0
    child = int(first.stdout.read().split()[1])
    try:
        assert second.wait(30) == 0
    finally:
        os.kill(child, signal.SIGKILL)
    assert path.read_text() == "abbb"
    for process in (first, second):
        process.stdout.close()


def test_a_sweep_by_itself_has_no_turns(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert Turns.of_environment() is None
