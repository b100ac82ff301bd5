"""Decoding in Triton, the kernel of a plain bfloat16 state: one token, one query a key/value head.

`step_kernel` asks for a tile, waits, moves it on, and ends or begins anew. A tile of a bfloat16 state is half the
bytes, and the programs beside each other have too few on the way. So here there are as many programs as stand beside
each other, and they walk over the tiles of all states, each over a run of them (`decode_tiling.walk`): the next tiles
come, by TMA, while one is moved on. A run may begin and end within a state. A walker leaves a partial sum of phi(q)^T S
for each state that it meets, decayed; the token's own part is in that of the state's last tile. `combine_kernel` adds
those of a state in the order of their walkers.

A tile is read as int32, pairs of columns, of which each half is a float32 after a shift or a mask. LANES rows of sums,
of rows that are equal modulo LANES, are kept as long as a walker is within one state; they are added up at its end. phi
is gathered from memory (a token is a line or two of the L1), without the barriers that shared memory would need.
"""

from __future__ import annotations

import triton
import triton.language as tl

from powerbench.kernels.power.attend import power
from powerbench.kernels.power.step_parts import features_at, first_tile, row_weight, walker_of


@triton.jit
def first_half(b_x):
    """float32 of the first bfloat16 of each pair in an int32."""
    return (b_x << 16).to(tl.float32, bitcast=True)


@triton.jit
def second_half(b_x):
    """float32 of the second one."""
    return (b_x & -65536).to(tl.float32, bitcast=True)


@triton.jit
def paired(b_first, b_second):
    """Two float32 as a pair of bfloat16 in an int32: the inverse, rounded."""
    b_first = b_first.to(tl.bfloat16).to(tl.float32).to(tl.int32, bitcast=True)
    b_second = b_second.to(tl.bfloat16).to(tl.float32).to(tl.int32, bitcast=True)
    return ((b_first >> 16) & 65535) | b_second


@triton.jit
def add_rows(b_sum, b_x, LANES: tl.constexpr):
    """b_sum [LANES, C] plus the rows of b_x [ROWS, C], each to that one which it equals modulo LANES."""
    return b_sum + tl.sum(tl.reshape(b_x, [b_x.shape[0] // LANES, LANES, b_x.shape[1]]), 0)


@triton.jit(do_not_specialize=["tiles", "walkers", "slots", "heads"])
def walk_kernel(
    q_ptr, k_ptr, v_ptr, g_ptr, s_desc, z_ptr, rows_ptr, num_ptr, den_ptr, tiles, walkers, slots, factor,
    stride_qb, stride_qh, stride_kb, stride_kh, stride_vb, stride_vh, stride_gb, stride_gh, stride_z,
    heads, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, GATED: tl.constexpr,
    NORMALIZE: tl.constexpr, MIN: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr, LANES: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Walker w's share of all `tiles` tiles."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.program_id(0)
    start = first_tile(w, tiles, walkers)
    stop = first_tile(w + 1, tiles, walkers)
    i_first = start // TILES  # the one state that earlier walkers may have met before this one
    slot_first = w - walker_of(i_first * TILES, tiles, walkers)
    C: tl.constexpr = E // 2
    o_c = tl.arange(0, C)
    o_d = tl.arange(0, HEAD)
    o_row = tl.arange(0, ROWS)
    b_num1 = tl.zeros([LANES, C], tl.float32)
    b_num2 = tl.zeros([LANES, C], tl.float32)
    b_den = tl.zeros([ROWS], tl.float32)
    for g in tl.range(start, stop, num_stages=STAGES):
        i_bh = g // TILES
        i_row = (g - i_bh * TILES) * ROWS
        i_b = tl.cast(i_bh // heads, tl.int64)
        i_h = tl.cast(i_bh % heads, tl.int64)
        p_q = q_ptr + i_b * stride_qb + i_h * stride_qh
        p_k = k_ptr + i_b * stride_kb + i_h * stride_kh
        p_v = v_ptr + i_b * stride_vb + i_h * stride_vh + 2 * o_c
        p_z = z_ptr + tl.cast(i_bh, tl.int64) * stride_z + i_row + o_row
        b_s = s_desc.load([g * ROWS, 0])
        b_rows = tl.load(rows_ptr + i_row + o_row)
        b_z = tl.load(p_z)
        b_phi = features_at(p_q, b_rows, P) * (row_weight(b_rows, P, W) * power(factor, P))
        b_num1 = add_rows(b_num1, b_phi[:, None] * first_half(b_s), LANES)
        b_num2 = add_rows(b_num2, b_phi[:, None] * second_half(b_s), LANES)
        if NORMALIZE:
            b_den += b_phi * b_z
        decay = 1.0
        if GATED:
            gate = tl.load(g_ptr + i_b * stride_gb + i_h * stride_gh).to(tl.float32)
            decay = tl.exp(tl.maximum(gate, MIN))
        b_phi = features_at(p_k, b_rows, P)
        b_v1 = tl.load(p_v).to(tl.float32)
        b_v2 = tl.load(p_v + 1).to(tl.float32)
        b_s = paired(
            first_half(b_s) * decay + b_phi[:, None] * b_v1[None, :],
            second_half(b_s) * decay + b_phi[:, None] * b_v2[None, :],
        )
        s_desc.store([g * ROWS, 0], b_s)
        tl.store(p_z, b_z * decay + b_phi)  # by the thread that has read it: there are as many rows
        ends = i_row + ROWS == TILES * ROWS
        last = ends | (g == stop - 1)
        if last:
            # the token against itself: from phi, q and k at right angles would leave float32's rounding of |q|^p |k|^p
            weight = power(tl.sum(tl.load(p_q + o_d).to(tl.float32) * tl.load(p_k + o_d).to(tl.float32), 0) * factor, P)
            weight = tl.where(ends, weight, 0.0)
            i_sum = tl.cast(i_bh, tl.int64) * slots + tl.where(i_bh == i_first, slot_first, 0)
            p_num = num_ptr + i_sum * E + 2 * o_c
            tl.store(p_num, tl.sum(b_num1, 0) * decay + weight * b_v1)
            tl.store(p_num + 1, tl.sum(b_num2, 0) * decay + weight * b_v2)
            if NORMALIZE:
                tl.store(den_ptr + i_sum, tl.sum(b_den, 0) * decay + weight)
        b_num1 = tl.where(last, 0.0, b_num1)
        b_num2 = tl.where(last, 0.0, b_num2)
        b_den = tl.where(last, 0.0, b_den)
