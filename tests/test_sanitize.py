"""`tools.sanitize` launches every kernel that there is; found without launching any."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerbench.fuzz.problem import parse
from tools.sanitize import CASES, HOPPER, PORTABLE

ROOT = Path(__file__).parents[1]


def jitted_and_launched():
    """Jitted functions by module and name; and the names of those that are launched, `name[grid](...)`, anywhere."""
    jitted, launched = set(), set()
    for path in (ROOT / "powerbench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(x) for x in node.decorator_list):
                jitted.add(f"{path.stem}.{node.name}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(ast.unparse(node.func.value))
    return jitted, launched


def test_every_kernel_is_named():
    jitted, launched = jitted_and_launched()
    kernels = {name for name in jitted if name.partition(".")[2] in launched}
    assert kernels == PORTABLE | HOPPER
    assert {name for name in jitted if name.endswith("_kernel")} == kernels  # what a kernel is called


def test_every_kernel_is_launched_by_a_case():
    """With launchers that think they have a Hopper GPU and kernels that do nothing."""
    pytest.importorskip("triton")
    code = """
import torch
from unittest.mock import patch
from triton.runtime.jit import JITFunction
from powerbench.fuzz import calls
from powerbench.kernels.power import decode, hopper, op, triton_decode
from tools.sanitize import HOPPER, PORTABLE, call_all, recording

def serves(dtype, device, d, e):
    return dtype == torch.bfloat16 and d in hopper.HEAD_DIMS and e in hopper.HEAD_DIMS

with (
    patch.object(JITFunction, "run", lambda self, *args, **options: None),
    patch.object(hopper, "serves", serves), patch.object(triton_decode, "walking_processors", lambda device: 132),
    patch.object(op, "use_triton", lambda *_: True), patch.object(decode, "use_triton", lambda *_: True),
    recording() as names,
):
    call_all("cpu")
assert names == PORTABLE | HOPPER, names ^ (PORTABLE | HOPPER)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_each_dtype_has_its_cases(dtype):
    """Forward, backward and steps; and cases stay small."""
    problems = [parse(text) for text in CASES]
    assert max(x.T for x in problems) <= 200
    assert any(x.dtype == dtype and x.loss == "both" for x in problems)
    assert any(x.dtype == dtype and x.decode != "no" for x in problems)


@pytest.mark.parametrize(("argument", "message"), [("leakcheck", "'leakcheck' is not one of memcheck, racecheck")])
def test_what_it_is_not_made_for_is_one_line(argument, message):
    done = subprocess.run(
        [sys.executable, "-m", "tools.sanitize", argument], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
