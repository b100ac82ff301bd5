"""The queue by which published runs are measured anew: `tools.measure`."""

from __future__ import annotations

import sys
import time

import pytest

from tools.measure import Queue, options

# In the place of a sweep: one run ends at once, another when it is asked to, and then, resumed, at once too.
SWEEP = """
import signal, sys, time
name, output, resumed = sys.argv[1], sys.argv[sys.argv.index("-o") + 1], "--resume" in sys.argv
assert resumed == (name == "long" and __import__("os").path.exists(output))
open(output, "a").write("resumed" if resumed else "begun")
if name == "long" and not resumed:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    time.sleep(60)
sys.exit(1 if name == "wrong" else 0)
"""
RUNS = {name: [name] for name in ("long", "short", "wrong")}


def queue(folder, gpus):
    return Queue(folder, RUNS, gpus, (sys.executable, "-c", SWEEP))


def test_what_is_left_at_the_deadline_goes_on_in_the_next_call(tmp_path):
    first = queue(tmp_path, 2)
    first.work(time.time() + 5)
    assert first.left == ["long"]
    assert first.progress["wrong"].done  # its cases are on disk, and again they would be as wrong
    second = queue(tmp_path, 2)
    assert second.left == ["long"]
    second.work(time.time() + 30)
    assert second.left == []
    assert (tmp_path / "long.jsonl").read_text() == "begunresumed"
    assert second.progress["long"].seconds > first.progress["long"].seconds


def test_a_run_stays_on_the_gpu_that_began_it(tmp_path):
    first = queue(tmp_path, 1)
    first.work(time.time() + 2)
    assert first.progress.keys() == {"long"}
    second = queue(tmp_path, 2)
    second.work(time.time() + 30)
    assert second.left == []
    assert second.progress["long"].gpu == 0


@pytest.mark.parametrize(
    ("name", "visits", "want"),
    [
        ("degree", None, ["--suite", "degree", "--visits", "3"]),
        ("degree", 2, ["--suite", "degree", "--visits", "2"]),
        ("mine=--p 2 --ctx 1k", None, ["--p", "2", "--ctx", "1k"]),
        ("mine=--p 2 --ctx 1k", 4, ["--p", "2", "--ctx", "1k", "--visits", "4"]),
    ],
)
def test_options(name, visits, want):
    assert options(name, visits) == want
