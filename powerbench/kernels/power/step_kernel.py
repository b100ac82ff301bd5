"""Decoding in Triton, the kernels: one step of every sequence and head, on a plain or a lazy state.

A plain bfloat16 state has a kernel of its own (`walk_kernel`) in place of the first, wherever that can serve.

`step_kernel` reads each state once. The programs of a sequence and key/value head are of two kinds. The first take one
query each, and attend to the window and the new tokens, none of which is in the state yet; where the window is not full
they put the new tokens into it, in slots that no program reads. The others take some tiles of the state's rows each and
leave partial sums of phi(q)^T S; where the state moves on they also write the tiles back, with the tokens added.

The fold of a tile is one long chain, and a step would wait for those that begin late. So the first programs, FRONT *
heads * splits of them, take the places of others: of those of the last FRONT sequences that are due, found from the
counts. Programs whose place is taken drop what they have read, which may be half moved on; they need the counts only
where they are due.

`combine_kernel` decays the sums over the state by the gates since, adds all up in a fixed order, divides, and counts
the window's tokens.

A program asks memory for a whole tile before it waits for anything, and makes phi meanwhile. What keeps memory busy is
that many programs stand beside each other, so that registers are what counts: a lazy state is moved on in small pieces,
a second loop over what the L2 still holds, because that seldom path would else take twice the registers of the common.

phi is a gather: the index tuple of every row, packed into one int32, picks the coordinates of q or k, in shared memory.
It costs 4 bytes a row of the L2's bandwidth, where the row itself has 2 e or 4 e bytes of memory's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from powerbench.kernels.power.attend import SMALLEST
from powerbench.kernels.power.step_parts import (
    add_tokens,
    attend_tokens,
    due_after,
    due_from_the_end,
    gates,
    read_tile,
    sum_tokens,
    tokens_of,
    walker_of,
)


@triton.jit(do_not_specialize=["batch", "heads"])
def step_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, s_ptr, z_ptr, rows_ptr, wk_ptr, wv_ptr, wa_ptr, count_ptr, num_ptr, den_ptr, since_ptr,
    batch, dim, tiles, splits, window, factor,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_gb, stride_gt, stride_gh, stride_s, stride_z,
    heads, GROUP: tl.constexpr, T: tl.constexpr, TP: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, GATED: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, MIN: tl.constexpr, ROWS: tl.constexpr, PIECE: tl.constexpr,
    FOLD: tl.constexpr, BT: tl.constexpr, STAGES: tl.constexpr, OP: tl.constexpr, FRONT: tl.constexpr,
    BP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One query against the tokens; or, in the later programs, `tiles` tiles of one state for M = T * GROUP queries."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    pid = tl.program_id(0)
    front = False
    if FRONT > 0:
        ahead = FRONT * heads * splits
        front = pid < ahead
        if front:
            i_due = due_from_the_end(pid // (heads * splits), count_ptr, batch, window, T, BP)
            if i_due < 0:
                return
            pid = (i_due * heads + pid // splits % heads) * (M + splits) + M + pid % splits
        else:
            pid -= ahead
        pid = tl.max(tl.zeros([32], tl.int32) + pid, 0)  # of 32 equal ones: in a register that a warp shares
    i_bh = pid // (M + splits)
    i_part = pid % (M + splits)
    i_b = (i_bh // heads).to(tl.int64)  # offsets times strides are int64
    i_h = (i_bh % heads).to(tl.int64)
    i_bh = i_bh.to(tl.int64)
    p_q = q_ptr + i_b * stride_qb + i_h * GROUP * stride_qh
    i_sum = i_bh * (splits + 1) * M  # partial sums [splits + 1, M]: those over the tokens come first
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    o_t = tl.arange(0, TP)

    if i_part < M:
        t = i_part // GROUP
        count = 0
        if LAZY:
            count = tl.load(count_ptr + i_b)
        p_k, p_v, p_g, p_wk, p_wv, p_wa = tokens_of(
            i_b, i_h, k_ptr, v_ptr, g_ptr, wk_ptr, wv_ptr, wa_ptr, window,
            stride_kb, stride_kh, stride_vb, stride_vh, stride_gb, stride_gh, heads, HEAD, E, GATED, LAZY,
        )  # fmt: skip
        b_g, a_0 = gates(p_g, p_wa, count, stride_gt, heads, T, TP, GATED, LAZY, MIN)
        a_t = a_0 + tl.sum(tl.where(o_t <= t, b_g, 0.0).to(tl.float64), 0)
        p_query = p_q + t * stride_qt + i_part % GROUP * stride_qh
        b_own, den = attend_tokens(
            p_query, p_k, p_v, b_g, t, p_wk, p_wv, p_wa, count, a_t, factor,
            stride_kt, stride_vt, heads * HEAD, heads * E, heads, TP, P, HEAD, E, LAZY, BT, STAGES,
        )  # fmt: skip
        tl.store(num_ptr + (i_sum + i_part) * E + o_e, b_own)
        tl.store(since_ptr + i_bh * M + i_part, tl.exp(a_t.to(tl.float32)))
        if NORMALIZE:
            tl.store(den_ptr + i_sum + i_part, den)
        if LAZY:
            if (count + T < window) & (i_part % GROUP == 0):
                slot = count + t
                tl.store(p_wk + slot * heads * HEAD + o_d, tl.load(p_k + t * stride_kt + o_d))
                tl.store(p_wv + slot * heads * E + o_e, tl.load(p_v + t * stride_vt + o_e))
                tl.store(p_wa + slot * heads, a_t)
    else:
        o_m = tl.arange(0, MP)
        m_q = o_m < M
        if MP == 1:
            b_num = tl.zeros([E], tl.float32)
            b_den = 0.0
        else:
            b_num = tl.zeros([MP, E], tl.float32)
            b_den = tl.zeros([MP], tl.float32)
        count = 0
        p_s = s_ptr + i_bh * stride_s
        p_z = z_ptr + i_bh * stride_z
        first = (i_part - M) * tiles * ROWS
        last = tl.minimum(first + tiles * ROWS, dim)
        for i in tl.range(first, last, ROWS, num_stages=1):
            o_row = i + tl.arange(0, ROWS)
            m_row = tl.arange(0, ROWS) < dim - i  # of rows beyond, phi is not 0, but S and z are read as 0
            p_tile = p_s + tl.cast(i, tl.int64) * E + (tl.arange(0, ROWS)[:, None] * E + o_e[None, :])
            # a lazy state is read once a step, all but what folds: it need not push tokens and indices out of the L2
            b_s = tl.load(p_tile, mask=m_row[:, None], other=0.0, eviction_policy="evict_first" if LAZY else "")
            b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
            b_z = tl.zeros([ROWS], tl.float32)
            if NORMALIZE or not LAZY:
                b_z = tl.load(p_z + o_row, mask=m_row, other=0.0)
            if LAZY:  # for after the loop; volatile, or it would be moved, and waited for, before the tile is asked for
                count = tl.load(count_ptr + i_b, volatile=True)
            b_num, b_den = read_tile(
                b_num, b_den, b_s, b_z, b_rows, p_q, m_q, factor, stride_qt, stride_qh,
                GROUP, MP, P, HEAD, W, NORMALIZE, OP,
            )  # fmt: skip
            if not LAZY:
                p_k, p_v, p_g, p_wk, p_wv, p_wa = tokens_of(
                    i_b, i_h, k_ptr, v_ptr, g_ptr, wk_ptr, wv_ptr, wa_ptr, window,
                    stride_kb, stride_kh, stride_vb, stride_vh, stride_gb, stride_gh, heads, HEAD, E, GATED, LAZY,
                )  # fmt: skip
                b_g, _ = gates(p_g, p_wa, count, stride_gt, heads, T, TP, GATED, LAZY, MIN)
                b_s = b_s.to(tl.float32) * tl.exp(tl.sum(b_g, 0))
                b_z *= tl.exp(tl.sum(b_g, 0))
                b_s, b_z = add_tokens(b_s, b_z, b_rows, p_k, p_v, b_g, stride_kt, stride_vt, T, TP, P, HEAD, E)
                tl.debug_barrier()  # several warps may hold a row of z: none may read it after another has written it
                tl.store(p_tile, b_s.to(s_ptr.dtype.element_ty), mask=m_row[:, None])
                tl.store(p_z + o_row, b_z, mask=m_row)
        if FRONT > 0:
            if (not front) & (count + T >= window):  # one of the first programs may be moving this tile on already
                if due_after(i_b, count_ptr, batch, window, T, BP) < FRONT:
                    return
        i_sum += (i_part - M + 1) * M
        if MP == 1:
            tl.store(num_ptr + i_sum * E + o_e, b_num)
            if NORMALIZE:
                tl.store(den_ptr + i_sum, b_den)
        else:
            tl.store(num_ptr + (i_sum + o_m)[:, None] * E + o_e[None, :], b_num, mask=m_q[:, None])
            if NORMALIZE:
                tl.store(den_ptr + i_sum + o_m, b_den, mask=m_q)
        if LAZY:
            if count + T >= window:  # seldom: in pieces, so that the common path is not short of registers for it
                p_k, p_v, p_g, p_wk, p_wv, p_wa = tokens_of(
                    i_b, i_h, k_ptr, v_ptr, g_ptr, wk_ptr, wv_ptr, wa_ptr, window,
                    stride_kb, stride_kh, stride_vb, stride_vh, stride_gb, stride_gh, heads, HEAD, E, GATED, LAZY,
                )  # fmt: skip
                b_g, a_0 = gates(p_g, p_wa, count, stride_gt, heads, T, TP, GATED, LAZY, MIN)
                decay = tl.exp((a_0 + tl.sum(b_g, 0)).to(tl.float32))
                for i in tl.range(first, last, PIECE, num_stages=1):
                    o_row = i + tl.arange(0, PIECE)
                    m_row = tl.arange(0, PIECE) < dim - i
                    p_piece = p_s + tl.cast(i, tl.int64) * E + (tl.arange(0, PIECE)[:, None] * E + o_e[None, :])
                    b_rows = tl.load(rows_ptr + o_row, mask=m_row, other=0)
                    b_s, b_z = sum_tokens(
                        b_rows, p_k, p_v, p_wk, p_wv, p_wa, b_g, a_0, count,
                        stride_kt, stride_vt, heads * HEAD, heads * E, heads, T, TP, P, PIECE, E, FOLD, OP,
                    )  # fmt: skip
                    b_s += tl.load(p_piece, mask=m_row[:, None], other=0.0).to(tl.float32) * decay
                    b_z += tl.load(p_z + o_row, mask=m_row, other=0.0) * decay
                    tl.debug_barrier()
                    tl.store(p_piece, b_s.to(s_ptr.dtype.element_ty), mask=m_row[:, None])
                    tl.store(p_z + o_row, b_z, mask=m_row)


@triton.jit(do_not_specialize=["tiles", "walkers", "heads"])
def combine_kernel(
    num_ptr, den_ptr, since_ptr, y_ptr, count_ptr, scale_p, places, window, tiles, walkers,
    heads, GROUP: tl.constexpr, T: tl.constexpr, M: tl.constexpr, E: tl.constexpr, TILES: tl.constexpr,
    NORMALIZE: tl.constexpr, LAZY: tl.constexpr, BP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y of one query: the sum of its partial sums; and, by one program a sequence, the count of its window.

    It has `places` partial sums. After `step_kernel` the first is over the tokens, the others are over the state and to
    be decayed. After a walk (TILES: tiles of a state, else 0) as many are there as walkers met it; all are decayed, and
    one holds the token's part.
    """
    pid = tl.program_id(0)
    i_bh = pid // M
    i_m = pid % M
    i_b = (i_bh // heads).to(tl.int64)
    i_h = (i_bh % heads).to(tl.int64)
    i_bh = i_bh.to(tl.int64)
    o_e = tl.arange(0, E)
    parts = places
    if TILES > 0:
        i_tile = pid // M * TILES
        parts = walker_of(i_tile + TILES - 1, tiles, walkers) - walker_of(i_tile, tiles, walkers) + 1
    b_num = tl.zeros([E], tl.float32)
    den = 0.0
    if EARLY:  # started beside the last programs of `step`: what those leave is there from here on
        tl.extra.cuda.gdc_wait()
    since = 1.0
    if TILES == 0:
        since = tl.load(since_ptr + pid)
    for i in tl.range(0, parts, BP, num_stages=1):
        o_p = i + tl.arange(0, BP)
        m_p = o_p < parts
        o_m = (i_bh * places + o_p) * M + i_m
        b_decay = tl.where(o_p > 0, since, 1.0)
        b_part = tl.load(num_ptr + o_m[:, None] * E + o_e[None, :], mask=m_p[:, None], other=0.0)
        b_num += tl.sum(b_part * b_decay[:, None], 0)
        if NORMALIZE:
            den += tl.sum(tl.load(den_ptr + o_m, mask=m_p, other=0.0) * b_decay, 0)
    if NORMALIZE:
        zero = tl.abs(den) < SMALLEST  # such a row is 0
        b_y = tl.where(zero, 0.0, b_num / tl.where(zero, 1.0, den))
    else:
        b_y = b_num * scale_p
    o_y = (i_b * T + i_m // GROUP) * (heads * GROUP) + i_h * GROUP + i_m % GROUP
    tl.store(y_ptr + o_y * E + o_e, b_y.to(y_ptr.dtype.element_ty))
    if LAZY:
        if (i_h == 0) & (i_m == 0):
            count = tl.load(count_ptr + i_b) + T
            tl.store(count_ptr + i_b, tl.where(count >= window, 0, count))
