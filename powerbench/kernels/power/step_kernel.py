"""Decoding in Triton, the kernels: one step of every sequence and head, on a plain or a lazy state.

`step_kernel` reads each state once. Its programs are of two kinds. The first take one query each, and attend to the
window and the new tokens, none of which is in the state yet; where the window is not full they put the new tokens into
it, in slots that no program reads. They start first because they wait the longest. The others take some tiles of a
state's rows each, and leave partial sums of phi(q)^T S; where the state moves on they also write the tiles back, with
the tokens added. `combine_kernel` decays the sums over the state by the gates since, adds all up in a fixed order,
divides, and counts the window's tokens.

A program asks memory for a whole tile before it waits for anything, and makes phi meanwhile. What keeps memory busy is
that many programs stand beside each other, so that registers are what counts: a lazy state is moved on in small pieces,
a second loop over what the L2 still holds, because that seldom path would else take twice the registers of the common.

phi is a gather: the index tuple of every row, packed into one int32, picks the coordinates of q or k, in shared memory.
It costs 4 bytes a row of the L2's bandwidth, where the row itself has 2 e or 4 e bytes of memory's.
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
def features(b_x, b_rows, P: tl.constexpr):
    """phi [ROWS] of one token, float32: b_x float32 [HEAD]."""
    b_phi = tl.gather(b_x, index_of(b_rows, 0), 0)
    for i in tl.static_range(1, P):
        b_phi *= tl.gather(b_x, index_of(b_rows, i), 0)
    return b_phi


@triton.jit
def features_of_many(p_x, m_x, b_rows, P: tl.constexpr):
    """phi [N, ROWS] of the tokens at p_x [N], float32; 0 where m_x [N] is not set."""
    b_phi = tl.load(p_x[:, None] + index_of(b_rows, 0)[None, :], mask=m_x[:, None], other=0.0).to(tl.float32)
    for i in tl.static_range(1, P):
        b_phi *= tl.load(p_x[:, None] + index_of(b_rows, i)[None, :], mask=m_x[:, None], other=0.0).to(tl.float32)
    return b_phi


@triton.jit
def read_tile(
    b_num, b_den, b_s, b_z, b_rows, p_q, m_q, stride_qt, stride_qh,
    GROUP: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, W: tl.constexpr,
    NORMALIZE: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """The partial sums plus a tile of the state, b_s [ROWS, E] and b_z [ROWS].

    For one query they are [E] and a number, in float32; for more [MP, E] and [MP], products in dtype OP.
    """
    b_weight = row_weight(b_rows, P, W)
    if MP == 1:
        b_q = tl.load(p_q + tl.arange(0, HEAD)).to(tl.float32)
        b_phi = features(b_q, b_rows, P) * b_weight
        b_num += tl.sum(b_phi[:, None] * b_s.to(tl.float32), 0)
        if NORMALIZE:
            b_den += tl.sum(b_phi * b_z, 0)
    else:
        o_m = tl.arange(0, MP)
        b_phi = features_of_many(p_q + o_m // GROUP * stride_qt + o_m % GROUP * stride_qh, m_q, b_rows, P)
        b_phi *= b_weight[None, :]
        b_num = tl.dot(b_phi.to(OP), b_s.to(OP), b_num, input_precision="ieee")
        if NORMALIZE:
            b_den += tl.sum(b_phi * b_z[None, :], 1)
    return b_num, b_den


@triton.jit
def add_window(
    b_s, b_z, b_rows, p_wk, p_wv, p_wa, count, a_end, stride_wk, stride_wv, stride_wa,
    P: tl.constexpr, E: tl.constexpr, BC: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """The tile plus the tokens of the window, decayed to a_end: float32 [ROWS, E] and [ROWS]."""
    for j in tl.range(0, count, BC, num_stages=1):
        o_j = j + tl.arange(0, BC)
        m_j = o_j < count
        b_a = tl.load(p_wa + o_j * stride_wa, mask=m_j, other=0.0)
        b_w = tl.where(m_j, tl.exp(tl.where(m_j, a_end - b_a, 0.0)), 0.0)
        # rows are the last dimension: those of neighbours pick neighbouring coordinates
        b_phi = features_of_many(p_wk + o_j * stride_wk, m_j, b_rows, P) * b_w[:, None]  # [BC, ROWS]
        b_v = tl.load(p_wv + o_j[:, None] * stride_wv + tl.arange(0, E)[None, :], mask=m_j[:, None], other=0.0)
        b_s = tl.dot(tl.trans(b_phi).to(OP), b_v.to(OP), b_s, input_precision="ieee")
        b_z += tl.sum(b_phi, 0)
    return b_s, b_z


@triton.jit
def add_tokens(
    b_s, b_z, b_rows, p_k, p_v, b_g, stride_kt, stride_vt,
    T: tl.constexpr, TP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The tile plus the new tokens, decayed to the last of them: float32 [ROWS, E] and [ROWS]."""
    for t in tl.static_range(T):
        b_k = tl.load(p_k + t * stride_kt + tl.arange(0, HEAD)).to(tl.float32)
        b_phi = features(b_k, b_rows, P) * tl.exp(tl.sum(tl.where(tl.arange(0, TP) > t, b_g, 0.0), 0))
        b_s += b_phi[:, None] * tl.load(p_v + t * stride_vt + tl.arange(0, E)).to(tl.float32)[None, :]
        b_z += b_phi
    return b_s, b_z


