"""query_gradient: dq of every row, from the state that came into its chunk and from the keys of the chunk before it.

With r_i = 1 / den_i, 0 where den_i is 0 (scale^p where the output is not normalised) and delta_i = dy_i . y_i (else 0):

    dq_i = p r_i sum_{j <= i} exp(a_i - a_j) s_ij^{p-1} (dy_i . v_j - delta_i) k_j                   keys of the chunk
         + p r_i exp(a_i) (1/p grad_q (phi(q_i)^T R dy_i) - delta_i phi_{p-1}(q_i)^T Z)              everything before

Beside dq it writes what the other launches of the backward pass want of the queries: delta, the weights with which the
queries enter the gradient of the state, and q . dq for the gradient of the gates. The latter is summed over the keys
before ds is rounded: what a pair adds to q . dq and to k . dk is the same number and cancels in the gates between.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power import query_gradient_hopper
from powerbench.kernels.power.attend import brick_counts_on, inverse, power, since
from powerbench.kernels.power.contract import contract, contract_gradient
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import brick, chunks, query_gradient_tiles, state_rows


@triton.jit
def gradient_of_queries(
    b_dq, b_qdq, b_q, b_dy, b_delta, b_ai, b_li, a_ref, l_ref, factor, o_i, o_j, p_k, p_v, p_a, p_l, length,
    stride_kt, stride_vt,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr, NORMALIZE: tl.constexpr,
    DIAGONAL: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """(b_dq, b_qdq) plus the keys o_j [BN], without p r_i. Off the diagonal no mask, and gates count from a_ref."""
    p_kj = p_k + o_j.to(tl.int64)[:, None] * stride_kt + tl.arange(0, HEAD)[None, :]
    p_vj = p_v + o_j.to(tl.int64)[:, None] * stride_vt + tl.arange(0, E)[None, :]
    if DIAGONAL:
        m_j = o_j < length
        b_k = tl.load(p_kj, mask=m_j[:, None], other=0.0)  # [BN, HEAD]
        b_v = tl.load(p_vj, mask=m_j[:, None], other=0.0)  # [BN, E]
    else:
        b_k = tl.load(p_kj)
        b_v = tl.load(p_vj)
    b_ds = tl.dot(b_dy, tl.trans(b_v.to(SCORES)), input_precision="ieee")  # [BM, BN]
    if NORMALIZE:
        b_ds -= b_delta[:, None]
    if P >= 2 or GATED:
        b_s = tl.dot(b_q, tl.trans(b_k.to(SCORES)), input_precision="ieee")  # [BM, BN]
        b_ds *= power(b_s * factor, P - 1)
    if DIAGONAL:
        m_ij = o_i[:, None] >= o_j[None, :]
        if GATED:  # masked before the exponential, which could overflow above the diagonal
            b_aj = tl.load(p_a + o_j, mask=m_j, other=0.0)
            b_lj = tl.load(p_l + o_j, mask=m_j, other=0.0)
            b_since = since(
                b_ai[:, None], b_li[:, None], b_aj[None, :], b_lj[None, :], a_ref, l_ref, SCORES == tl.float32
            )  # fmt: skip
            b_ds *= tl.exp(tl.where(m_ij, b_since, 0.0))
        b_ds = tl.where(m_ij, b_ds, 0.0)
    elif GATED:
        b_ds *= tl.exp((a_ref - tl.load(p_a + o_j)) + (l_ref - tl.load(p_l + o_j)))[None, :]
    if GATED:
        b_qdq += tl.sum(b_ds * b_s, 1)
    return tl.dot(b_ds.to(OP), b_k.to(OP), b_dq, input_precision="ieee"), b_qdq


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "first", "n_blocks", "heads", "group"])
def query_gradient_kernel(
    dy_ptr, q_ptr, k_ptr, v_ptr, y_ptr, den_ptr, a_ptr, r_ptr, counts_z_ptr,
    dq_ptr, delta_ptr, w_ptr, zw_ptr, qdq_ptr, scale_p, factor,
    seqlen, chunk, n_chunks, first, n_blocks, elements, z_start, n_prefixes,
    stride_dyb, stride_dyt, stride_dyh, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh, stride_yb, stride_yt, stride_yh,
    heads, group, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, STATE: tl.constexpr, WEIGHTS: tl.constexpr,
    FIBRES_Z: tl.constexpr, COLS_Z: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """BM query rows of one chunk and head. No state comes into the chunks before `first`."""
    pid = tl.program_id(0)
    i_m = n_blocks - 1 - pid % n_blocks  # the longest rows first
    i_g = pid // n_blocks % group  # then the heads of a group: neighbours read the same state and keys
    i_n = pid // n_blocks // group % n_chunks
    i_bhk = pid // n_blocks // group // n_chunks
    i_b = (i_bhk // (heads // group)).to(tl.int64)  # offsets times strides are int64
    i_hk = (i_bhk % (heads // group)).to(tl.int64)
    i_bhk = i_bhk.to(tl.int64)
    i_h = i_hk * group + i_g
    start = (i_n * chunk).to(tl.int64)
    length = tl.minimum(chunk, seqlen - i_n * chunk)
    row_0 = i_m * BM
    o_i = row_0 + tl.arange(0, BM)
    o_w = ((i_b * heads + i_h) * n_chunks + i_n) * chunk + o_i  # int64 [BM]: the weights, [B, H, N, C]
    if row_0 >= length:
        if WEIGHTS:  # past the end of the sequence they must be numbers
            tl.store(w_ptr + o_w, tl.zeros([BM], tl.float32), mask=o_i < chunk)
            tl.store(zw_ptr + o_w, tl.zeros([BM], tl.float32), mask=o_i < chunk)
        return

    o_j = tl.arange(0, BN)
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    m_i = o_i < length
    p_q = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + o_i) * stride_qt  # [BM]
    p_dy = dy_ptr + i_b * stride_dyb + i_h * stride_dyh + (start + o_i) * stride_dyt
    p_k = k_ptr + i_b * stride_kb + i_hk * stride_kh + start * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_hk * stride_vh + start * stride_vt
    o_row = (i_b * seqlen + start + o_i) * heads + i_h  # int64 [BM]: rows of dq, and den, delta, q . dq
    b_dy = tl.load(p_dy[:, None] + o_e[None, :], mask=m_i[:, None], other=0.0)  # [BM, E]
    b_delta = tl.zeros([BM], tl.float32)
    b_r = b_delta + scale_p
    if NORMALIZE:
        p_y = y_ptr + i_b * stride_yb + i_h * stride_yh + (start + o_i) * stride_yt
        b_y = tl.load(p_y[:, None] + o_e[None, :], mask=m_i[:, None], other=0.0)
        b_delta = tl.sum(b_dy.to(tl.float32) * b_y.to(tl.float32), 1)
        tl.store(delta_ptr + o_row, b_delta, mask=m_i)
        b_r = inverse(tl.load(den_ptr + o_row, mask=m_i, other=1.0))
    p_a, a_ref, b_ai = a_ptr, 0.0, tl.zeros([BM], tl.float32)
    p_l, l_ref, b_li = a_ptr, 0.0, b_ai
    if GATED:
        p_a = a_ptr + (i_bhk * n_chunks + i_n) * chunk
        p_l = p_a + (tl.num_programs(0) // n_blocks // group).to(tl.int64) * chunk  # as in attend
        a_ref = tl.load(p_a + row_0)
        l_ref = tl.load(p_l + row_0)
        o_last = tl.minimum(o_i, length - 1)
        b_ai = tl.load(p_a + o_last)  # [BM]
        b_li = tl.load(p_l + o_last)
    if WEIGHTS:
        b_w = tl.where(m_i, b_r, 0.0) * power(factor, P)
        if GATED:
            b_w *= tl.exp(b_ai) * (1 + b_li)
        tl.store(w_ptr + o_w, b_w, mask=o_i < chunk)
        tl.store(zw_ptr + o_w, -b_delta * b_w, mask=o_i < chunk)

    # Scores are scaled before they are raised to p - 1, and so is phi; once more at the end.
    before = power(factor, P - 1)
    b_r *= factor
    b_dq = tl.zeros([BM, HEAD], tl.float32)
    b_qdq = tl.zeros([BM], tl.float32)
    if STATE:
        has_state = (i_n >= first).to(tl.int32)
        p_r = r_ptr + (i_bhk * (n_chunks - first) + tl.maximum(i_n - first, 0)) * elements
        if NORMALIZE:
            b_dq = contract(
                b_dq,
                p_q,
                m_i,
                p_r + z_start,
                counts_z_ptr,
                has_state,
                P - 1,
                HEAD,
                HEAD,
                W,
                FIBRES_Z,
                COLS_Z,
                OP,
                before,
            )
            b_dq *= -b_delta[:, None]
        b_dq = contract_gradient(b_dq, p_q, m_i, b_dy, p_r, n_prefixes, has_state, P, HEAD, E, W, OP, before)
        if GATED:  # up to the block's first row; from there on with the keys, below
            b_dq *= tl.exp(a_ref) * (1 + l_ref)
            b_x = tl.load(p_q[:, None] + o_d[None, :], mask=m_i[:, None], other=0.0)
            b_qdq = tl.sum(b_dq * b_x.to(tl.float32), 1)

    # Before the block's first row exp(a_i - a_j) is exp(a_i - a_ref) * exp(a_ref - a_j), as in attend.
    b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m_i[:, None], other=0.0).to(SCORES)  # [BM, HEAD]
    b_dy = b_dy.to(SCORES)
    for j in range(0, row_0, BN):
        b_dq, b_qdq = gradient_of_queries(
            b_dq, b_qdq, b_q, b_dy, b_delta, b_ai, b_li, a_ref, l_ref, factor, o_i, j + o_j, p_k, p_v, p_a, p_l, length,
            stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, False, SCORES, OP,
        )  # fmt: skip
    if GATED:
        b_decay = tl.exp((b_ai - a_ref) + (b_li - l_ref))
        b_dq *= b_decay[:, None]
        b_qdq *= b_decay
    for j in range(row_0, tl.minimum(row_0 + BM, length), BN):
        b_dq, b_qdq = gradient_of_queries(
            b_dq, b_qdq, b_q, b_dy, b_delta, b_ai, b_li, a_ref, l_ref, factor, o_i, j + o_j, p_k, p_v, p_a, p_l, length,
            stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, True, SCORES, OP,
        )  # fmt: skip
    b_dq *= (P * b_r)[:, None]
    if GATED:
        tl.store(qdq_ptr + o_row, b_qdq * P * b_r, mask=m_i)
    tl.store(dq_ptr + o_row[:, None] * HEAD + o_d[None, :], b_dq.to(dq_ptr.dtype.element_ty), mask=m_i[:, None])


class QueryGradient(NamedTuple):
    """What query_gradient writes."""

    dq: Tensor  # [B, T, H, d] in q's dtype
    delta: Tensor | None  # float32 [B, T, H], dy . y; None where the output is not normalised
    w: Tensor | None  # float32 [B, H, N, C], r exp(a): the weights of the queries in the gradient of S
    z_w: Tensor | None  # float32 [B, H, N, C], -delta r exp(a): in that of Z
    qdq: Tensor | None  # float32 [B, T, H], q . dq before dq is rounded; None without gates


def query_gradient(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    den: Tensor | None,
    a: Tensor | None,
    r: Tensor | None,
    sizes: StateSizes,
    *,
    p: int,
    chunk_size: int,
    d_tile: int,
    scale: float,
    normalize: bool,
    first: int,
    weights: bool,
    scores: tl.dtype,
    operand: tl.dtype,
) -> QueryGradient:
    """dq, and what the later launches read of the queries.

    dy and y [B, T, H, e], q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in one dtype, last dimension contiguous; den
    float32 [B, T, H] if `normalize`; a float32 [2, B, Hk, N, C] or None; r [B, Hk, N - first, elements] in the layout
    `sizes` or None, as in `attend`. w and z_w are written if `weights`; past the end of the sequence they are 0.
    """
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)

    def written(wanted: bool, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=q.device) if wanted else None

    gated = a is not None
    out = QueryGradient(
        torch.empty(B, T, H, d, dtype=q.dtype, device=q.device), written(normalize, B, T, H),
        written(weights, B, H, N, C), written(weights, B, H, N, C), written(gated, B, T, H),
    )  # fmt: skip
    if query_gradient_hopper.serves(q.dtype, q.device, d, e, p, with_state=r is not None, with_z=normalize):
        query_gradient_hopper.query_gradient_hopper(
            dy, q, k, v, y, den, a, r, sizes, out,
            p=p, chunk_size=C, d_tile=d_tile, scale=scale, normalize=normalize, first=first,
        )  # fmt: skip
        return out
    tiles = query_gradient_tiles(d, e, C, q.element_size())
    rows = state_rows(q.element_size())
    p_z = max(p - 1, 1)
    shape_z, counts_z = brick(d, p_z, d_tile, rows), brick_counts_on(q.device, d, p_z, d_tile, rows)
    blocks = triton.cdiv(C, tiles.tokens)
    factor, rest = split_scale(scale, p)
    query_gradient_kernel[(blocks * N * B * H,)](
        dy, q, k, v, y, den, a, r, counts_z, *out, rest**p, factor,
        T, C, N, first, blocks, sizes.elements, sizes.z_start, tspow_dim(d, p - 1, d_tile) if p > 1 else 1,
        *dy.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3],
        heads=H, group=H // Hk, P=p, HEAD=d, E=e, W=d_tile, GATED=gated, NORMALIZE=normalize, STATE=r is not None,
        WEIGHTS=weights, FIBRES_Z=shape_z.fibres, COLS_Z=shape_z.columns,
        BM=tiles.tokens, BN=tiles.rows, SCORES=scores, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return out
