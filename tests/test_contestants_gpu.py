"""Other people's kernels on a GPU: gated, captured in a CUDA graph, sampled, and right again on changed inputs."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest
import torch

from powerbench.device import pick
from powerbench.kernels.table import select
from powerbench.plan import plan
from powerbench.runner import run
from powerbench.suites import Suite
from powerbench.timing import Method
from powerbench.worker import Setup, Worker
from tests.fakes import CEILINGS
from tests.test_worker_gpu import Silent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("contestants"),  # one sweep for all of them
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WITH_TORCH = ("flex-power", "window-torch", "window-flex", "compile-attention", "compile-chunked")
WITH_PACKAGES = ("window-flash-2", "window-flash-3", "window-flash-4", "based-fla")
GROUPED = Suite(p=(2,), ctx=(700,), heads=(4,), kv_heads=(2,), head_dim=(32,), batch=(2,), chunk=(None, 256))
NARROW = Suite(p=(2,), ctx=(700,), heads=(2,), head_dim=(16,), batch=(2,))


@pytest.fixture(scope="module")
def swept():
    """(kernel, pass) -> its rows, each swept as `powerbench sweep` does it."""
    device = pick("cuda")
    found = {}
    for suite, names in ((GROUPED, WITH_TORCH + WITH_PACKAGES[:-1]), (NARROW, WITH_PACKAGES[-1:])):
        asked = suite.override({"pass": "fwd,bwd,fwd+bwd", "dtype": "bf16"}).on("cuda")
        planned = plan(asked, select(names), device, CEILINGS)
        hire = partial(Worker, Setup(device, 0, Method()))
        with closing(run(planned, device, hire, Silent())) as rows:
            for row in rows:
                found.setdefault((row.case.kernel, row.case.pass_), []).append(row)
    return found


@pytest.mark.parametrize("pass_", ["fwd", "bwd", "fwd+bwd"])
@pytest.mark.parametrize("name", WITH_TORCH + WITH_PACKAGES)
def test_it_is_right_and_timed_as_a_graph(swept, name, pass_):
    for row in swept[name, pass_]:
        if name in WITH_PACKAGES and row.status == "unsupported":
            pytest.skip(row.message)
        assert row.status == "ok", row.message
        assert (row.timer, row.timer_reason) == ("graph-cold", None)


def test_windows_are_shorter_than_the_context_and_chunks_are_swept(swept):
    assert {row.case.params.window for row in swept["window-flex", "fwd"]} == {544}  # 528 x 33 x 4 / (64 x 2) bytes
    assert {row.case.params.chunk_size for row in swept["compile-chunked", "fwd"]} == {256, 700}
