"""update_state: what one chunk adds to the state, S = sum_i w_i phi(x_i) u_i^T, phi expanded on chip.

Forward, x is k, u is v and w the decay to the chunk's end; beside S [D, e] stands the denominator's state Z [D', d], a
state of degree p - 1 with x itself in the place of u. Backward, x is q and u is dy: the gradient of the state that came
into the chunk is a sum of the same form, over the query heads that share it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power import hopper, tables
from powerbench.kernels.power.expand import brick_rows, outer
from powerbench.kernels.power.sizes import state_sizes
from powerbench.kernels.power.tiling import Brick, brick, brick_table, chunks, update_tiles
from powerbench.kernels.power.update_state_hopper import update_state_hopper


@triton.jit
def sum_brick(
    i_brick, p_x, p_u, p_w, p_s, table_ptr, length, n_blocks, stride_xt, stride_xh, stride_ut, stride_uh, stride_wh,
    GROUP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, WEIGHTED: tl.constexpr,
    ONES: tl.constexpr, FIBRES: tl.constexpr, COLS: tl.constexpr, BT: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """One brick of state rows: a product over the chunk's tokens, BT at a time, one head after the other."""
    c_0 = tl.multiple_of(tl.load(table_ptr + i_brick * 4), COLS)  # the hints let the loads below be wide and async
    i_1 = tl.multiple_of(tl.load(table_ptr + i_brick * 4 + 1), FIBRES)
    i_2 = tl.load(table_ptr + i_brick * 4 + 2)
    i_3 = tl.load(table_ptr + i_brick * 4 + 3)
    o_col = c_0 + tl.arange(0, COLS)
    o_fib = i_1 + tl.arange(0, FIBRES)
    o_e = tl.arange(0, E)
    b_acc = tl.zeros([FIBRES * COLS, E], tl.float32)
    for step in range(0, n_blocks * GROUP):
        i_g = step // n_blocks
        o_t = step % n_blocks * BT + tl.arange(0, BT)
        m_t = o_t < length
        p_t = p_x + i_g.to(tl.int64) * stride_xh + o_t.to(tl.int64)[:, None] * stride_xt
        b_x = tl.load(p_t + o_col[None, :], mask=m_t[:, None], other=0.0)  # [BT, COLS]
        if ONES:
            b_u = tl.full([BT, E], 1.0, OP)
        else:
            p_ut = p_u + i_g.to(tl.int64) * stride_uh + o_t.to(tl.int64)[:, None] * stride_ut
            b_u = tl.load(p_ut + o_e[None, :], mask=m_t[:, None], other=0.0).to(OP)  # [BT, E]
        if P >= 2:
            b_c = tl.load(p_t + o_fib[None, :], mask=m_t[:, None], other=0.0)  # [BT, FIBRES]
            if P >= 3:
                b_c = b_c.to(tl.float32) * tl.load(p_t + i_2, mask=m_t[:, None], other=0.0).to(tl.float32)
            if P == 4:
                b_c = b_c * tl.load(p_t + i_3, mask=m_t[:, None], other=0.0).to(tl.float32)
            if WEIGHTED:
                b_w = tl.load(p_w + i_g * stride_wh + o_t, mask=m_t, other=0.0)  # [BT]
                b_c = b_c.to(tl.float32) * b_w[:, None]
            b_phi = outer(b_c, b_x, FIBRES, OP)  # [BT, ROWS]
        else:
            b_phi = b_x
            if WEIGHTED:
                b_w = tl.load(p_w + i_g * stride_wh + o_t, mask=m_t, other=0.0)
                b_phi = b_x.to(tl.float32) * b_w[:, None]
            b_phi = b_phi.to(OP)
        b_acc = tl.dot(tl.trans(b_phi), b_u, b_acc, input_precision="ieee")

    o_row, m_row = brick_rows(c_0, i_1, i_2, i_3, P, HEAD, W, FIBRES, COLS)
    p_row = p_s + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
    tl.store(p_row, b_acc.to(p_s.dtype.element_ty), mask=m_row[:, None])


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "first", "n_states", "heads"])
def update_state_kernel(
    x_ptr, u_ptr, w_ptr, zw_ptr, s_ptr, table_ptr, z_table_ptr,
    seqlen, chunk, n_chunks, first, n_states, n_bricks, n_z_bricks, elements, z_start,
    stride_xb, stride_xt, stride_xh, stride_ub, stride_ut, stride_uh,
    heads, GROUP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
    WEIGHTED: tl.constexpr, WITH_Z: tl.constexpr, P_Z: tl.constexpr, E_Z: tl.constexpr,
    FIBRES: tl.constexpr, COLS: tl.constexpr, FIBRES_Z: tl.constexpr, COLS_Z: tl.constexpr,
    BT: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """One brick of S, or of Z, of one chunk and key/value head."""
    pid = tl.program_id(0)
    n_all = n_bricks + n_z_bricks
    i_brick = pid % n_all  # fastest: neighbours read the same tokens
    i_n = first + pid // n_all % n_states
    i_bh = pid // n_all // n_states
    i_b = (i_bh // heads).to(tl.int64)  # offsets times strides are int64
    i_h = (i_bh % heads * GROUP).to(tl.int64)
    i_bh = i_bh.to(tl.int64)
    start = (i_n * chunk).to(tl.int64)
    length = tl.minimum(chunk, seqlen - i_n * chunk)
    n_blocks = tl.cdiv(length, BT)
    p_x = x_ptr + i_b * stride_xb + i_h * stride_xh + start * stride_xt
    p_u = u_ptr + i_b * stride_ub + i_h * stride_uh + start * stride_ut
    o_w = ((i_b * heads * GROUP + i_h) * n_chunks + i_n) * chunk
    stride_wh = n_chunks * chunk
    p_s = s_ptr + (i_bh * n_states + i_n - first) * elements
    if i_brick < n_bricks:
        sum_brick(
            i_brick, p_x, p_u, w_ptr + o_w if WEIGHTED else w_ptr, p_s, table_ptr, length, n_blocks,
            stride_xt, stride_xh, stride_ut, stride_uh, stride_wh,
            GROUP, P, HEAD, E, W, WEIGHTED, False, FIBRES, COLS, BT, OP,
        )  # fmt: skip
    elif WITH_Z:
        sum_brick(
            i_brick - n_bricks, p_x, p_x, zw_ptr + o_w if WEIGHTED else zw_ptr, p_s + z_start, z_table_ptr, length,
            n_blocks, stride_xt, stride_xh, stride_xt, stride_xh, stride_wh,
            GROUP, P_Z, HEAD, E_Z, W, WEIGHTED, P == 1, FIBRES_Z, COLS_Z, BT, OP,
        )  # fmt: skip


def _bricks_on(device: torch.device, d: int, p: int, d_tile: int, shape: Brick) -> Tensor:
    """The brick table on the device: copied once, so that later calls (and CUDA graphs) do not touch the host."""
    return tables.on_device(device, brick_table, d, p, d_tile, shape)


def update_state(
    x: Tensor,
    u: Tensor,
    w: Tensor | None,
    z_w: Tensor | None,
    *,
    p: int,
    chunk_size: int,
    kv_heads: int,
    first: int,
    n_states: int,
    d_tile: int,
    with_z: bool,
    operand: tl.dtype,
    storage: torch.dtype,
) -> Tensor:
    """What each of the chunks first .. first + n_states - 1 adds: `storage` [B, Hk, n_states, elements] (`StateSizes`).

    x [B, T, Hx, d] and u [B, T, Hx, e] with contiguous last dimension, Hx a multiple of kv_heads: a group of Hx / Hk
    heads adds to one state. w and z_w float32 [B, Hx, N, C]: weights of the tokens in S and in Z, both or neither. Rows
    are unweighted products of x; products are taken in dtype `operand` and summed in float32.
    """
    B, T, Hx, d = x.shape
    e = u.shape[-1]
    C, N = chunks(T, chunk_size)
    sizes = state_sizes(p, d, e, d_tile, with_z=with_z)
    tiles = update_tiles(d, e, C, x.element_size())
    p_z = max(p - 1, 1)
    shape, z_shape = brick(d, p, d_tile, tiles.rows), brick(d, p_z, d_tile, tiles.rows)
    table, z_table = _bricks_on(x.device, d, p, d_tile, shape), _bricks_on(x.device, d, p_z, d_tile, z_shape)
    n_z_bricks = len(z_table) if with_z else 0
    states = torch.empty(B, kv_heads, n_states, sizes.elements, dtype=storage, device=x.device)
    n_bricks = len(table)
    if p > 1 and hopper.serves(x.dtype, x.device, d, e):
        update_state_hopper(x, u, w, states, p=p, chunk_size=C, first=first, d_tile=d_tile)
        n_bricks = 0  # only Z is left
        if not with_z:
            return states
    update_state_kernel[((n_bricks + n_z_bricks) * n_states * B * kv_heads,)](
        x, u, w, z_w, states, table, z_table,
        T, C, N, first, n_states, n_bricks, n_z_bricks, sizes.elements, sizes.z_start,
        *x.stride()[:3], *u.stride()[:3],
        heads=kv_heads, GROUP=Hx // kv_heads, P=p, HEAD=d, E=e, W=d_tile, WEIGHTED=w is not None,
        WITH_Z=with_z, P_Z=p_z, E_Z=sizes.z_width,
        FIBRES=shape.fibres, COLS=shape.columns, FIBRES_Z=z_shape.fibres, COLS_Z=z_shape.columns,
        BT=tiles.tokens, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return states
