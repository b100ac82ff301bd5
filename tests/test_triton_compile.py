"""What the interpreter accepts and the compiler may refuse: the kernels are compiled for Hopper, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

VARIANTS = [  # p, d, e, d_tile, dtype, whether on Hopper's own kernels
    [2, 64, 64, 8, "bfloat16", False],
    [2, 128, 128, 128, "bfloat16", False],
    [4, 16, 16, 1, "float16", False],
    [1, 32, 32, 32, "float32", False],
    [2, 64, 64, 8, "bfloat16", True],
    [2, 128, 128, 8, "bfloat16", True],
    [3, 32, 32, 8, "bfloat16", True],
]
PORTABLE = {
    "gates_kernel", "update_state_kernel", "scan_kernel", "attend_kernel",
    "query_gradient_kernel", "key_value_gradient_kernel", "gate_gradient_kernel", "step_kernel", "combine_kernel",
}  # fmt: skip
HOPPER = {  # in place of some of the others, which it has for what these do not do
    "hopper_update_kernel", "attend_hopper_kernel", "query_gradient_hopper_kernel", "key_value_state_kernel",
    "key_value_hopper_kernel",
}  # fmt: skip
WALKED = 64  # columns of a state, at most, that a plain bfloat16 one is walked over for
SHARED_MEMORY = 227 * 1024  # bytes a block may have on compute capability 9.0


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant)))
def test_compiles_for_hopper_without_spilling_much(variant, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("triton_aot.py")), json.dumps([variant])],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = json.loads(done.stdout)
    names = {kernel["name"] for kernel in kernels}
    if variant[-1]:
        assert HOPPER <= names <= PORTABLE | HOPPER | {"walk_kernel"}
        assert ("walk_kernel" in names) == (variant[2] <= WALKED)
    else:
        assert names == PORTABLE
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_MEMORY, kernel
        # a few registers of a program's prologue may spill; in a loop they would cost more than they save
        assert kernel["stack"] <= (256 if kernel["name"] in HOPPER else 64), kernel
