"""Compiles the Triton kernels for a GPU that need not be there, with the arguments the launchers really pass.

Run by `test_triton_compile` in a process of its own, where the interpreter is off:

    python tests/triton_aot.py '[[2, 64, 64, 16, "bfloat16", true], ...]'   p, d, e, d_tile, dtype, Hopper's own kernels

The launchers get tensors on the meta device, and `JITFunction.run` is replaced: it compiles for compute capability 9.0
and launches nothing. Prints one JSON list: name, seconds, bytes of shared memory, registers and bytes of stack
(spilled registers) of each kernel.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from powerbench.kernels.power import hopper, triton_decode
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.triton_backend import forward_launches
from powerbench.kernels.power.triton_backward import triton_backward

POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64",
    torch.float64: "*fp64",
}  # fmt: skip


def compile_only(found: dict):
    """What stands in for JITFunction.run: the same specialisation of arguments, then the compiler, then nothing."""

    def run(self, *args, grid, warmup, **options):
        source, options, key = specialized(self, args, options)
        if key in found:
            return
        start = time.perf_counter()
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        found[key] = {"name": self.__name__, "seconds": time.perf_counter() - start, **resources(kernel)}

    return run


def specialized(function: JITFunction, args: tuple, options: dict) -> tuple[ASTSource, dict, str]:
    """What a launch compiles: its source, the compiler's options, and a key that is equal where Triton's is."""
    values = dict(zip(function.arg_names, args, strict=False))
    warps = {"num_warps": options["num_warps"]}  # Gluon kernels take it as a constant too
    values |= {name: options[name] for name in options if name in function.arg_names}
    options = {name: value for name, value in options.items() if name not in function.arg_names} | warps
    signature, constants, hints = {}, {}, {}
    for position, (name, parameter) in enumerate(zip(function.arg_names, function.params, strict=True)):
        value = values[name]
        fixed = parameter.is_constexpr or value is None
        special = not (parameter.do_not_specialize or isinstance(value, float | TensorDescriptor))
        if isinstance(value, TensorDescriptor):
            block = ",".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{POINTERS[value.base.dtype][1:]}[{block}]>"
        elif fixed or (special and type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if special and (isinstance(value, torch.Tensor) or value % 16 == 0):
                hints[(position,)] = [["tt.divisibility", 16]]
    key = f"{function.__name__} {signature} {constants} {hints} {options}"
    return (GluonASTSource if function.is_gluon() else ASTSource)(function, signature, constants, hints), options, key


def resources(kernel) -> dict:
    """Shared memory, registers and stack of a compiled kernel, by the tools in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    return {"shared": kernel.metadata.shared, "registers": int(registers), "stack": int(stack)}


def compile_backward(p: int, d: int, e: int, d_tile: int, dtype: str) -> None:
    """A backward call without states from or to outside, after the forward call that saves for it."""
    q, k, v, dy = (torch.empty(1, 4096, 8, n, dtype=getattr(torch, dtype), device="meta") for n in (d, d, e, e))
    log_g = torch.empty(1, 4096, 8, device="meta")
    options = {
        "p": p, "chunk_size": 1024, "d_tile": d_tile, "scale": d**-0.5, "normalize": p % 2 == 0, "return_state": False,
    }  # fmt: skip
    done = forward_launches(q, k, v, log_g, initial_state=None, save=True, **options)
    triton_backward(dy, None, q, k, v, log_g, done.y, done.den, done.r, done.a, None, initial=False, **options)


def compile_step(p: int, d: int, e: int, d_tile: int, dtype: str) -> None:
    """One token on a plain state, in bfloat16 too where that may be, and three on a lazy one, as a matrix."""
    dim = tspow_dim(d, p, d_tile)
    state = PowerState(torch.empty(64, 8, dim, e, device="meta"), torch.empty(64, 8, dim, device="meta"))
    lazy = LazyState.begin(state, d, getattr(torch, dtype))
    low = [] if dtype == "float32" else [(1, PowerState(state.s.bfloat16(), state.z))]
    for T, past in ((1, state), *low, (1, lazy), (3, lazy)):
        q, k, v = (torch.empty(64, T, 8, n, dtype=getattr(torch, dtype), device="meta") for n in (d, d, e))
        log_g = torch.empty(64, T, 8, device="meta")
        triton_decode.triton_step(q, k, v, log_g, past, p=p, d_tile=d_tile, scale=d**-0.5, normalize=p % 2 == 0)


def main() -> None:
    found: dict = {}
    JITFunction.run = compile_only(found)
    for p, d, e, d_tile, dtype, on_hopper in json.loads(sys.argv[1]):
        hopper.serves = lambda *_, on_hopper=on_hopper: on_hopper
        triton_decode.starts_early = lambda _, on_hopper=on_hopper: on_hopper
        triton_decode.walking_processors = lambda _, on_hopper=on_hopper: 132 if on_hopper else 0
        q, k, v = (torch.empty(1, 4096, 8, n, dtype=getattr(torch, dtype), device="meta") for n in (d, d, e))
        forward_launches(
            q, k, v, torch.empty(1, 4096, 8, device="meta"),
            p=p, chunk_size=1024, d_tile=d_tile, scale=d**-0.5, normalize=p % 2 == 0,
            initial_state=None, return_state=True, save=False,
        )  # fmt: skip
        compile_backward(p, d, e, d_tile, dtype)
        compile_step(p, d, e, d_tile, dtype)
    print(json.dumps(list(found.values())))


if __name__ == "__main__":
    main()
