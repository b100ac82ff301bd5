"""Decoding in Triton, the kernels: one step of every sequence and head, on a plain or a lazy state.

`step_kernel` reads each state once. The programs of a sequence and key/value head are of two kinds: the first ones take
some tiles of the state's rows each, and leave partial sums of phi(q)^T S; where the state moves on they also write the
tiles back, with the tokens added. The others take one query each, and attend to the window and the new tokens, none of
which is in the state yet; where the window is not full they put the new tokens into it, in slots that no program reads.
`combine_kernel` adds the partial sums in a fixed order, divides, and counts the window's tokens.

phi is a gather: the index tuple of every row, packed into one int32, picks the coordinates of q or k, which stay in the
L1 cache. It costs 4 bytes a row of the L2's bandwidth, where the row itself has 2 e or 4 e bytes of memory's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from powerbench.kernels.power.attend import power
from powerbench.kernels.power.expand import arrangements


@triton.jit
def index_of(b_rows, L: tl.constexpr):
    """Index L of the packed tuples."""
    return (b_rows >> (7 * L)) & 127


@triton.jit
def row_weight(b_rows, P: tl.constexpr, W: tl.constexpr):
    """Multiplicity of the rows, float32."""
    b_m = arrangements(
        index_of(b_rows, 0) // W, index_of(b_rows, 1) // W, index_of(b_rows, 2) // W, index_of(b_rows, 3) // W, P
    )
    return b_m.to(tl.float32)


@triton.jit
def features(p_x, mask, b_rows, P: tl.constexpr):
    """phi of the rows at p_x, float32, of the shape that p_x, mask and b_rows have together."""
    b_phi = tl.load(p_x + index_of(b_rows, 0), mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(1, P):
        b_phi *= tl.load(p_x + index_of(b_rows, i), mask=mask, other=0.0).to(tl.float32)
    return b_phi


@triton.jit
def read_tile(
    b_acc, b_den, b_s, b_z, b_rows, m_row, p_q, m_q,
    P: tl.constexpr, W: tl.constexpr, NORMALIZE: tl.constexpr, ONE: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """The partial sums plus a tile of the state: b_s [ROWS, E], b_z [ROWS].

    With ONE query they stay apart by rows, b_acc [ROWS, E] and b_den [ROWS], until the end; else they are products of
    phi [M, ROWS] and the tile, both in dtype OP.
    """
    b_weight = row_weight(b_rows, P, W)
    if ONE:
        b_phi = features(p_q, m_row, b_rows, P) * b_weight
        b_acc += b_phi[:, None] * b_s.to(tl.float32)
        if NORMALIZE:
            b_den += b_phi * b_z
    else:
        b_phi = features(p_q[:, None], m_q[:, None] & m_row[None, :], b_rows[None, :], P) * b_weight[None, :]
        b_acc = tl.dot(b_phi.to(OP), b_s.to(OP), b_acc, input_precision="ieee")
        if NORMALIZE:
            b_den += tl.sum(b_phi * b_z[None, :], 1)
    return b_acc, b_den


@triton.jit
def move_tile(
    b_s, b_z, b_rows, m_row, p_k, p_v, b_g, p_wk, p_wv, p_wa, count, a_end,
    stride_kt, stride_vt, stride_wk, stride_wv, stride_wa,
    T: tl.constexpr, TP: tl.constexpr, P: tl.constexpr, E: tl.constexpr, LAZY: tl.constexpr, BC: tl.constexpr,
    OP: tl.constexpr,
):  # fmt: skip
    """The tile after the tokens of the window and the new ones: float32 [ROWS, E] and [ROWS]."""
    o_e = tl.arange(0, E)
    b_new = b_s.to(tl.float32) * tl.exp(a_end)
    b_z *= tl.exp(a_end)
    if LAZY:
        for j in range(0, count, BC):
            o_j = j + tl.arange(0, BC)
            m_j = o_j < count
            b_a = tl.load(p_wa + o_j * stride_wa, mask=m_j, other=0.0)
            b_w = tl.where(m_j, tl.exp(tl.where(m_j, a_end - b_a, 0.0)), 0.0)
            # rows are the last dimension: those of neighbours pick neighbouring coordinates
            b_phi = features(
                p_wk + o_j[:, None] * stride_wk, m_j[:, None] & m_row[None, :], b_rows[None, :], P
            )  # [BC, ROWS]
            b_v = tl.load(p_wv + o_j[:, None] * stride_wv + o_e[None, :], mask=m_j[:, None], other=0.0)
            b_v = (b_v.to(tl.float32) * b_w[:, None]).to(OP)
            b_new = tl.dot(tl.trans(b_phi).to(OP), b_v, b_new, input_precision="ieee")
            b_z += tl.sum(b_phi * b_w[:, None], 0)
    for t in tl.static_range(T):
        weight = tl.exp(tl.sum(tl.where(tl.arange(0, TP) > t, b_g, 0.0), 0))
        b_phi = features(p_k + t * stride_kt, m_row, b_rows, P) * weight
        b_new += b_phi[:, None] * tl.load(p_v + t * stride_vt + o_e).to(tl.float32)[None, :]
        b_z += b_phi
    return b_new, b_z


@triton.jit
def attend_tokens(
    p_q, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t,
    stride_kt, stride_vt, stride_wk, stride_wv, stride_wa,
    TP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, LAZY: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Numerator [E] and denominator of the query of token t against the window and the new tokens up to t."""
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)
    b_q = tl.load(p_q + o_d).to(tl.float32)
    b_num = tl.zeros([E], tl.float32)
    den = 0.0
    if LAZY:
        for j in range(0, count, BC):
            o_j = j + tl.arange(0, BC)
            m_j = o_j < count
            b_k = tl.load(p_wk + o_j[:, None] * stride_wk + o_d[None, :], mask=m_j[:, None], other=0.0)
            b_v = tl.load(p_wv + o_j[:, None] * stride_wv + o_e[None, :], mask=m_j[:, None], other=0.0)
            b_a = tl.load(p_wa + o_j * stride_wa, mask=m_j, other=0.0)
            b_w = power(tl.sum(b_k.to(tl.float32) * b_q[None, :], 1), P) * tl.exp(tl.where(m_j, a_t - b_a, 0.0))
            b_w = tl.where(m_j, b_w, 0.0)
            b_num += tl.sum(b_w[:, None] * b_v.to(tl.float32), 0)
            den += tl.sum(b_w, 0)
    for i in range(0, t + 1):
        b_k = tl.load(p_k + i * stride_kt + o_d).to(tl.float32)
        b_v = tl.load(p_v + i * stride_vt + o_e).to(tl.float32)
        between = tl.sum(tl.where((o_t > i) & (o_t <= t), b_g, 0.0), 0)
        weight = power(tl.sum(b_k * b_q, 0), P) * tl.exp(between)
        b_num += weight * b_v
        den += weight
    return b_num, den


