"""What the interpreter accepts and the compiler may refuse: the kernels are compiled for Hopper, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

VARIANTS = [  # p, d, e, d_tile, dtype
    [2, 64, 64, 16, "bfloat16"],
    [3, 64, 64, 8, "bfloat16"],
    [2, 128, 128, 128, "bfloat16"],
    [4, 16, 16, 1, "float16"],
    [1, 32, 32, 32, "float32"],
]
SHARED_MEMORY = 227 * 1024  # bytes a block may have on compute capability 9.0


def test_compiles_for_hopper_without_spilling_much(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("triton_aot.py")), json.dumps(VARIANTS)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout)
    names = {"attention_kernel", "update_state_kernel", "scan_kernel", "query_state_kernel"}
    assert {kernel["name"] for kernel in kernels} == names
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        assert kernel["stack"] <= 64, kernel
