"""Decoding in Triton, the parts of the kernels: phi, gates, and what a tile or a query does with the tokens."""

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
    """phi [ROWS] of one token x [HEAD], float32; x as it was loaded, so that nothing waits for it before this."""
    b_phi = tl.gather(b_x, index_of(b_rows, 0), 0).to(tl.float32)
    for i in tl.static_range(1, P):
        b_phi *= tl.gather(b_x, index_of(b_rows, i), 0).to(tl.float32)
    return b_phi


@triton.jit
def features_at(p_x, b_rows, P: tl.constexpr):
    """phi [ROWS] of the token at p_x, float32: gathered from memory, without the barriers of shared memory."""
    b_phi = tl.load(p_x + index_of(b_rows, 0)).to(tl.float32)
    for i in tl.static_range(1, P):
        b_phi *= tl.load(p_x + index_of(b_rows, i)).to(tl.float32)
    return b_phi


@triton.jit
def features_of_many(p_x, m_x, b_rows, P: tl.constexpr):
    """phi [N, ROWS] of the tokens at p_x [N], float32; 0 where m_x [N] is not set."""
    b_phi = tl.load(p_x[:, None] + index_of(b_rows, 0)[None, :], mask=m_x[:, None], other=0.0).to(tl.float32)
    for i in tl.static_range(1, P):
        b_phi *= tl.load(p_x[:, None] + index_of(b_rows, i)[None, :], mask=m_x[:, None], other=0.0).to(tl.float32)
    return b_phi


