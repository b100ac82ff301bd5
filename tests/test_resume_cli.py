"""`sweep --resume` after the software changed, from the command line."""

from __future__ import annotations

import json
import os

from powerbench.results.store import load
from tests.test_cli import powerbench

ARGS = ["--ctx", "64", "--head-dim", "16", "--device", "cpu", "--visits", "1", "-o", "run.jsonl"]


def sweep(folder, kernel, commit, *more):
    environment = {**os.environ, "POWERBENCH_COMMIT": commit}
    return powerbench("sweep", *ARGS, "--kernels", kernel, *more, cwd=folder, env=environment)


def test_another_commit_is_refused_or_named(tmp_path):
    path = tmp_path / "run.jsonl"
    assert sweep(tmp_path, "sdpa-cpu", "aaa").returncode == 0
    before = path.read_bytes()
    refused = sweep(tmp_path, "linear-torch", "bbb", "--resume")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        "powerbench: error: --resume: run.jsonl was measured in another environment: commit was aaa, is bbb; "
        "--resume-anyway goes on, and the file names both"
    )
    assert path.read_bytes() == before
    resumed = sweep(tmp_path, "linear-torch", "bbb", "--resume-anyway")
    assert resumed.returncode == 0, resumed.stderr
    assert path.read_bytes().startswith(before)
    found = load(path)
    assert [environment.commit for environment in found.environments.values()] == ["aaa", "bbb"]
    assert {one.case.kernel: one.environment for one in found.measurements} == {"sdpa-cpu": "e1", "linear-torch": "e2"}
    assert "measured in 2 environments" in " ".join(resumed.stdout.split())
    again = sweep(tmp_path, "power-torch", "bbb", "--resume")
    assert again.returncode == 0, again.stderr
    kinds = [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert kinds.count("environment") == 2, "the second names the package of the kernel that was not known before"
    assert list(load(path).environments) == ["e1", "e2"]
