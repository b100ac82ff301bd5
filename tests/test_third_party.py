"""A user's view of other people's packages: one that adds a contestant, none at all, and ones that do not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerbench.results.store import load

ROOT = Path(__file__).parents[1]
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny-attention"
version = "1.2.3"

[project.entry-points."powerbench.kernels"]
tiny = "tiny_attention:TINY"

[tool.setuptools]
py-modules = ["tiny_attention"]
"""
MODULE = """
from importlib.metadata import version

from powerbench.kernels.kernel import Kernel, Support, no_params
from powerbench.kernels.ledger import cpu_workspace_bytes, softmax_launches
from powerbench.kernels.softmax import softmax_reference


def prepare(case):
    def forward(q, k, v, log_g):
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * q.shape[-1] ** -0.5
        future = scores.new_ones(scores.shape[-2:]).triu(1).bool()
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return (weights @ v.transpose(1, 2)).transpose(1, 2)

    return forward


SUPPORT = Support("pip install tiny-attention", ("fp32",), grouped=False)
TINY = Kernel(
    name="tiny-softmax",
    family="tiny",
    summary="softmax attention in four lines",
    takes=frozenset(),
    gated=False,
    version=lambda: version("tiny-attention"),
    resolve=no_params,
    unsupported=lambda case, device_type: SUPPORT.refusal(case),
    prepare=prepare,
    reference=softmax_reference,
    launches=softmax_launches,
    workspace_bytes=cpu_workspace_bytes,
    support=SUPPORT,
)
"""


def python(*args: str, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT))), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder into which a package of three files was installed, from its own folder, offline."""
    source, target = tmp_path_factory.mktemp("tiny-attention"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "tiny_attention.py").write_text(MODULE)
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    done = python("-m", "pip", "install", "-q", *offline, "--target", str(target), str(source), path=target, cwd=source)
    assert done.returncode == 0, done.stderr
    return target


def test_a_package_adds_a_contestant(tiny, tmp_path):
    listed = python("-m", "powerbench", "list", "kernels", path=tiny, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    first, second = (line for line in listed.stdout.splitlines() if line.startswith("tiny-softmax"))
    assert first.split() == ["tiny-softmax", "1.2.3", "fwd,", "bwd", "no", "no", "fp32", "any"]
    assert second.split()[:2] == ["tiny-softmax", "tiny"]
    assert "softmax attention in four lines" in second
    assert second.rstrip().endswith("pip install tiny-attention")

    options = "--device cpu --kernels tiny,sdpa-cpu --ctx 64 --heads 2 --kv-heads 1,2 --head-dim 8 -o run.jsonl"
    swept = python("-m", "powerbench", "sweep", *options.split(), path=tiny, cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    run = load(tmp_path / "run.jsonl")
    assert run.header.environment.packages["tiny-softmax"] == "1.2.3"
    rows = {(m.case.kernel, m.case.problem.kv_heads): m for m in run.measurements}
    assert rows["tiny-softmax", 2].status == "ok"
    assert rows["tiny-softmax", 2].samples_ms
    assert rows["tiny-softmax", 1].status == "unsupported"
    assert rows["tiny-softmax", 1].message == "no GQA: needs as many key heads as query heads, not 1 for 2"


WITHOUT = """
import importlib.metadata, sys
from importlib.metadata import PackageNotFoundError

def version(name, found=importlib.metadata.version):
    if name != "torch":
        raise PackageNotFoundError(name)
    return found(name)

importlib.metadata.version = version
for name in ("triton", "flash_attn", "fa3_fwd_interface", "flash_attn_interface", "fla", "retention", "vidrial"):
    sys.modules[name] = None
from powerbench.cli import main
"""


def test_with_nothing_but_torch(tmp_path):
    code = f"{WITHOUT}\nsys.argv = ['powerbench', 'list', 'kernels']\nmain()"
    done = python("-c", code, path=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version = {line.split()[0]: line for line in done.stdout.partition("how to get it")[0].splitlines() if line}
    for name in ("power-triton", "flash-2", "flash-3", "flash-4", "fla-linear", "based-fla", "retention-triton"):
        assert "not installed" in version[name]
    for name in ("power-torch", "sdpa-cpu", "window-torch", "compile-attention", "flex-power"):
        assert "not installed" not in version[name]
    for command in ("pip install powerbench[gpu]", "pip install powerbench[flash]", "pip install powerbench[fla]"):
        assert command in done.stdout


ASK = """
from powerbench.kernels.table import KERNELS
from powerbench.problem import Case, Params, Problem
for kernel in KERNELS:
    for pass_ in ("fwd", "fwd+bwd"):
        problem = Problem(1, 128, 2, 2, 16, 16, "bf16", True)
        case = Case(problem, kernel.name, kernel.resolve(problem, Params(), pass_, "cuda"), pass_)
        reason = kernel.unsupported(case, "cuda")
        print(kernel.name, kernel.version(), reason, sep="|")
"""
# How packages fail that are installed and yet do not work: by what is installed, what is imported, and how it fails.
BROKEN = (
    ("flash_attn", "flash_attn/__init__.py", "raise ImportError('undefined symbol: _ZN3c105Error')"),
    ("fa3_fwd", "fa3_fwd_interface.py", "raise OSError('libcudart.so.13: cannot open shared object file')"),
    ("fla_core", "fla/__init__.py", "raise RuntimeError('0 active drivers ([]). There should only be one.\\nmore')"),
    ("retention", "retention/__init__.py", "import triton.language as tl\ntl.no_such_function"),
)


def test_packages_that_do_not_import_are_reasons(tmp_path):
    for name, module, content in BROKEN:
        info = tmp_path / f"{name}-0.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.9\n")
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text(content)
    done = python("-c", ASK, path=tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    reasons = {}
    for line in done.stdout.splitlines():
        name, version, reason = line.split("|")
        reasons.setdefault(name, (version, reason))
    for name, words in {
        "flash-2": "flash-attn does not import: ImportError: undefined symbol",
        "window-flash-2": "flash-attn does not import: ImportError: undefined symbol",
        "flash-3": "fa3-fwd does not import: OSError: libcudart.so.13",
        "fla-linear": "flash-linear-attention does not import: RuntimeError: 0 active drivers",
        "based-fla": "flash-linear-attention does not import: RuntimeError: 0 active drivers",
        "retention-triton": "retention does not import: AttributeError",
        "retention-cuda": "vidrial is not installed",
    }.items():
        version, reason = reasons[name]
        assert reason.startswith(words)
        assert version == "0.9" or name == "retention-cuda"