@triton.jit
def first_tile(w, tiles, walkers):
    """The first tile of walker w, where `tiles` tiles are shared out evenly, in their order."""
    return (tl.cast(w, tl.int64) * tiles // walkers).to(tl.int32)


@triton.jit
def walker_of(g, tiles, walkers):
    """Who has tile g: w with first_tile(w) <= g < first_tile(w + 1)."""
    return ((tl.cast(g + 1, tl.int64) * walkers - 1) // tiles).to(tl.int32)


@triton.jit
def tokens_of(
    i_b, i_h, k_ptr, v_ptr, g_ptr, wk_ptr, wv_ptr, wa_ptr, window,
    stride_kb, stride_kh, stride_vb, stride_vh, stride_gb, stride_gh,
    heads, HEAD: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr, LAZY: tl.constexpr,
):  # fmt: skip
    """Where k, v and gates of one sequence and head begin: of its new tokens, and of its window.

    Made where they are used: made once for all, they would be kept in registers while a tile is read.
    """
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh
    p_g, p_wk, p_wv, p_wa = p_k, p_k, p_k, p_k  # where there are none nothing is read, but None cannot be returned
    if GATED:
        p_g = g_ptr + i_b * stride_gb + i_h * stride_gh
    if LAZY:
        p_wk = wk_ptr + (i_b * window * heads + i_h) * HEAD  # windows are contiguous: [B, window, Hk, ...]
        p_wv = wv_ptr + (i_b * window * heads + i_h) * E
        p_wa = wa_ptr + i_b * window * heads + i_h
    return p_k, p_v, p_g, p_wk, p_wv, p_wa


@triton.jit
def due(count_ptr, batch, window, T: tl.constexpr, BP: tl.constexpr):
    """Indices of the sequences, int32 [BP], and which of them are due: those whose window T tokens fill."""
    o_b = tl.arange(0, BP)
    counts = tl.load(count_ptr + o_b, mask=o_b < batch, other=0)
    return o_b, (o_b < batch) & (counts + T >= window)


@triton.jit
def due_from_the_end(rank, count_ptr, batch, window, T: tl.constexpr, BP: tl.constexpr):
    """The sequence that is due with `rank` due ones after it; -1 where there is none."""
    o_b, m_b = due(count_ptr, batch, window, T, BP)
    i_b = tl.max(tl.where(m_b, o_b, -1), 0)
    for _ in range(rank):
        i_b = tl.max(tl.where(m_b & (o_b < i_b), o_b, -1), 0)
    return i_b


@triton.jit
def due_after(i_b, count_ptr, batch, window, T: tl.constexpr, BP: tl.constexpr):
    """How many of the sequences after i_b are due."""
    o_b, m_b = due(count_ptr, batch, window, T, BP)
    return tl.sum((m_b & (o_b > i_b)).to(tl.int32), 0)


@triton.jit
def gates(
    p_g, p_wa, count, stride_gt, stride_wa,
    T: tl.constexpr, TP: tl.constexpr, GATED: tl.constexpr, LAZY: tl.constexpr, MIN: tl.constexpr,
):  # fmt: skip
    """Log gates of the new tokens, float32 [TP], and the sum of those of the window, float64 where there is one."""
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
def read_tile(
    b_num, b_den, b_s, b_z, b_rows, p_q, m_q, factor, stride_qt, stride_qh,
    GROUP: tl.constexpr, MP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, W: tl.constexpr,
    NORMALIZE: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """The partial sums plus a tile of the state, b_s [ROWS, E] and b_z [ROWS].

    For one query they are [E] and a number, in float32; for more [MP, E] and [MP], products in dtype OP.
    """
    b_weight = row_weight(b_rows, P, W) * power(factor, P)
    if MP == 1:
        b_q = tl.load(p_q + tl.arange(0, HEAD))
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
def sum_tokens(
    b_rows, p_k, p_v, p_wk, p_wv, p_wa, b_g, a_0, count, stride_kt, stride_vt, stride_wk, stride_wv, stride_wa,
    T: tl.constexpr, TP: tl.constexpr, P: tl.constexpr, PIECE: tl.constexpr, E: tl.constexpr, BT: tl.constexpr,
    OP: tl.constexpr,
):  # fmt: skip
    """phi(k) v^T and phi(k) over the window and the T new tokens, decayed to the last: float32 [PIECE, E] and [PIECE].

    The new tokens follow the window's as if they stood in it already. Nothing here needs the state.
    """
    o_t = tl.arange(0, TP)
    o_e = tl.arange(0, E)
    b_s = tl.zeros([PIECE, E], tl.float32)
    b_z = tl.zeros([BT, PIECE], tl.float32)
    for j in tl.range(0, count + T, BT, num_stages=1):
        o_j = j + tl.arange(0, BT)
        m_j = o_j < count + T
        o_new = o_j - count  # below 0: in the window
        p_x = tl.where(o_new < 0, p_wk + o_j * stride_wk, p_k + o_new * stride_kt)
        p_y = tl.where(o_new < 0, p_wv + o_j * stride_wv, p_v + o_new * stride_vt)
        b_a = tl.load(p_wa + o_j * stride_wa, mask=o_new < 0, other=0.0)
        b_since = tl.where(o_new < 0, a_0 - b_a, 0.0).to(tl.float32)
        b_since += tl.sum(tl.where(o_t[None, :] > o_new[:, None], b_g[None, :], 0.0), 1)
        # rows are the last dimension: those of neighbours pick neighbouring coordinates
        b_phi = features_of_many(p_x, m_j, b_rows, P) * tl.where(m_j, tl.exp(b_since), 0.0)[:, None]  # [BT, PIECE]
        b_v = tl.load(p_y[:, None] + o_e[None, :], mask=m_j[:, None], other=0.0)
        b_s = tl.dot(tl.trans(b_phi).to(OP), b_v.to(OP), b_s, input_precision="ieee")
        b_z += b_phi
    return b_s, tl.sum(b_z, 0)


@triton.jit
def add_tokens(
    b_s, b_z, b_rows, p_k, p_v, b_g, stride_kt, stride_vt,
    T: tl.constexpr, TP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """The tile plus the new tokens, decayed to the last of them: float32 [ROWS, E] and [ROWS]."""
    for t in tl.static_range(T):
        b_k = tl.load(p_k + t * stride_kt + tl.arange(0, HEAD))
        b_phi = features(b_k, b_rows, P) * tl.exp(tl.sum(tl.where(tl.arange(0, TP) > t, b_g, 0.0), 0))
        b_s += b_phi[:, None] * tl.load(p_v + t * stride_vt + tl.arange(0, E)).to(tl.float32)[None, :]
        b_z += b_phi
    return b_s, b_z


@triton.jit
def attend_tokens(
    p_q, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t, factor,
    stride_kt, stride_vt, stride_wk, stride_wv, stride_wa,
    TP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, LAZY: tl.constexpr, BT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Numerator [E] and denominator of the query of token t against the new tokens up to t and the window."""
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)
    b_q = tl.load(p_q + o_d).to(tl.float32) * factor
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
        for j in tl.range(0, count, BT, num_stages=STAGES):
            o_j = j + tl.arange(0, BT)
            m_j = o_j < count
            b_k = tl.load(p_wk + o_j[:, None] * stride_wk + o_d[None, :], mask=m_j[:, None], other=0.0)
            b_v = tl.load(p_wv + o_j[:, None] * stride_wv + o_e[None, :], mask=m_j[:, None], other=0.0)
            b_a = tl.load(p_wa + o_j * stride_wa, mask=m_j, other=0.0)
            b_decay = tl.exp(tl.where(m_j, a_t - b_a, 0.0).to(tl.float32))
            b_w = tl.where(m_j, power(tl.sum(b_k.to(tl.float32) * b_q[None, :], 1), P) * b_decay, 0.0)
            b_num += tl.sum(b_w[:, None] * b_v.to(tl.float32), 0)
            den += tl.sum(b_w, 0)
    return b_num, den
