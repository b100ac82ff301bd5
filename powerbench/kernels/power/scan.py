"""scan: the states that come into each chunk, R_n = exp(A_{n-1}) R_{n-1} + S_{n-1}, a recurrence over chunks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Memory bound. Four elements a thread: one full vector of float32, and the same layout for what is read and written
# (with eight, the half as wide output would be re-arranged through shared memory).
BLOCK = 512
NUM_WARPS = 4
NUM_STAGES = 3


@triton.jit
def scan_kernel(
    s_ptr, a_ptr, initial_ptr, weight_ptr, r_ptr, final_ptr, weight_by,
    size, n_chunks, n_states, n_incoming, chunk, n_blocks,
    WIDTH: tl.constexpr, GATED: tl.constexpr, HAS_INITIAL: tl.constexpr, FINAL: tl.constexpr, INCOMING: tl.constexpr,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the state of one batch entry and key/value head, through all chunks in order."""
    pid = tl.program_id(0)
    i_bh = (pid // n_blocks).to(tl.int64)
    o = (pid % n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    p_s = s_ptr + i_bh * n_states * size + o

    b_r = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        b_r = tl.load(initial_ptr + i_bh * size + o, mask=m, other=0.0)
    if INCOMING:
        p_r = r_ptr + i_bh * n_incoming * size + o
        b_weight = tl.load(weight_ptr + o // WIDTH, mask=m, other=0.0) * weight_by
        if HAS_INITIAL:
            tl.store(p_r, (b_r * b_weight).to(r_ptr.dtype.element_ty), mask=m)
            p_r += size
    if GATED:
        p_a = a_ptr + (i_bh * n_chunks + 1) * chunk - 1  # the gates of a whole chunk stand at its last position
    for i_n in tl.range(0, n_chunks - 1, num_stages=STAGES):
        b_s = tl.load(p_s, mask=m, other=0.0)
        if GATED:
            b_r *= tl.exp(tl.load(p_a + i_n * chunk))
        b_r += b_s
        if INCOMING:
            tl.store(p_r, (b_r * b_weight).to(r_ptr.dtype.element_ty), mask=m)
            p_r += size
        p_s += size
    if FINAL:
        if GATED:
            b_r *= tl.exp(tl.load(p_a + (n_chunks - 1) * chunk))
        b_r += tl.load(p_s, mask=m, other=0.0)
        tl.store(final_ptr + i_bh * size + o, b_r, mask=m)


def scan(
    s: Tensor | None,
    a: Tensor | None,
    initial: Tensor | None,
    weight: Tensor | None,
    *,
    weight_by: float,
    n_chunks: int,
    incoming: torch.dtype | None,
    final: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(R, final state) from what each chunk adds.

    s float32 [B, Hk, m, rows, width], m = n_chunks with `final` and n_chunks - 1 without it (None when that is 0);
    a float32 [B, Hk, n_chunks, C] or None; initial float32 [B, Hk, rows, width] or None (zero). R is the state before
    each chunk, times weight (float32, [rows], or [rows * width] to weigh every element by itself) times weight_by,
    rounded to dtype `incoming`: [B, Hk, n, rows, width], n = n_chunks with an initial state, else n_chunks - 1, because
    nothing comes into chunk 0. With `incoming` None there is no R and no weight. The final state, if asked, is
    unweighted float32 [B, Hk, rows, width]. Sums are float32 throughout.
    """
    like = s if s is not None else initial
    B, Hk = like.shape[:2]
    rows, width = like.shape[-2:]
    size = rows * width
    n_incoming = n_chunks if initial is not None else n_chunks - 1
    r = None if incoming is None else like.new_empty(B, Hk, n_incoming, rows, width, dtype=incoming)
    last = like.new_empty(B, Hk, rows, width, dtype=torch.float32) if final else None
    blocks = triton.cdiv(size, BLOCK)
    scan_kernel[(blocks * B * Hk,)](
        like, a, None if initial is None else initial.float().contiguous(), weight, r, last, weight_by,
        size, n_chunks, 0 if s is None else s.shape[2], n_incoming, 0 if a is None else a.shape[-1], blocks,
        WIDTH=size // weight.numel() if incoming is not None else 1, GATED=a is not None,
        HAS_INITIAL=initial is not None, FINAL=final, INCOMING=incoming is not None,
        BLOCK=BLOCK, STAGES=NUM_STAGES, num_warps=NUM_WARPS,
    )  # fmt: skip
    return r, last
