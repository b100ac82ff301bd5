"""What the gate measures itself, for real: another commit's kernels under this ruler, and the noise of this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from powerbench.check import trees
from powerbench.errors import UserError
from tests.test_check_cli import check

# A contestant of another repository: causal softmax attention that takes at least so long.
KERNEL = """
import time
import torch
from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Kernel, no_params

torch.set_num_threads(1)  # where others want the processors too, two threads that wait for each other take 100 ms

def attend(q, k, v, log_g):
    time.sleep({seconds})
    y = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
    return y.transpose(1, 2)

def reference(case, inputs, rows):
    return attend(inputs.q, inputs.k, inputs.v, None)[:, rows]

MINE = Kernel(
    name="mine", family="mine", summary="sleeps", takes=frozenset(), gated=False, version=lambda: "1",
    resolve=no_params, unsupported=lambda case, device_type: None,
    prepare=lambda case: attend, reference=reference, launches=lambda case: (Launch("all", Cost(1, 1, 1)),),
    workspace_bytes=lambda case: 0,
)
"""
SUITE = 'ctx = "32"\nhead_dim = 8\nkernels = "mine"\npass = ["fwd"]\nheads = "1,2"\n'


def git(folder, *args):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A package with a contestant, in two commits: the second is slower."""
    folder = tmp_path / "mine"
    entry = folder / "mine-1.dist-info"
    entry.mkdir(parents=True)
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (entry / "entry_points.txt").write_text("[powerbench.kernels]\nmine = mine:MINE\n")
    (folder / "suite.toml").write_text(SUITE)
    git(folder, "init", "-q")
    for seconds in ("0.02", "0.14"):
        (folder / "mine.py").write_text(KERNEL.format(seconds=seconds))
        git(folder, "add", ".")
        git(folder, "commit", "-qm", f"sleeps {seconds} s")
    return folder


def test_a_slower_commit_is_caught_and_nothing_is_left_behind(repository):
    args = ["--suite", "suite.toml", "--device", "cpu", "--rounds", "1", "--keep", "kept", "--json", "-"]
    done = check("--against", "HEAD~1", *args, cwd=repository, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert [case["verdict"] for case in found["cases"]] == ["regression"] * 2
    assert all(3 < case["ratio"] < 10 for case in found["cases"]), "0.14 s against 0.02 s: each side ran its own code"
    assert found["baseline"] == git(repository, "rev-parse", "--short=12", "HEAD~1")
    order = [[line.split()[i] for i in (1, 4)] for line in done.stderr.splitlines()]
    assert order == [["baseline-1", "new-1"], ["new-2", "baseline-2"]]
    kept = sorted(path.name for path in (repository / "kept").glob("*.jsonl"))
    assert kept == ["baseline-1.jsonl", "baseline-2.jsonl", "new-1.jsonl", "new-2.jsonl"]
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_calibration_of_this_machine(repository):
    args = ["--suite", "suite.toml", "--device", "cpu", "--rounds", "1", "--noise", "noise.json"]
    done = check("--calibrate", *args, cwd=repository, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("2 runs of one code")
    found = json.loads((repository / "noise.json").read_text())
    assert (found["runs"], len(found["cases"])) == (2, 2)
    for case in found["cases"].values():
        assert case["sd"] > 0
        assert case["detectable"] is None or case["detectable"] > case["sd"], "None: on this machine, now, nothing is"


def test_a_baseline_measured_now(repository):
    args = ["--suite", "suite.toml", "--device", "cpu", "--baseline-dir", "baselines"]
    assert check(*args, "--update-baseline", cwd=repository, OMP_NUM_THREADS="1").returncode == 0
    (baseline,) = (repository / "baselines").glob("*.jsonl")
    assert "mine/" in baseline.read_text()


@pytest.fixture
def checkout(monkeypatch):
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    monkeypatch.chdir(root)
    return root


def test_this_ruler_over_the_kernels_of_a_commit(checkout, tmp_path):
    """The folder of a commit imports its own kernels and this checkout's everything else."""
    with trees.tree_of("HEAD", tmp_path / "tree") as tree:
        where = "import powerbench.kernels.table as k, powerbench.runner as r; print(k.__file__); print(r.__file__)"
        done = tree.python("-c", where)
        assert done.returncode == 0, done.stderr
        assert all(Path(line).is_relative_to(tree.folder) for line in done.stdout.split())
        committed = git(checkout, "show", "HEAD:powerbench/kernels/table.py")
        assert (tree.folder / "powerbench/kernels/table.py").read_text().strip() == committed
        ruler = tree.folder / "powerbench/runner.py"
        assert ruler.read_text() == (checkout / "powerbench/runner.py").read_text()
    assert str(tmp_path) not in git(checkout, "worktree", "list")


def test_each_side_has_its_own_caches(checkout, tmp_path):
    sides = [trees.this_tree(tmp_path / name) for name in ("a", "b")]
    found = [side.python("-c", "import os; print(os.environ['TRITON_CACHE_DIR'])").stdout for side in sides]
    assert len(set(found)) == 2
    assert all(str(side.folder) in said for side, said in zip(sides, found, strict=True))


def test_a_field_that_the_record_gained_does_no_harm_unless_it_must_be_given(checkout, tmp_path, monkeypatch):
    """As if this checkout's record had one field more than the commit's kernels fill in."""
    package = tmp_path / "powerbench"
    shutil.copytree(trees.PACKAGE, package)
    record = package / trees.RECORD
    lines = record.read_text()
    monkeypatch.setattr(trees, "PACKAGE", package)
    record.write_text(f"{lines}    more: int | None = None\n")
    with trees.tree_of("HEAD", tmp_path / "optional"):
        pass
    record.write_text(lines.replace("    name: str\n", "    more: int\n    name: str\n", 1))
    with pytest.raises(UserError, match=r"cannot measure .*more"), trees.tree_of("HEAD", tmp_path / "required"):
        pass


def test_contestants_that_resolve_as_the_ruler_did_once_are_refused(repository, tmp_path, monkeypatch):
    """Before there was one `resolve` for all passes it was not told the pass."""
    before = "resolve=lambda problem, params, device_type: params"
    (repository / "mine.py").write_text(KERNEL.format(seconds="0.03").replace("resolve=no_params", before))
    git(repository, "commit", "-qam", "as it was")
    monkeypatch.chdir(repository)
    with pytest.raises(UserError, match=r"cannot measure .*4 were given"), trees.tree_of("HEAD", tmp_path / "before"):
        pass
    with trees.tree_of("HEAD~1", tmp_path / "now"):
        pass


def test_what_is_no_commit_is_said(checkout, tmp_path):
    with pytest.raises(UserError, match="'no-such-branch' is no commit of"), trees.tree_of("no-such-branch", tmp_path):
        pass
    first = git(checkout, "rev-list", "--max-parents=0", "HEAD").splitlines()[0]
    with pytest.raises(UserError, match="--against"), trees.tree_of(first, tmp_path / "first"):
        pass
    assert str(tmp_path) not in git(checkout, "worktree", "list")


def test_the_interpreter_of_the_sides_is_this_one(checkout, tmp_path):
    done = trees.this_tree(tmp_path / "a").python("-c", "import sys; print(sys.executable)")
    assert done.stdout.strip() == sys.executable
