"""gates: cumulative log gates inside each chunk, the weights of its tokens in the state; and their way back.

Sums are float64, and go to memory as pairs of float32: in a long chunk under fast gates they reach thousands, where one
float32 resolves 1e-4, and what a weight takes is a difference of two of them. The kernels take it as
(high_i - high_j) + (low_i - low_j), whose error is relative to the difference. Those for Hopper, which are bfloat16,
read `high` alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.tiling import chunks

LOG_GATE_MIN = -100.0  # exp of it is 0 beside 1 in fp32; -inf, a hard reset, would turn differences of sums into nan
BLOCK = 1024


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "heads", "stride_b", "stride_t", "stride_h"])
def gates_kernel(
    g_ptr, a_ptr, w_ptr, seqlen, chunk, n_chunks, stride_b, stride_t, stride_h,
    heads, WEIGHTS: tl.constexpr, MIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of one batch entry and key/value head. Past the end of the sequence a stays what it was."""
    pid = tl.program_id(0)
    i_n = pid % n_chunks
    i_bh = pid // n_chunks
    p_g = g_ptr + (i_bh // heads).to(tl.int64) * stride_b + (i_bh % heads).to(tl.int64) * stride_h
    i_bh = i_bh.to(tl.int64)  # offsets times strides are int64
    base = (i_bh * n_chunks + i_n) * chunk
    p_high = a_ptr + base
    p_low = p_high + tl.num_programs(0).to(tl.int64) * chunk
    start = i_n * chunk
    total = tl.cast(0.0, tl.float64)
    for t in range(0, chunk, BLOCK):
        o_t = t + tl.arange(0, BLOCK)
        here = (o_t < chunk) & (start + o_t < seqlen)
        b_g = tl.load(p_g + (start + o_t).to(tl.int64) * stride_t, mask=here, other=0.0)
        b_g = tl.maximum(b_g.to(tl.float32), MIN).to(tl.float64)
        b_a = total + tl.cumsum(b_g, 0)
        b_high = b_a.to(tl.float32)
        tl.store(p_high + o_t, b_high, mask=o_t < chunk)
        tl.store(p_low + o_t, (b_a - b_high.to(tl.float64)).to(tl.float32), mask=o_t < chunk)
        total += tl.sum(b_g, 0)
    if WEIGHTS:
        tl.debug_barrier()  # the sums are read again by other threads
        for t in range(0, chunk, BLOCK):
            o_t = t + tl.arange(0, BLOCK)
            b_since = total - tl.load(p_high + o_t, mask=o_t < chunk, other=0.0).to(tl.float64)
            b_since -= tl.load(p_low + o_t, mask=o_t < chunk, other=0.0).to(tl.float64)
            tl.store(w_ptr + base + o_t, tl.exp(tl.minimum(b_since, 0.0).to(tl.float32)), mask=o_t < chunk)


def chunk_gates(log_g: Tensor, chunk_size: int, *, weights: bool) -> tuple[Tensor, Tensor | None]:
    """Sums a of log_g [B, T, Hk] from each chunk's start, and exp(A - a) if asked, A the sum over the whole chunk.

    a is float32 [2, B, Hk, N, C], pairs whose sum it is: rounded to float32, and the rest. The other is float32
    [B, Hk, N, C]. Gates below LOG_GATE_MIN count as LOG_GATE_MIN; past the end of the sequence they
    are 0.
    """
    B, T, Hk = log_g.shape
    C, N = chunks(T, chunk_size)
    a = torch.empty(2, B, Hk, N, C, dtype=torch.float32, device=log_g.device)
    w = torch.empty(B, Hk, N, C, dtype=torch.float32, device=log_g.device) if weights else None
    gates_kernel[(B * Hk * N,)](
        log_g, a, w, T, C, N, *log_g.stride(),
        heads=Hk, WEIGHTS=weights, MIN=LOG_GATE_MIN, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return a, w


@triton.jit
def gate_terms(qdq_ptr, kdk_ptr, o_row, m_t, group, P: tl.constexpr):
    """dG of the tokens at rows o_row of k . dk, and the sum of the squares of its terms: both float64 [BLOCK]."""
    b_k = tl.load(kdk_ptr + o_row, mask=m_t, other=0.0).to(tl.float64)
    b_x = -b_k
    b_m = b_k * b_k
    for i_g in range(0, group):
        b_q = tl.load(qdq_ptr + o_row * group + i_g, mask=m_t, other=0.0).to(tl.float64)
        b_x += b_q
        b_m += b_q * b_q
    return b_x / P, b_m


@triton.jit
def flux_into(flux_ptr, i_chunk, n_flux, BLOCK: tl.constexpr):
    """The inner product of the state that comes into a chunk with its gradient: float64."""
    total = tl.cast(0.0, tl.float64)
    for f in range(0, n_flux, BLOCK):
        o_f = f + tl.arange(0, BLOCK)
        b_f = tl.load(flux_ptr + i_chunk * n_flux + o_f, mask=o_f < n_flux, other=0.0)
        total += tl.sum(b_f.to(tl.float64), 0)
    return total


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "n_flux", "heads", "group", "stride_b", "stride_t", "stride_h"])
def gate_gradient_kernel(
    qdq_ptr, kdk_ptr, flux_ptr, last_ptr, g_ptr, dg_ptr, seqlen, chunk, n_chunks, n_flux, stride_b, stride_t, stride_h,
    heads, group, P: tl.constexpr, FLUX: tl.constexpr, LAST: tl.constexpr, INITIAL: tl.constexpr,
    MIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of one batch entry and key/value head, from its end to its start; nothing for gates below MIN."""
    pid = tl.program_id(0)
    i_n = pid % n_chunks
    i_bh = pid // n_chunks
    i_b = (i_bh // heads).to(tl.int64)  # offsets times strides are int64
    i_h = (i_bh % heads).to(tl.int64)
    i_bh = i_bh.to(tl.int64)
    later = tl.cast(0.0, tl.float64)
    first = tl.cast(0.0, tl.float64)
    if LAST:
        if i_n == n_chunks - 1:
            later += tl.load(last_ptr + i_bh).to(tl.float64)
    if FLUX:
        if i_n < n_chunks - 1:
            later += flux_into(flux_ptr, i_bh * n_chunks + i_n + 1, n_flux, BLOCK)
        if (i_n > 0) | INITIAL:
            first += flux_into(flux_ptr, i_bh * n_chunks + i_n, n_flux, BLOCK)
    start = i_n * chunk
    length = tl.minimum(chunk, seqlen - start)
    n_blocks = tl.cdiv(length, BLOCK)
    o_first = (i_b * seqlen + start) * heads + i_h  # int64
    gap = first - later
    mass = tl.cast(0.0, tl.float64)
    for block in range(0, n_blocks):
        o_t = block * BLOCK + tl.arange(0, BLOCK)
        b_x, b_m = gate_terms(qdq_ptr, kdk_ptr, o_first + o_t.to(tl.int64) * heads, o_t < length, group, P)
        gap -= tl.sum(b_x, 0)
        mass += tl.sum(b_m, 0)
    share = gap / tl.where(mass > 0.0, mass, 1.0)
    for block in range(0, n_blocks):
        o_t = (n_blocks - 1 - block) * BLOCK + tl.arange(0, BLOCK)
        m_t = o_t < length
        o_row = o_first + o_t.to(tl.int64) * heads
        b_x, b_m = gate_terms(qdq_ptr, kdk_ptr, o_row, m_t, group, P)
        b_x += b_m * share
        b_dg = tl.cumsum(b_x, 0, reverse=True) + later
        later += tl.sum(b_x, 0)
        p_g = g_ptr + i_b * stride_b + (start + o_t).to(tl.int64) * stride_t + i_h * stride_h
        b_dg = tl.where(tl.load(p_g, mask=m_t, other=0.0).to(tl.float32) >= MIN, b_dg, 0.0)
        tl.store(dg_ptr + o_row, b_dg.to(dg_ptr.dtype.element_ty), mask=m_t)


def gate_gradient(
    qdq: Tensor,
    kdk: Tensor,
    flux: Tensor | None,
    last: Tensor | None,
    log_g: Tensor,
    p: int,
    chunk_size: int,
    *,
    initial: bool,
) -> Tensor:
    """dlog_g [B, T, Hk] in log_g's dtype: the sum of dG over all tokens from each one to the end.

    With G the sum of log_g from the start of the sequence, dG = (q . dq over the query heads of a group - k . dk) / p,
    because every weight is exp(G_i - G_j) <q_i, k_j>^p. Sums end with the chunk: what lies behind it is how the loss
    depends on the scale of the state that leaves the chunk, an inner product that `scan` takes. Summed token by token
    it would be the small difference of large sums, with an error that grows with the length of the context. Summed in
    float64.

    The value at the chunk's first token is known too: the inner product of the state that comes in, or 0 where none
    does. By what the sum misses it there, the terms are corrected in proportion to their squares, as their rounding
    errors are (least squares): the error is then small at both ends of a chunk, and where few terms stand between a
    token and either of them.

    qdq float32 [B, T, H], kdk float32 [B, T, Hk]; flux float32 [B, Hk, N, blocks] from `scan`, None with one chunk and
    no initial state; last float32 [B, Hk] or None: the same inner product for the final state; `initial`: whether a
    state came into the first chunk, whose inner product is then in flux. log_g [B, T, Hk], any strides; gates below
    LOG_GATE_MIN get 0.
    """
    B, T, Hk = kdk.shape
    C, N = chunks(T, chunk_size)
    dlog_g = torch.empty(B, T, Hk, dtype=log_g.dtype, device=log_g.device)
    gate_gradient_kernel[(B * Hk * N,)](
        qdq, kdk, flux, last, log_g, dlog_g, T, C, N, 0 if flux is None else flux.shape[3], *log_g.stride(),
        heads=Hk, group=qdq.shape[2] // Hk, P=p, FLUX=flux is not None, LAST=last is not None,
        INITIAL=initial, MIN=LOG_GATE_MIN, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return dlog_g