@triton.jit
def step_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, s_ptr, z_ptr, rows_ptr, wk_ptr, wv_ptr, wa_ptr, count_ptr, num_ptr, den_ptr,
    dim, tiles, splits, window,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_s, stride_z,
    HEADS: tl.constexpr, GROUP: tl.constexpr, T: tl.constexpr, TP: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, GATED: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, MIN: tl.constexpr, ROWS: tl.constexpr, BC: tl.constexpr,
    OP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`tiles` tiles of one state, for M = T * GROUP queries; or, beyond the splits, one query against the tokens."""
    pid = tl.program_id(0)
    i_bh = (pid // (splits + M)).to(tl.int64)  # offsets times strides are int64
    i_part = pid % (splits + M)
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)

    # log gates of the new tokens, those of the window summed up; and whether the state moves on
    b_g = tl.zeros([TP], tl.float32)
    if GATED:
        b_g = tl.load(g_ptr + i_b * stride_gb + o_t * stride_gt + i_h * stride_gh, mask=o_t < T, other=0.0)
        b_g = tl.where(o_t < T, tl.maximum(b_g.to(tl.float32), MIN), 0.0)
    count = 0
    due = 1
    a_0 = 0.0
    p_wk, p_wv, p_wa = wk_ptr, wv_ptr, wa_ptr
    if LAZY:
        count = tl.load(count_ptr + i_b)
        due = (count + T >= window).to(tl.int32)
        p_wk += (i_b * window * HEADS + i_h) * HEAD  # windows are contiguous: [B, window, Hk, ...]
        p_wv += (i_b * window * HEADS + i_h) * E
        p_wa += i_b * window * HEADS + i_h
        a_0 = tl.load(p_wa + (count - 1) * HEADS, mask=count > 0, other=0.0)

    if i_part >= splits:
        i_m = i_part - splits
        t = i_m // GROUP
        a_t = a_0 + tl.sum(tl.where(o_t <= t, b_g, 0.0), 0)
        p_query = q_ptr + i_b * stride_qb + t * stride_qt + (i_h * GROUP + i_m % GROUP) * stride_qh
        b_num, den = attend_tokens(
            p_query, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t,
            stride_kt, stride_vt, HEADS * HEAD, HEADS * E, HEADS, TP, P, HEAD, E, LAZY, BC,
        )  # fmt: skip
        i_sum = (i_bh * (splits + 1) + splits) * M + i_m
        tl.store(num_ptr + i_sum * E + o_e, b_num)
        if NORMALIZE:
            tl.store(den_ptr + i_sum, den)
        if LAZY:
            if (due == 0) & (i_m % GROUP == 0):
                o_d = tl.arange(0, HEAD)
                slot = count + t
                tl.store(p_wk + slot * HEADS * HEAD + o_d, tl.load(p_k + t * stride_kt + o_d))
                tl.store(p_wv + slot * HEADS * E + o_e, tl.load(p_v + t * stride_vt + o_e))
                tl.store(p_wa + slot * HEADS, a_t)
    else:
        ONE: tl.constexpr = MP == 1
        o_m = tl.arange(0, MP)
        b_at = a_0 + tl.sum(tl.where(o_t[None, :] <= (o_m // GROUP)[:, None], b_g[None, :], 0.0), 1)  # [MP]
        m_q = o_m < M
        if ONE:
            p_q = q_ptr + i_b * stride_qb + i_h * stride_qh
            b_acc = tl.zeros([ROWS, E], tl.float32)
            b_den = tl.zeros([ROWS], tl.float32)
        else:
            p_q = q_ptr + i_b * stride_qb + (o_m // GROUP) * stride_qt + (i_h * GROUP + o_m % GROUP) * stride_qh
            b_acc = tl.zeros([MP, E], tl.float32)
            b_den = tl.zeros([MP], tl.float32)
        p_s = s_ptr + i_bh * stride_s
        p_z = z_ptr + i_bh * stride_z
        first = i_part * tiles
        last = tl.minimum(first + tiles, tl.cdiv(dim, ROWS))
        if due:
            a_end = a_0 + tl.sum(b_g, 0)
            for i in tl.range(first, last, num_stages=STAGES):
                o_row = i * ROWS + tl.arange(0, ROWS)
                m_row = o_row < dim
                p_tile = p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
                b_s = tl.load(p_tile, mask=m_row[:, None], other=0.0)
                b_z = tl.load(p_z + o_row, mask=m_row, other=0.0)
                b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
                b_acc, b_den = read_tile(b_acc, b_den, b_s, b_z, b_rows, m_row, p_q, m_q, P, W, NORMALIZE, ONE, OP)
                b_new, b_z = move_tile(
                    b_s, b_z, b_rows, m_row, p_k, p_v, b_g, p_wk, p_wv, p_wa, count, a_end,
                    stride_kt, stride_vt, HEADS * HEAD, HEADS * E, HEADS, T, TP, P, E, LAZY, BC, OP,
                )  # fmt: skip
                tl.debug_barrier()  # several warps may hold a row of z: none may read it after another has written it
                tl.store(p_tile, b_new.to(s_ptr.dtype.element_ty), mask=m_row[:, None])
                tl.store(p_z + o_row, b_z, mask=m_row)
        else:
            for i in tl.range(first, last, num_stages=STAGES):
                o_row = i * ROWS + tl.arange(0, ROWS)
                m_row = o_row < dim
                p_tile = p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
                b_s = tl.load(p_tile, mask=m_row[:, None], other=0.0)
                b_z = tl.zeros([ROWS], tl.float32)
                if NORMALIZE:
                    b_z = tl.load(p_z + o_row, mask=m_row, other=0.0)
                b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
                b_acc, b_den = read_tile(b_acc, b_den, b_s, b_z, b_rows, m_row, p_q, m_q, P, W, NORMALIZE, ONE, OP)
        o_part = (i_bh * (splits + 1) + i_part) * M + o_m
        if ONE:
            b_since = tl.exp(tl.sum(b_at, 0))
            tl.store(num_ptr + (i_bh * (splits + 1) + i_part) * E + o_e, tl.sum(b_acc, 0) * b_since)
            if NORMALIZE:
                tl.store(den_ptr + i_bh * (splits + 1) + i_part, tl.sum(b_den, 0) * b_since)
        else:
            b_since = tl.exp(b_at)
            tl.store(num_ptr + o_part[:, None] * E + o_e[None, :], b_acc * b_since[:, None], mask=m_q[:, None])
            if NORMALIZE:
                tl.store(den_ptr + o_part, b_den * b_since, mask=m_q)


@triton.jit
def combine_kernel(
    num_ptr, den_ptr, y_ptr, count_ptr, scale_p, parts, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, T: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """y of one query: the sum of its partial sums; and, by one program a sequence, the count of its window."""
    pid = tl.program_id(0)
    i_bh = (pid // M).to(tl.int64)
    i_m = pid % M
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS
    o_e = tl.arange(0, E)
    b_num = tl.zeros([E], tl.float32)
    den = 0.0
    for i in range(0, parts, BP):
        o_p = i + tl.arange(0, BP)
        o_m = (i_bh * parts + o_p) * M + i_m
        b_num += tl.sum(tl.load(num_ptr + o_m[:, None] * E + o_e[None, :], mask=(o_p < parts)[:, None], other=0.0), 0)
        if NORMALIZE:
            den += tl.sum(tl.load(den_ptr + o_m, mask=o_p < parts, other=0.0), 0)
    if NORMALIZE:
        b_y = b_num / den
    else:
        b_y = b_num * scale_p
    o_y = (i_b * T + i_m // GROUP) * (HEADS * GROUP) + i_h * GROUP + i_m % GROUP
    tl.store(y_ptr + o_y * E + o_e, b_y.to(y_ptr.dtype.element_ty))
    if LAZY:
        if (i_h == 0) & (i_m == 0):
            count = tl.load(count_ptr + i_b) + T
            tl.store(count_ptr + i_b, tl.where(count >= window, 0, count))
