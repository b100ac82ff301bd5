"""update_state: what one chunk adds to the state, S = sum_i exp(A - a_i) phi(k_i) v_i^T, phi expanded on chip."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.expand import brick_rows, outer
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.tiling import brick, brick_table, chunks, update_tiles


@triton.jit
def update_state_kernel(
    k_ptr, v_ptr, a_ptr, s_ptr, table_ptr,
    seqlen, chunk, n_chunks, n_states, n_bricks, state_dim,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    HEADS: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, GATED: tl.constexpr,
    FIBRES: tl.constexpr, COLS: tl.constexpr, BT: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """One brick of state rows of one chunk and key/value head: a product over the chunk's tokens, BT at a time."""
    pid = tl.program_id(0)
    i_brick = pid % n_bricks  # fastest: neighbours read the same tokens
    i_n = pid // n_bricks % n_states
    i_bh = (pid // n_bricks // n_states).to(tl.int64)  # offsets times strides are int64
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS

    c_0 = tl.multiple_of(tl.load(table_ptr + i_brick * 4), COLS)  # the hints let the loads below be wide and async
    i_1 = tl.multiple_of(tl.load(table_ptr + i_brick * 4 + 1), FIBRES)
    i_2 = tl.load(table_ptr + i_brick * 4 + 2)
    i_3 = tl.load(table_ptr + i_brick * 4 + 3)

    start = i_n * chunk
    length = tl.minimum(chunk, seqlen - start)
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh
    o_col = c_0 + tl.arange(0, COLS)
    o_fib = i_1 + tl.arange(0, FIBRES)
    o_e = tl.arange(0, E)
    if GATED:
        p_a = a_ptr + (i_bh * n_chunks + i_n) * chunk
        a_end = tl.load(p_a + chunk - 1)

    b_acc = tl.zeros([FIBRES * COLS, E], tl.float32)
    for t in range(0, length, BT):
        o_t = t + tl.arange(0, BT)
        m_t = o_t < length
        p_t = p_k + (start + o_t).to(tl.int64)[:, None] * stride_kt
        b_x = tl.load(p_t + o_col[None, :], mask=m_t[:, None], other=0.0)  # [BT, COLS]
        p_vt = p_v + (start + o_t).to(tl.int64)[:, None] * stride_vt
        b_v = tl.load(p_vt + o_e[None, :], mask=m_t[:, None], other=0.0)  # [BT, E]
        if P >= 2:
            b_c = tl.load(p_t + o_fib[None, :], mask=m_t[:, None], other=0.0)  # [BT, FIBRES]
            if P >= 3:
                b_c = b_c.to(tl.float32) * tl.load(p_t + i_2, mask=m_t[:, None], other=0.0).to(tl.float32)
            if P == 4:
                b_c = b_c * tl.load(p_t + i_3, mask=m_t[:, None], other=0.0).to(tl.float32)
            if GATED:
                b_w = tl.exp(a_end - tl.load(p_a + o_t, mask=m_t, other=0.0))  # [BT]
                b_c = b_c.to(tl.float32) * b_w[:, None]
            b_phi = outer(b_c, b_x, FIBRES, OP)  # [BT, ROWS]
        else:
            b_phi = b_x
            if GATED:
                b_w = tl.exp(a_end - tl.load(p_a + o_t, mask=m_t, other=0.0))
                b_phi = b_x.to(tl.float32) * b_w[:, None]
            b_phi = b_phi.to(OP)
        b_acc = tl.dot(tl.trans(b_phi), b_v.to(OP), b_acc, input_precision="ieee")

    o_row, m_row = brick_rows(c_0, i_1, i_2, i_3, P, HEAD, W, FIBRES, COLS)
    p_s = s_ptr + (i_bh * n_states + i_n) * state_dim * E
    tl.store(p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :], b_acc, mask=m_row[:, None])


@lru_cache(maxsize=64)
def _bricks_on(device: torch.device, d: int, p: int, d_tile: int, rows: int) -> Tensor:
    """The brick table on the device: copied once, so that later calls (and CUDA graphs) do not touch the host."""
    return torch.from_numpy(brick_table(d, p, d_tile, brick(d, p, d_tile, rows))).to(device)


def update_state(
    k: Tensor, v: Tensor, a: Tensor | None, *, p: int, chunk_size: int, n_states: int, d_tile: int, operand: tl.dtype
) -> Tensor:
    """What each of the first `n_states` chunks adds to the state: float32 [B, Hk, n_states, D, e].

    k [B, T, Hk, d] and v [B, T, Hk, e] with contiguous last dimension, a float32 [B, Hk, N, C] or None (no gates). The
    rows are unweighted products of k, decayed to their chunk's end; phi and v are multiplied in dtype `operand`.
    """
    B, T, Hk, d = k.shape
    e = v.shape[-1]
    C, N = chunks(T, chunk_size)
    tiles = update_tiles(d, e, C, k.element_size())
    shape = brick(d, p, d_tile, tiles.rows)
    table = _bricks_on(k.device, d, p, d_tile, tiles.rows)
    D = tspow_dim(d, p, d_tile)
    s = torch.empty(B, Hk, n_states, D, e, dtype=torch.float32, device=k.device)
    update_state_kernel[(len(table) * n_states * B * Hk,)](
        k, v, a, s, table,
        T, C, N, n_states, len(table), D,
        *k.stride()[:3], *v.stride()[:3],
        HEADS=Hk, P=p, HEAD=d, E=e, W=d_tile, GATED=a is not None,
        FIBRES=shape.fibres, COLS=shape.columns, BT=tiles.tokens, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return s
