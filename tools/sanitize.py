"""One small case of every kernel of the package, for compute-sanitizer.

    python -m tools.sanitize memcheck       (or racecheck, initcheck, synccheck) runs compute-sanitizer on itself
    python -m tools.sanitize                the cases alone; says which kernels were launched

Each kernel is launched on each dtype that it serves: forward, backward, and steps on plain, lazy and walked states, by
the portable kernels and on compute capability 9.0 by Hopper's own. Memory is taken and given back by each tensor alone
(PYTORCH_NO_CUDA_MEMORY_CACHING), so that what is beyond a tensor is beyond an allocation. Nothing is compared: that is
`powerbench verify`. Exit status 1: a kernel was not launched, or compute-sanitizer has found something.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 9  # exit status of compute-sanitizer where it found something

# By module and name.
PORTABLE = {
    "gates.gates_kernel", "update_state.update_state_kernel", "scan.scan_kernel", "attend.attend_kernel",
    "query_gradient.query_gradient_kernel", "key_value_gradient.key_value_gradient_kernel",
    "gates.gate_gradient_kernel", "step_kernel.step_kernel", "step_kernel.combine_kernel",
    "memory_read.read_kernel", "l2.read_kernel",
}  # fmt: skip
HOPPER = {
    "update_state_hopper.hopper_update_kernel", "attend_hopper.attend_hopper_kernel",
    "query_gradient_hopper.query_gradient_hopper_kernel", "key_value_state_hopper.key_value_state_kernel",
    "key_value_hopper.key_value_hopper_kernel", "walk_kernel.walk_kernel",
}  # fmt: skip

_BOTH = "gates=slow,initial=true,final=true,loss=both"
_STEPS = "loss=none,final=true,initial=true,gates=slow"
# Two chunks, more than a tile of tokens in the first, a few in the second; at 16 the portable kernels serve bf16 too.
CASES = (
    f"p=2,d=16,e=32,dtype=fp32,T=70,chunk=40,d_tile=4,H=2,{_BOTH}",
    f"p=2,d=16,e=32,dtype=fp16,T=150,chunk=140,d_tile=4,H=2,{_BOTH}",
    f"p=2,d=16,e=32,dtype=bf16,T=150,chunk=140,d_tile=4,H=2,{_BOTH}",
    f"p=1,d=16,e=16,dtype=fp16,T=150,chunk=140,normalize=false,H=2,{_BOTH}",
    f"p=3,d=16,e=16,dtype=fp16,T=150,chunk=140,d_tile=8,normalize=false,H=2,{_BOTH}",
    f"p=2,d=32,e=64,dtype=bf16,T=150,chunk=140,d_tile=8,H=2,{_BOTH}",
    f"p=2,d=64,e=128,dtype=bf16,T=150,chunk=140,d_tile=8,{_BOTH}",
    "p=3,d=32,e=32,dtype=bf16,T=150,chunk=140,d_tile=8,normalize=false,H=2,gates=fast",
    "p=2,d=64,e=64,dtype=bf16,T=150,H=2,normalize=true",
    f"p=2,d=16,e=16,dtype=fp32,T=4,step=1,d_tile=4,decode=plain,{_STEPS}",
    f"p=2,d=16,e=16,dtype=fp16,T=9,step=3,d_tile=4,H=4,Hk=2,decode=lazy,window=4,{_STEPS}",
    f"p=2,d=32,e=32,dtype=bf16,T=4,step=1,d_tile=8,B=2,decode=lazy,window=2,low=true,{_STEPS}",
    f"p=2,d=64,e=64,dtype=bf16,T=2,step=1,d_tile=8,decode=plain,low=true,{_STEPS}",
)  # fmt: skip


@contextmanager
def recording() -> Iterator[set[str]]:
    """The names of the kernels that are launched meanwhile."""
    from triton.runtime.jit import JITFunction  # noqa: PLC0415  triton is optional

    names: set[str] = set()
    run = JITFunction.run

    def recorded(self: JITFunction, *args: object, **options: object) -> object:
        names.add(f"{self.fn.__module__.rpartition('.')[2]}.{self.fn.__name__}")
        return run(self, *args, **options)

    with patch.object(JITFunction, "run", recorded):
        yield names


def call_all(device_type: str) -> None:
    """Make the calls of all cases, one after the other, and read a little memory as the ceilings do."""
    import torch  # noqa: PLC0415  not before PYTORCH_NO_CUDA_MEMORY_CACHING is set

    from powerbench.fuzz.calls import d_tile_of, results  # noqa: PLC0415
    from powerbench.fuzz.inputs import make_values  # noqa: PLC0415
    from powerbench.fuzz.problem import parse  # noqa: PLC0415
    from powerbench.l2 import l2_read  # noqa: PLC0415
    from powerbench.memory_read import BLOCK, memory_read  # noqa: PLC0415

    device = torch.device(device_type)
    memory_read(torch.ones(4 * BLOCK, device=device))()
    l2_read(2**18, 4, 2, device)[0]()
    for text in CASES:
        print(text, flush=True)
        problem = parse(text)
        d_tile = d_tile_of(problem, device)
        results(problem, make_values(problem, d_tile, device), d_tile, "triton")
        if device.type == "cuda":
            torch.cuda.synchronize()


def main() -> int:
    """The exit status."""
    if len(sys.argv) > 1:
        tool = sys.argv[1]
        sanitizer = shutil.which("compute-sanitizer")
        if tool not in TOOLS:
            print(f"sanitize: {tool!r} is not one of {', '.join(TOOLS)}", file=sys.stderr)
            return 2
        if sanitizer is None:
            print("sanitize: compute-sanitizer is not installed; it comes with the CUDA toolkit", file=sys.stderr)
            return 2
        command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-m", "tools.sanitize"]
        return min(1, subprocess.run(command, check=False).returncode)
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        print("sanitize: there is no CUDA device here", file=sys.stderr)
        return 2
    wanted = PORTABLE | HOPPER if torch.cuda.get_device_capability() == (9, 0) else PORTABLE
    with recording() as names:
        call_all("cuda")
    print(f"launched: {', '.join(sorted(names))}")
    missing = wanted - names
    if missing:
        print(f"not launched: {', '.join(sorted(missing))}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
