"""attention: numerator and row sum of power attention inside each chunk, causal, in the quadratic form."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.tiling import attention_tiles, chunks


@triton.jit
def power(x, P: tl.constexpr):
    """x^P by multiplications, P in 1 .. 4."""
    y = x
    if P >= 2:
        y = y * x
    if P == 3:
        y = y * x
    if P == 4:
        y = y * y
    return y


@triton.jit
def attend_keys(
    b_num, b_den, b_q, b_ai, a_ref, o_i, o_j, p_k, p_v, p_a, start, length, stride_kt, stride_vt,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr, NORMALIZE: tl.constexpr,
    DIAGONAL: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """(b_num, b_den) plus the keys o_j [BN]. Off the diagonal there is no mask, and gates count from a_ref."""
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = (start + o_j).to(tl.int64)
    p_kj = p_k + o_t[:, None] * stride_kt + o_d[None, :]
    p_vj = p_v + o_t[:, None] * stride_vt + o_e[None, :]
    if DIAGONAL:
        m_j = o_j < length
        b_k = tl.load(p_kj, mask=m_j[:, None], other=0.0).to(SCORES)  # [BN, HEAD]
        b_v = tl.load(p_vj, mask=m_j[:, None], other=0.0).to(OP)  # [BN, E]
    else:
        b_k = tl.load(p_kj).to(SCORES)
        b_v = tl.load(p_vj).to(OP)
    b_p = power(tl.dot(b_q, tl.trans(b_k), input_precision="ieee"), P)  # [BM, BN]
    if DIAGONAL:
        m_ij = o_i[:, None] >= o_j[None, :]
        if GATED:  # masked before the exponential, which could overflow above the diagonal
            b_aj = tl.load(p_a + o_j, mask=m_j, other=0.0)
            b_p *= tl.exp(tl.where(m_ij, b_ai[:, None] - b_aj[None, :], 0.0))
        b_p = tl.where(m_ij, b_p, 0.0)
    elif GATED:
        b_p *= tl.exp(a_ref - tl.load(p_a + o_j))[None, :]
    if NORMALIZE:
        b_den += tl.sum(b_p, 1)
    return tl.dot(b_p.to(OP), b_v, b_num, input_precision="ieee"), b_den


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, a_ptr, y_ptr, num_ptr, den_ptr, scale_p,
    seqlen, chunk, n_chunks, first, n_blocks,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SCORES: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """BM query rows of one chunk and head. Chunks before `first` have no past: their y is finished here."""
    pid = tl.program_id(0)
    i_m = n_blocks - 1 - pid % n_blocks  # the longest rows first
    i_n = pid // n_blocks % n_chunks
    i_bh = (pid // n_blocks // n_chunks).to(tl.int64)  # offsets times strides are int64
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS
    i_hk = i_h // GROUP
    start = i_n * chunk
    length = tl.minimum(chunk, seqlen - start)
    row_0 = i_m * BM
    if row_0 >= length:
        return

    o_i = row_0 + tl.arange(0, BM)
    o_j = tl.arange(0, BN)
    o_e = tl.arange(0, E)
    m_i = o_i < length
    p_q = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + o_i).to(tl.int64)[:, None] * stride_qt
    p_k = k_ptr + i_b * stride_kb + i_hk * stride_kh
    p_v = v_ptr + i_b * stride_vb + i_hk * stride_vh
    b_q = tl.load(p_q + tl.arange(0, HEAD)[None, :], mask=m_i[:, None], other=0.0).to(SCORES)  # [BM, HEAD]
    b_num = tl.zeros([BM, E], tl.float32)
    b_den = tl.zeros([BM], tl.float32)
    p_a, a_ref, b_ai = a_ptr, 0.0, b_den
    if GATED:
        p_a = a_ptr + ((i_b * (HEADS // GROUP) + i_hk) * n_chunks + i_n) * chunk
        a_ref = tl.load(p_a + row_0)
        b_ai = tl.load(p_a + tl.minimum(o_i, length - 1))  # [BM]

    # Before the block's first row exp(a_i - a_j) is exp(a_i - a_ref) * exp(a_ref - a_j), a_ref that row's: both are at
    # most 1, and the exponentials are of vectors instead of a [BM, BN] tile.
    for j in range(0, row_0, BN):
        b_num, b_den = attend_keys(
            b_num, b_den, b_q, b_ai, a_ref, o_i, j + o_j, p_k, p_v, p_a, start, length, stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, False, SCORES, OP,
        )  # fmt: skip
    if GATED:
        b_decay = tl.exp(b_ai - a_ref)
        b_num *= b_decay[:, None]
        b_den *= b_decay
    for j in range(row_0, tl.minimum(row_0 + BM, length), BN):
        b_num, b_den = attend_keys(
            b_num, b_den, b_q, b_ai, a_ref, o_i, j + o_j, p_k, p_v, p_a, start, length, stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, True, SCORES, OP,
        )  # fmt: skip

    b_num *= scale_p
    b_den *= scale_p
    o_row = (i_b * seqlen + start + o_i) * HEADS + i_h  # int64 [BM]: rows of y, num and den
    o_out = o_row[:, None] * E + o_e[None, :]
    if i_n < first:
        if NORMALIZE:
            b_num = b_num / tl.where(m_i, b_den, 1.0)[:, None]
        tl.store(y_ptr + o_out, b_num.to(y_ptr.dtype.element_ty), mask=m_i[:, None])
    else:
        tl.store(num_ptr + o_out, b_num, mask=m_i[:, None])
        if NORMALIZE:
            tl.store(den_ptr + o_row, b_den, mask=m_i)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor | None,
    y: Tensor,
    *,
    p: int,
    chunk_size: int,
    scale: float,
    normalize: bool,
    first: int,
    scores: tl.dtype,
    operand: tl.dtype,
) -> tuple[Tensor, Tensor]:
    """Attention inside every chunk; writes y of the chunks before `first`, and returns (num, den) for the others.

    q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] with contiguous last dimension; a float32 [B, Hk, N, C], the
    cumulative log gates inside each chunk, or None; y [B, T, H, e] contiguous. num is float32 [B, T, H, e] and den
    float32 [B, T, H], both undefined for the chunks before `first`, and empty where nothing is to be written.
    q k^T is multiplied in dtype `scores`, the weights times v in `operand`.
    """
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    tiles = attention_tiles(d, e, C, q.element_size())
    blocks = triton.cdiv(C, tiles.tokens)
    num = torch.empty((B, T, H, e) if first < N else 0, dtype=torch.float32, device=q.device)
    den = torch.empty((B, T, H) if first < N and normalize else 0, dtype=torch.float32, device=q.device)
    attention_kernel[(blocks * N * B * H,)](
        q, k, v, a, y, num, den, scale**p,
        T, C, N, first, blocks,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        HEADS=H, GROUP=H // Hk, P=p, HEAD=d, E=e, GATED=a is not None, NORMALIZE=normalize,
        BM=tiles.tokens, BN=tiles.rows, SCORES=scores, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return num, den
