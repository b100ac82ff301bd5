"""The measuring process on a GPU: faults that cost the device, and what can and cannot be captured."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
import torch

from powerbench.plan import plan
from powerbench.runner import run
from powerbench.suites import Suite
from powerbench.timing import Method
from powerbench.worker import Setup, Worker
from tests.fakes import CEILINGS
from tests.planted import SLEEP_SECONDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Silent:
    def started(self, planned):
        pass

    def finished(self, planned, measurement, visit):
        pass


@pytest.fixture(scope="module")
def swept():
    """One sweep over all faults: name -> row."""
    from powerbench.device import pick
    from tests import planted_gpu  # needs triton

    device = pick("cuda")
    suite = Suite(ctx=(256,), heads=(4,), kv_heads=(2,), head_dim=(64,), batch=(2,), dtype=("bf16",)).on("cuda")
    table = planted_gpu.kernels()
    planned = plan(suite, list(table.values()), device, CEILINGS)
    hire = partial(Worker, Setup(device, 0, Method(), kernels="tests.planted_gpu:kernels"))
    with closing(run(planned, device, hire, Silent(), timeout_s=20)) as rows:
        found = {row.case.kernel: row for row in rows}
    assert found.keys() == table.keys()
    return found


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("ooms", "oom", "out of memory"),
        ("strikes", "failed", "illegal"),
        ("asserts", "failed", "CUDA error: device-side assert triggered"),
        ("hangs", "timeout", "no answer within"),
        ("caches", "wrong", "after timing, on changed inputs"),
    ],
)
def test_a_planted_fault_is_its_row(swept, name, status, message):
    row = swept[name]
    assert row.status == status
    assert message in row.message
    assert row.samples_ms == ()


@pytest.mark.parametrize("name", ["first", "sleeps", "looks", "last"])
def test_the_right_ones_are_measured_all_the_same(swept, name):
    assert swept[name].status == "ok"
    assert swept[name].peak_memory_bytes > 0


def test_work_on_another_stream_is_not_left_out(swept):
    row = swept["elsewhere"]
    assert row.status == "wrong"
    assert "on another stream" in row.message or "after timing" in row.message


def test_a_patched_event_is_not_the_one_that_times(swept):
    row = swept["patches-events"]
    assert row.status == "ok"
    assert min(row.samples_ms) > 1


def test_what_can_be_captured_is(swept):
    assert (swept["first"].timer, swept["first"].timer_reason) == ("graph-cold", None)


def test_a_host_that_sleeps_is_not_in_a_graph_but_in_the_wall_time(swept):
    row = swept["sleeps"]
    assert row.timer == "graph-cold"
    assert max(row.samples_ms) < 10
    assert min(row.wall_ms) >= 1e3 * SLEEP_SECONDS


def test_what_cannot_be_captured_says_why(swept):
    row = swept["looks"]
    assert row.timer == "events-cold"
    assert "captur" in row.timer_reason
