"""A sweep with a time above the roof says so, in its last line and its status."""

from __future__ import annotations

import pytest

from tests.test_cli import found_beside, powerbench

KERNEL = """
import torch
from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Kernel, no_params

def attend(q, k, v, log_g):
    y = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    return y.transpose(1, 2)

MINE = Kernel(
    name="mine", family="mine", summary="boasts", takes=frozenset(), gated=False, version=lambda: "1",
    resolve=no_params, unsupported=lambda case, device_type: None, prepare=lambda case: attend,
    reference=lambda case, inputs, rows: attend(inputs.q, inputs.k, inputs.v, None)[:, rows],
    launches=lambda case: (Launch("all", Cost(10**13, 10**13, 10**6)),), workspace_bytes=lambda case: 0,
)
"""


@pytest.fixture
def boaster(tmp_path):
    folder = tmp_path / "boaster"
    info = folder / "boaster-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: boaster\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[powerbench.kernels]\nmine = mine:MINE\n")
    (folder / "mine.py").write_text(KERNEL)
    return found_beside(folder)


def test_the_status_and_the_last_line_of_a_sweep_that_was_too_fast(boaster, tmp_path):
    args = ["--ctx", "64", "--head-dim", "16", "--device", "cpu", "--kernels", "mine,sdpa-cpu", "--visits", "1"]
    done = powerbench("sweep", *args, "-o", "run.jsonl", cwd=tmp_path, env=boaster)
    assert done.returncode == 1, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "INVALID: 1 of 2 cases have a time above the roof, which is impossible and no evidence: mine/"
    )
    again = powerbench("sweep", *args, "-o", "run.jsonl", "--resume", cwd=tmp_path, env=boaster)
    assert (again.returncode, again.stdout.splitlines()[-1]) == (1, last)
    alone = powerbench("sweep", *args, "--kernels", "sdpa-cpu", "-o", "alone.jsonl", cwd=tmp_path, env=boaster)
    assert alone.returncode == 0
    assert "INVALID" not in alone.stdout
