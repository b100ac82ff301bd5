"""A kernel that reads a buffer of L2's size again and again: what the L2 bandwidth ceiling times. Needs triton.

One launch holds many rounds, because a single pass through an L2 takes about as long as a launch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK = 2048  # elements a program reads at once: 8 KiB
PROGRAMS_PER_MULTIPROCESSOR = 4  # enough bytes in flight to cover the latency of L2


@triton.jit
def read_kernel(source, sink, blocks, rounds, BLOCK: tl.constexpr):
    """Each program reads its own `blocks` blocks of `source`, `rounds` times over; [programs, BLOCK] sums go to sink.

    A line of L2 is read by one multiprocessor only, so that no partition of L2 keeps a second copy of it.
    """
    lanes = tl.arange(0, BLOCK)
    first = tl.program_id(0) * blocks
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(rounds):
        for block in range(blocks):
            # .cg: cached in L2 only. L1 could hold most of a multiprocessor's share, and would be measured instead.
            total += tl.load(source + (first + block) * BLOCK + lanes, cache_modifier=".cg")
    tl.store(sink + tl.program_id(0) * BLOCK + lanes, total)


def l2_read(l2_bytes: int, multiprocessors: int, rounds: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """The launch, and the bytes of its buffer, which it reads `rounds` times: random data, at most half of L2.

    On a very small L2 it is two blocks a program: with one, a compiler might take the load out of the loop.
    """
    programs = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    blocks = max(2, l2_bytes // 2 // (4 * BLOCK * programs))
    source = torch.rand(programs * blocks * BLOCK, device=device)
    sink = torch.empty(programs * BLOCK, device=device)
    return lambda: read_kernel[(programs,)](source, sink, blocks, rounds, BLOCK=BLOCK), 4 * source.numel()
