"""A kernel that reads a buffer once: what the read bandwidth ceiling times beside `torch.sum`. Needs triton."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

BLOCK = 8192  # elements of a program: 32 KiB, asked for at once


@triton.jit
def read_kernel(source, sums, BLOCK: tl.constexpr):
    """Each program reads its own block of `source`, float32, and leaves the sum: [programs]."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    tl.store(sums + tl.program_id(0), tl.sum(tl.load(source + first + tl.arange(0, BLOCK)), 0))


def memory_read(source: torch.Tensor) -> Callable[[], object]:
    """The launch, for a float32 buffer of whole blocks. What it writes, 4 bytes a block, is not counted."""
    sums = torch.empty(source.numel() // BLOCK, device=source.device)
    return lambda: read_kernel[(len(sums),)](source, sums, BLOCK=BLOCK)
