"""Compile what suites will launch on this GPU, one part of it: `python -m tools.warm I N SUITE...` is part I of N.

Each case's call is made once, untimed and unchecked, so that the compilers' caches hold its kernels. Left out are
contestants that choose by timing and keep their choice on disk (retention): they must find the GPU idle. Of decoding
only short contexts: its kernels do not depend on them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Hashable, Iterator

import torch

from powerbench.bench import make_inputs, timed_call
from powerbench.kernels.kernel import Kernel
from powerbench.kernels.table import select
from powerbench.problem import Case
from powerbench.suites import load

LEFT_OUT = ("retention",)  # families
DECODE_CTX = 4096  # at most
DECODE_BYTES = 2**32  # of keys, at most: many processes share the GPU


def cases(suites: list[str]) -> Iterator[tuple[Kernel, Case]]:
    """What can run here and may be called beforehand."""
    for name in suites:
        suite = load(name).on("cuda")
        kernels = [kernel for kernel in select(suite.kernels or ()) if kernel.family not in LEFT_OUT]
        by_name = {kernel.name: kernel for kernel in kernels}
        for case in suite.cases(kernels, "cuda"):
            problem, kernel = case.problem, by_name[case.kernel]
            long = problem.seqlen > DECODE_CTX or problem.k_bytes > DECODE_BYTES
            if not (case.pass_ == "decode" and long) and kernel.refusal(case, "cuda") is None:
                yield kernel, case


def compiled_alike(case: Case) -> Hashable:
    """Cases for which this is equal share most of their kernels, and so are left to one process."""
    problem, params = case.problem, case.params
    batch = problem.batch if case.pass_ == "decode" else None
    shape = problem.head_dim, problem.value_dim, problem.heads // problem.kv_heads, problem.dtype, batch
    return case.kernel, case.pass_, shape, params.p, params.d_tile


def call(kernel: Kernel, case: Case) -> None:
    """Once."""
    device = torch.device("cuda")
    inputs = make_inputs(case.problem, device, 0, decoding=case.pass_ == "decode")
    if case.pass_ == "decode":
        assert kernel.decoding
        with torch.no_grad():
            kernel.decoding.prepare(case, inputs).step()
    else:
        timed_call(kernel, case, inputs, kernel.prepare(case))()
    torch.cuda.synchronize()


def main() -> None:
    """A line for each case that could not be called."""
    part, parts = int(sys.argv[1]), int(sys.argv[2])
    alike: dict[Hashable, list[tuple[Kernel, Case]]] = defaultdict(list)
    for kernel, case in cases(sys.argv[3:]):
        alike[compiled_alike(case)].append((kernel, case))
    longest_first = sorted(alike.values(), key=len, reverse=True)
    for group in longest_first[part::parts]:
        for kernel, case in group:
            try:
                call(kernel, case)
            except Exception as error:  # a contestant may raise anything; the sweep will say so
                print(case.case_id, type(error).__name__, str(error).splitlines()[:1], flush=True)


if __name__ == "__main__":
    main()