@triton.jit
def attend_tokens(
    p_q, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t,
    stride_kt, stride_vt, stride_wk, stride_wv, stride_wa,
    TP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, LAZY: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Numerator [E] and denominator of the query of token t against the new tokens up to t and the window."""
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)
    b_q = tl.load(p_q + o_d).to(tl.float32)
    b_num = tl.zeros([E], tl.float32)
    den = 0.0
    for i in range(0, t + 1):
        b_k = tl.load(p_k + i * stride_kt + o_d).to(tl.float32)
        b_v = tl.load(p_v + i * stride_vt + o_e).to(tl.float32)
        between = tl.sum(tl.where((o_t > i) & (o_t <= t), b_g, 0.0), 0)
        weight = power(tl.sum(b_k * b_q, 0), P) * tl.exp(between)
        b_num += weight * b_v
        den += weight
    if LAZY:
        for j in tl.range(0, count, BT, num_stages=1):
            o_j = j + tl.arange(0, BT)
            m_j = o_j < count
            b_k = tl.load(p_wk + o_j[:, None] * stride_wk + o_d[None, :], mask=m_j[:, None], other=0.0)
            b_v = tl.load(p_wv + o_j[:, None] * stride_wv + o_e[None, :], mask=m_j[:, None], other=0.0)
            b_a = tl.load(p_wa + o_j * stride_wa, mask=m_j, other=0.0)
            b_w = power(tl.sum(b_k.to(tl.float32) * b_q[None, :], 1), P) * tl.exp(tl.where(m_j, a_t - b_a, 0.0))
            b_w = tl.where(m_j, b_w, 0.0)
            b_num += tl.sum(b_w[:, None] * b_v.to(tl.float32), 0)
            den += tl.sum(b_w, 0)
    return b_num, den


@triton.jit
def step_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, s_ptr, z_ptr, rows_ptr, wk_ptr, wv_ptr, wa_ptr, count_ptr, num_ptr, den_ptr, since_ptr,
    dim, tiles, splits, window,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_s, stride_z,
    HEADS: tl.constexpr, GROUP: tl.constexpr, T: tl.constexpr, TP: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, GATED: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, MIN: tl.constexpr, ROWS: tl.constexpr,
    PIECE: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, OP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One query against the tokens; or, in the later programs, `tiles` tiles of one state for M = T * GROUP queries."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    pid = tl.program_id(0)
    queries = tl.num_programs(0) // (splits + M) * M
    attends = pid < queries
    i_part = tl.where(attends, splits, (pid - queries) % splits)
    i_bh = tl.where(attends, pid // M, (pid - queries) // splits).to(tl.int64)  # offsets times strides are int64
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS
    p_q = q_ptr + i_b * stride_qb + i_h * GROUP * stride_qh
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh
    p_num = num_ptr + (i_bh * (splits + 1) + i_part) * M * E
    p_den = den_ptr
    if NORMALIZE:
        p_den += (i_bh * (splits + 1) + i_part) * M
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)
    count = 0
    p_wk, p_wv, p_wa = wk_ptr, wv_ptr, wa_ptr
    if LAZY:
        count = tl.load(count_ptr + i_b)
        p_wk += (i_b * window * HEADS + i_h) * HEAD  # windows are contiguous: [B, window, Hk, ...]
        p_wv += (i_b * window * HEADS + i_h) * E
        p_wa += i_b * window * HEADS + i_h
    p_g = g_ptr
    if GATED:
        p_g += i_b * stride_gb + i_h * stride_gh

    if attends:
        i_m = pid % M
        t = i_m // GROUP
        b_g, a_0 = gates(p_g, p_wa, count, stride_gt, HEADS, T, TP, GATED, LAZY, MIN)
        a_t = a_0 + tl.sum(tl.where(o_t <= t, b_g, 0.0), 0)
        p_query = p_q + t * stride_qt + i_m % GROUP * stride_qh
        b_own, den = attend_tokens(
            p_query, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t,
            stride_kt, stride_vt, HEADS * HEAD, HEADS * E, HEADS, TP, P, HEAD, E, LAZY, BT,
        )  # fmt: skip
        tl.store(p_num + i_m * E + o_e, b_own)
        tl.store(since_ptr + i_bh * M + i_m, tl.exp(a_t))
        if NORMALIZE:
            tl.store(p_den + i_m, den)
        if LAZY:
            if (count + T < window) & (i_m % GROUP == 0):
                slot = count + t
                tl.store(p_wk + slot * HEADS * HEAD + o_d, tl.load(p_k + t * stride_kt + o_d))
                tl.store(p_wv + slot * HEADS * E + o_e, tl.load(p_v + t * stride_vt + o_e))
                tl.store(p_wa + slot * HEADS, a_t)
    else:
        o_m = tl.arange(0, MP)
        m_q = o_m < M
        if MP == 1:
            b_num = tl.zeros([E], tl.float32)
            b_den = 0.0
        else:
            b_num = tl.zeros([MP, E], tl.float32)
            b_den = tl.zeros([MP], tl.float32)
        p_s = s_ptr + i_bh * stride_s
        p_z = z_ptr + i_bh * stride_z
        first = i_part * tiles * ROWS
        last = tl.minimum(first + tiles * ROWS, dim)
        for i in tl.range(first, last, ROWS, num_stages=1):
            o_row = i + tl.arange(0, ROWS)
            m_row = o_row < dim  # of rows beyond, phi is not 0, but S and z are read as 0
            p_tile = p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
            b_s = tl.load(p_tile, mask=m_row[:, None], other=0.0)
            b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
            b_z = tl.zeros([ROWS], tl.float32)
            if NORMALIZE or not LAZY:
                b_z = tl.load(p_z + o_row, mask=m_row, other=0.0)
            b_num, b_den = read_tile(
                b_num, b_den, b_s, b_z, b_rows, p_q, m_q, stride_qt, stride_qh, GROUP, MP, P, HEAD, W, NORMALIZE, OP
            )
            if not LAZY:
                b_g, _ = gates(p_g, p_wa, count, stride_gt, HEADS, T, TP, GATED, LAZY, MIN)
                decay = tl.exp(tl.sum(b_g, 0))
                b_new, b_z = add_tokens(
                    b_s.to(tl.float32) * decay,
                    b_z * decay,
                    b_rows,
                    p_k,
                    p_v,
                    b_g,
                    stride_kt,
                    stride_vt,
                    T,
                    TP,
                    P,
                    HEAD,
                    E,
                )
                tl.debug_barrier()  # several warps may hold a row of z: none may read it after another has written it
                tl.store(p_tile, b_new.to(s_ptr.dtype.element_ty), mask=m_row[:, None])
                tl.store(p_z + o_row, b_z, mask=m_row)
        if MP == 1:
            tl.store(p_num + o_e, b_num)
            if NORMALIZE:
                tl.store(p_den, b_den)
        else:
            tl.store(p_num + o_m[:, None] * E + o_e[None, :], b_num, mask=m_q[:, None])
            if NORMALIZE:
                tl.store(p_den + o_m, b_den, mask=m_q)
        if LAZY:
            if count + T >= window:  # seldom: in pieces, so that the common path is not short of registers for it
                b_g, a_0 = gates(p_g, p_wa, count, stride_gt, HEADS, T, TP, GATED, LAZY, MIN)
                a_end = a_0 + tl.sum(b_g, 0)
                for i in tl.range(first, last, PIECE, num_stages=1):
                    o_row = i + tl.arange(0, PIECE)
                    m_row = o_row < dim
                    p_tile = p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
                    b_s = tl.load(p_tile, mask=m_row[:, None], other=0.0).to(tl.float32) * tl.exp(a_end)
                    b_z = tl.load(p_z + o_row, mask=m_row, other=0.0) * tl.exp(a_end)
                    b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
                    b_s, b_z = add_window(
                        b_s, b_z, b_rows, p_wk, p_wv, p_wa, count, a_end, HEADS * HEAD, HEADS * E, HEADS, P, E, BC, OP
                    )
                    b_s, b_z = add_tokens(b_s, b_z, b_rows, p_k, p_v, b_g, stride_kt, stride_vt, T, TP, P, HEAD, E)
                    tl.debug_barrier()
                    tl.store(p_tile, b_s.to(s_ptr.dtype.element_ty), mask=m_row[:, None])
                    tl.store(p_z + o_row, b_z, mask=m_row)


@triton.jit
def gates(
    p_g, p_wa, count, stride_gt, stride_wa,
    T: tl.constexpr, TP: tl.constexpr, GATED: tl.constexpr, LAZY: tl.constexpr, MIN: tl.constexpr,
):  # fmt: skip
    """Log gates of the new tokens, float32 [TP], and those of the window summed up."""
    o_t = tl.arange(0, TP)
    b_g = tl.zeros([TP], tl.float32)
    a_0 = 0.0
    if GATED:
        b_g = tl.load(p_g + o_t * stride_gt, mask=o_t < T, other=0.0).to(tl.float32)
        b_g = tl.where(o_t < T, tl.maximum(b_g, MIN), 0.0)
    if LAZY:
        a_0 = tl.load(p_wa + (count - 1) * stride_wa, mask=count > 0, other=0.0)
    return b_g, a_0


@triton.jit
def combine_kernel(
    num_ptr, den_ptr, since_ptr, y_ptr, count_ptr, scale_p, splits, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, T: tl.constexpr, M: tl.constexpr, E: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, BP: tl.constexpr, EARLY: tl.constexpr,
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
    if EARLY:  # started beside the last programs of `step`: what those leave is there from here on
        tl.extra.cuda.gdc_wait()
    since = tl.load(since_ptr + pid)
    for i in tl.range(0, splits + 1, BP, num_stages=1):
        o_p = i + tl.arange(0, BP)
        m_p = o_p <= splits
        o_m = (i_bh * (splits + 1) + o_p) * M + i_m
        b_decay = tl.where(o_p < splits, since, 1.0)  # the last one is over the tokens
        b_part = tl.load(num_ptr + o_m[:, None] * E + o_e[None, :], mask=m_p[:, None], other=0.0)
        b_num += tl.sum(b_part * b_decay[:, None], 0)
        if NORMALIZE:
            den += tl.sum(tl.load(den_ptr + o_m, mask=m_p, other=0.0) * b_decay, 0)
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
