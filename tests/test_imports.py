"""Imports point one way, and what reads runs needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from powerbench.kernels.power.dynamo import constant_result

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "powerbench"
TORCH_FREE = [
    "powerbench", "powerbench.cli", "powerbench.problem", "powerbench.cost", "powerbench.roofline",
    "powerbench.datasheet", "powerbench.nvml", "powerbench.telemetry", "powerbench.spoilers",
    "powerbench.crossover", "powerbench.costmodel", "powerbench.refine", "powerbench.stopping", "powerbench.suites",
    "powerbench.turns", "powerbench.printable", "powerbench.console",
    "powerbench.results.model", "powerbench.results.store", "powerbench.check.compare", "powerbench.check.gate",
    "powerbench.check.outputs.write", "powerbench.models", "powerbench.wsfr", "powerbench.reports.wsfr_choice",
    "powerbench.reports.wsfr_table", "powerbench.reports.wsfr",
    "powerbench.reports.frames", "powerbench.reports.show", "powerbench.reports.page", "powerbench.reports.static",
    "powerbench.reports.index",
    "powerbench.kernels.power.feature_map", "powerbench.kernels.power.cost", "powerbench.kernels.power.choose",
    "powerbench.kernels.power.triton_cost", "powerbench.kernels.power.state_size",
    "powerbench.kernels.power.decode_cost", "powerbench.kernels.power.decode_tiling", "powerbench.reports.decoding",
]  # fmt: skip
# Which parts of the package a part may import. `cli` and `session`, at the top, may import all.
BASE = {"problem", "bounds", "cost", "errors", "printable", "console", "_version"}
ALLOWED = {
    "bounds": set(),
    "problem": {"bounds"},
    "cost": {"bounds"},
    "errors": set(),
    "printable": set(),
    "console": {"printable"},
    "roofline": {"cost", "bounds"},
    "bootstrap": {"results"},
    "interpolation": set(),
    "crossover": BASE | {"bootstrap", "interpolation", "results"},
    "costmodel": {"cost"},
    "refine": BASE | {"reports", "suites", "crossover"},
    "suites": BASE | {"kernels.kernel", "models"},
    "models": BASE | {"suites.grammar"},
    "wsfr": BASE | {"models", "crossover", "kernels.power.choose", "kernels.power.cost", "kernels.power.feature_map"},
    "nvml": {"bounds"},
    "telemetry": {"nvml"},
    "spoilers": {"nvml", "device"},
    "datasheet": {"roofline"},
    "results": BASE | {"roofline", "device", "nvml"},
    "reports": BASE
    | {"check", "results", "roofline", "bootstrap", "crossover", "costmodel", "nvml", "datasheet", "models", "wsfr"}
    | {"suites", "kernels.power.feature_map", "kernels.power.state_size"},
    "check": BASE
    | {"results", "roofline", "crossover", "stopping", "reports", "suites", "kernels", "session", "turns"},
    "turns": set(),
    "stopping": BASE | {"results"},
    "timing": BASE,
    "kernels": BASE,
    "device": BASE | {"timing"},
    "memory_read": set(),
    "l2": set(),
    "ceilings": BASE | {"kernels.kernel", "roofline", "timing", "device", "l2", "memory_read"},
    "gate": BASE | {"kernels"},
    "bench": BASE | {"timing", "device", "kernels", "results", "gate", "telemetry"},
    "plan": BASE | {"suites", "device", "kernels", "roofline", "stopping", "gate", "bench"},
    "worker": BASE | {"timing", "device", "results", "bench", "telemetry"},
    "runner": BASE | {"device", "results", "stopping", "bench", "plan", "worker", "turns"},
    "terminal": BASE | {"results", "roofline", "plan", "refine"},
    "listing": {"kernels", "printable"},
}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr or f"{module} imports torch or triton"


def test_the_operator_needs_no_triton():
    """It is an extra: `triton_op`, `triton_decode` and what they import come in with the first call on Triton."""
    done = run_python("import sys; sys.modules['triton'] = None; import powerbench.kernels.power.decode")
    assert done.returncode == 0, done.stderr


def test_what_a_sweep_imports_is_without_the_compiler():
    """torch._dynamo takes a second, in each process of a sweep."""
    code = "import sys, powerbench.session, powerbench.bench; sys.exit('torch._dynamo' in sys.modules)"
    done = run_python(code)
    assert done.returncode == 0, done.stderr or "torch._dynamo was imported"


def test_a_constant_is_marked_as_torch_marks_it():
    first, second = (lambda: 1), (lambda: 1)
    assert vars(constant_result(first)) == vars(torch.compiler.assume_constant_result(second)) != {}


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['powerbench', '--help']\n"
        "from powerbench.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'plotly', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = run_python(code)
        times.append(time.perf_counter() - start)
    assert done.returncode == 0, done.stderr
    assert min(times) < 0.4


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("powerbench"):
            names |= {node.module} if node.module != "powerbench" else {f"powerbench.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("powerbench")}
    return {name.removeprefix("powerbench.") for name in names}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    path = PACKAGE / part
    files = list(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    assert files
    for file in files:
        for name in _imports(file):
            top = name.split(".")[0]
            fine = top == part or any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[part])
            assert fine, f"{file.relative_to(ROOT)} imports powerbench.{name}"


def test_every_part_is_covered():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - set(ALLOWED) == {"__init__", "__main__", "_version", "cli", "session"}
