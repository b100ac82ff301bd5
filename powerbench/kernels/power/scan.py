"""scan: the states that come into each chunk, R_n = exp(A_{n-1}) R_{n-1} + S_{n-1}, a recurrence over chunks.

Backward it is the same recurrence from the last chunk to the first: with L_n the gradient of R_n inside chunk n, the
gradient of S_{n-1}, and of everything else that R_n is made of, is E_{n-1} = L_n + exp(A_n) E_n. On the way it can take
the inner products <E_{n-1}, R_n>: how the loss depends on the scale of R_n, that is on all gates before chunk n at
once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Memory bound: one full vector a thread of what is read.
BLOCK = 1024
NUM_WARPS = 4
NUM_STAGES = 4


@triton.jit(do_not_specialize=["n_forward", "n_chunks", "n_states", "n_incoming", "n_blocks"])
def scan_kernel(
    s_ptr, a_ptr, initial_ptr, r_ptr, final_ptr, forward_ptr, weight_ptr, flux_ptr,
    size, forward_size, n_forward, n_chunks, n_states, n_incoming, chunk, n_blocks,
    REVERSE: tl.constexpr, GATED: tl.constexpr, HAS_INITIAL: tl.constexpr, FINAL: tl.constexpr, INCOMING: tl.constexpr,
    FLUX: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of the state of one batch entry and key/value head, through all chunks in order."""
    pid = tl.program_id(0)
    i_bh = (pid // n_blocks).to(tl.int64)
    o = (pid % n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < size
    step = size
    i_s, i_r, i_a = i_bh * n_states, i_bh * n_incoming, i_bh * n_chunks  # where the walk begins
    if REVERSE:
        i_s += n_states - 1
        i_r += n_incoming - 1
        i_a += n_chunks - 1
        step = -size
    p_s = s_ptr + i_s * size + o
    p_r = r_ptr + i_r * size + o if INCOMING else p_s
    # the gates of a whole chunk stand at its last position
    p_a = a_ptr + (i_a + 1) * chunk - 1 if GATED else p_s
    p_l = p_a + (tl.num_programs(0) // n_blocks).to(tl.int64) * n_chunks * chunk  # the low parts follow all high ones
    if REVERSE:
        chunk = -chunk

    if FLUX:
        p_forward = forward_ptr + (i_bh * n_forward + n_forward - 1) * forward_size + o
        p_flux = flux_ptr + (i_bh * n_chunks + n_chunks - 1) * n_blocks + pid % n_blocks
        b_weight = tl.load(weight_ptr + o, mask=m, other=0.0).to(tl.float32)

    b_r = tl.zeros([BLOCK], tl.float32)
    if HAS_INITIAL:
        b_r = tl.load(initial_ptr + i_bh * size + o, mask=m, other=0.0)
        if INCOMING:
            tl.store(p_r, b_r.to(r_ptr.dtype.element_ty), mask=m)
            p_r += step
    for i_n in tl.range(0, n_chunks - 1, num_stages=STAGES):
        b_s = tl.load(p_s, mask=m, other=0.0).to(tl.float32)
        if GATED:
            b_r *= tl.exp(tl.load(p_a + i_n * chunk)) * (1 + tl.load(p_l + i_n * chunk))
        b_r += b_s
        if INCOMING:
            tl.store(p_r, b_r.to(r_ptr.dtype.element_ty), mask=m)
            p_r += step
        if FLUX:
            b_forward = tl.load(p_forward, mask=m, other=0.0).to(tl.float32)
            p_forward -= forward_size
            tl.store(p_flux - i_n * n_blocks, tl.sum(b_r * b_forward * b_weight, 0))
        p_s += step
    if FINAL:
        if GATED:
            b_r *= tl.exp(tl.load(p_a + (n_chunks - 1) * chunk)) * (1 + tl.load(p_l + (n_chunks - 1) * chunk))
        b_r += tl.load(p_s, mask=m, other=0.0).to(tl.float32)
        tl.store(final_ptr + i_bh * size + o, b_r, mask=m)
        if FLUX:
            b_forward = tl.load(p_forward, mask=m, other=0.0).to(tl.float32)
            tl.store(p_flux - (n_chunks - 1) * n_blocks, tl.sum(b_r * b_forward * b_weight, 0))


def scan(
    s: Tensor | None,
    a: Tensor | None,
    initial: Tensor | None,
    *,
    n_chunks: int,
    incoming: torch.dtype | None,
    final: bool,
    reverse: bool = False,
    against: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(R, final state, inner products) from what each chunk adds.

    s [B, Hk, m, elements], any floating dtype, m = n_chunks with `final` and n_chunks - 1 without it (None when that is
    0); a float32 [2, B, Hk, n_chunks, C] or None, as `gates` writes it; initial float32 [B, Hk, elements] or None
    (zero). R is the state before each chunk in dtype `incoming`: [B, Hk, n, elements], n = n_chunks with an initial
    state, else n_chunks - 1, because nothing comes into chunk 0. With `incoming` None there is no R. The final state,
    if asked, is float32 [B, Hk, elements]. Sums are float32 throughout. `reverse` walks from the last chunk to the
    first; all arrays stay in the order of the chunks (those of m or n < n_chunks states lack the ends that the walk
    does not need).

    `against` (reverse only): the forward call's R [B, Hk, n, elements or more] and weights [elements]. Then the third
    result is float32 [B, Hk, n_chunks, blocks], whose sums over blocks are sum(weights E_{n-1} R_n); those for
    n = 0 are written with `final` alone, E_{-1} being the final result.
    """
    like = s if s is not None else initial
    B, Hk = like.shape[:2]
    size = like.shape[-1]
    n_incoming = n_chunks if initial is not None else n_chunks - 1
    r = None if incoming is None else torch.empty(B, Hk, n_incoming, size, dtype=incoming, device=like.device)
    last = torch.empty(B, Hk, size, dtype=torch.float32, device=like.device) if final else None
    blocks = triton.cdiv(size, BLOCK)
    forward, weights, flux = None, None, None
    if against is not None:
        forward, weights = against
        flux = torch.empty(B, Hk, n_chunks, blocks, dtype=torch.float32, device=like.device)
    scan_kernel[(blocks * B * Hk,)](
        like, a, initial, r, last, forward, weights, flux,
        size, 0 if forward is None else forward.shape[3], 0 if forward is None else forward.shape[2],
        n_chunks, 0 if s is None else s.shape[2], n_incoming, 0 if a is None else a.shape[-1], blocks,
        REVERSE=reverse, GATED=a is not None, HAS_INITIAL=initial is not None, FINAL=final,
        INCOMING=incoming is not None, FLUX=flux is not None, BLOCK=BLOCK, STAGES=NUM_STAGES, num_warps=NUM_WARPS,
    )  # fmt: skip
    return r, last, flux
