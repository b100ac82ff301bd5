"""update_state for Hopper in Gluon: the same sums as `update_state`, with the layout of every operand written down.

A program owns FIBRES * COLS rows of S and walks its chunk BT tokens at a time. phi^T is the first operand of the matrix
product and never leaves registers: a thread holds the columns x[t, c] of its rows and multiplies them by x[t, i_1] for
each of its fibres, two tokens an instruction. For that the tokens of x[t, i_1] have to be neighbours, so these columns
go through shared memory once, transposed, and take the weight of the token (and x[t, i_2], x[t, i_3] where p > 2) on
the way. x and u arrive by asynchronous copies, STAGES deep. The next phi is made when the product is done: another
program on the same multiprocessor uses the time better (docs/kernel-notes.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    warpgroup_mma,
    warpgroup_mma_wait,
)

from powerbench.kernels.power import tables
from powerbench.kernels.power.hopper import (
    async_load,
    reinterpret,
    row_copy,
    row_store,
    times,
    unfolded_row_pairs,
    unfolded_rows,
    unpacked,
)
from powerbench.kernels.power.tiling import Brick, brick_row_table, brick_table, chunks


class UpdateTiles(NamedTuple):
    """State rows a program (a brick), tokens a step, buffers of the copies, and warps."""

    brick: Brick
    tokens: int
    stages: int
    num_warps: int


@gluon.jit(do_not_specialize=["seqlen", "n_chunks", "first", "n_states", "heads"])
def hopper_update_kernel(
    x_ptr, u_ptr, w_ptr, s_ptr, table_ptr, rows_ptr,
    seqlen, chunk, n_chunks, first, n_states, n_bricks, elements,
    stride_xb, stride_xt, stride_xh, stride_ub, stride_ut, stride_uh,
    heads, GROUP: gl.constexpr, P: gl.constexpr, E: gl.constexpr, WEIGHTED: gl.constexpr,
    FIBRES: gl.constexpr, COLS: gl.constexpr, BT: gl.constexpr, STAGES: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """One brick of S of one chunk and key/value head."""
    ROWS: gl.constexpr = FIBRES * COLS
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, E, 16])
    phi_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    linear: gl.constexpr = gl.to_linear_layout(phi_layout, [ROWS, BT])
    x_layout: gl.constexpr = gl.SliceLayout(0, unfolded_rows(linear, COLS))  # [COLS, BT]
    cube: gl.constexpr = unfolded_row_pairs(linear, COLS)  # [FIBRES, COLS, BT / 2]
    # global to shared memory: 16 bytes a thread
    x_copy: gl.constexpr = row_copy(COLS, num_warps)
    u_copy: gl.constexpr = row_copy(E, num_warps)
    f_copy: gl.constexpr = gl.BlockedLayout([2, 4], [8, 4], [num_warps, 1], [1, 0])
    x_smem_layout: gl.constexpr = gl.SwizzledSharedLayout(8, 4, 2, [1, 0])
    u_smem_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BT, E], gl.bfloat16)

    pid = gl.program_id(0)
    i_brick = pid % n_bricks  # fastest: neighbours read the same tokens
    i_n = first + pid // n_bricks % n_states
    i_bh = pid // n_bricks // n_states
    i_b = (i_bh // heads).to(gl.int64)  # offsets times strides are int64
    i_h = (i_bh % heads * GROUP).to(gl.int64)
    i_bh = i_bh.to(gl.int64)
    c_0 = gl.load(table_ptr + i_brick * 4)
    i_1 = gl.load(table_ptr + i_brick * 4 + 1)
    i_2 = gl.load(table_ptr + i_brick * 4 + 2)
    i_3 = gl.load(table_ptr + i_brick * 4 + 3)
    start = (i_n * chunk).to(gl.int64)
    length = gl.minimum(chunk, seqlen - i_n * chunk)
    n_blocks = gl.cdiv(length, BT)
    n_steps = n_blocks * GROUP
    p_x = x_ptr + i_b * stride_xb + i_h * stride_xh + start * stride_xt
    p_u = u_ptr + i_b * stride_ub + i_h * stride_uh + start * stride_ut
    p_c = p_x + gl.multiple_of(c_0, 8)
    p_f = p_x + gl.multiple_of(i_1, 8)
    p_w = w_ptr
    if WEIGHTED:
        p_w = w_ptr + ((i_b * heads * GROUP + i_h) * n_chunks + i_n) * chunk
    stride_wh = n_chunks * chunk

    x_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BT, COLS], x_smem_layout)
    u_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BT, E], u_smem_layout)
    f_smem = gl.allocate_shared_memory(gl.bfloat16, [2, FIBRES, BT], gl.SwizzledSharedLayout(2, 1, 16, [1, 0]))
    f_pairs = reinterpret(f_smem, gl.int32, [2, FIBRES, BT // 2], gl.SwizzledSharedLayout(1, 1, 16, [1, 0]))

    for step in gl.static_range(STAGES - 2):
        copy_tokens(
            step, n_steps, n_blocks, length, p_c, p_u, stride_xt, stride_xh, stride_ut, stride_uh, x_smem, u_smem,
            x_copy, u_copy, GROUP, BT, COLS, E, STAGES,
        )  # fmt: skip
    b_f = load_factors(
        0, n_steps, n_blocks, length, p_f, p_x, p_w, i_2, i_3, stride_xt, stride_xh, stride_wh, f_copy,
        P, WEIGHTED, GROUP, FIBRES, BT,
    )  # fmt: skip
    acc = gl.zeros([ROWS, E], gl.float32, acc_layout)
    async_copy.wait_group(STAGES - 3)  # its barrier here spares one in every step
    for step in range(n_steps):
        f_smem.index(step % 2).store(gl.permute(b_f, (1, 0)))
        # into the buffers of step - 2, whose product every warp has waited for before the last step's barrier
        copy_tokens(
            step + STAGES - 2, n_steps, n_blocks, length, p_c, p_u, stride_xt, stride_xh, stride_ut, stride_uh,
            x_smem, u_smem, x_copy, u_copy, GROUP, BT, COLS, E, STAGES,
        )  # fmt: skip
        async_copy.wait_group(STAGES - 2)  # and the barrier of f_smem
        b_f = load_factors(
            step + 1, n_steps, n_blocks, length, p_f, p_x, p_w, i_2, i_3, stride_xt, stride_xh, stride_wh, f_copy,
            P, WEIGHTED, GROUP, FIBRES, BT,
        )  # fmt: skip
        b_phi = expanded_tokens(x_smem.index(step % STAGES), f_pairs.index(step % 2), x_layout, cube, COLS, BT)
        b_a = unpacked(b_phi, phi_layout, ROWS, BT)
        acc = warpgroup_mma(b_a, u_smem.index(step % STAGES), acc, is_async=True)
        acc, _ = warpgroup_mma_wait(0, deps=[acc, b_a])  # the product reads the registers of b_a until here
    async_copy.wait_group(0)

    # 16-bit rows through shared memory, as in `store_rows`; of float32 a product's layout writes whole sectors
    STORE: gl.constexpr = row_store(E, num_warps) if s_ptr.dtype.element_ty == gl.bfloat16 else acc_layout
    o_row = gl.load(rows_ptr + i_brick * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(1, STORE)))  # -1: not kept
    o_e = gl.arange(0, E, layout=gl.SliceLayout(0, STORE))
    p_s = s_ptr + (i_bh * n_states + i_n - first) * elements
    p_row = p_s + o_row.to(gl.int64)[:, None] * E + o_e[None, :]
    gl.store(p_row, gl.convert_layout(acc.to(s_ptr.dtype.element_ty), STORE), mask=(o_row >= 0)[:, None])


@gluon.jit
def tokens_of(step, n_blocks, GROUP: gl.constexpr, BT: gl.constexpr):
    """Head of the group, and first token in the chunk, of a step."""
    i_g = 0
    t_0 = step * BT
    if GROUP > 1:
        i_g = step // n_blocks
        t_0 = step % n_blocks * BT
    return i_g, t_0


@gluon.jit
def copy_tokens(
    step, n_steps, n_blocks, length, p_x, p_u, stride_xt, stride_xh, stride_ut, stride_uh, x_smem, u_smem,
    x_copy: gl.constexpr, u_copy: gl.constexpr, GROUP: gl.constexpr, BT: gl.constexpr, COLS: gl.constexpr,
    E: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Starts the copies of x and u of one step; past the last step and past the end of the chunk zeros are written."""
    i_g, t_0 = tokens_of(step, n_blocks, GROUP, BT)
    left = gl.where(step < n_steps, length - t_0, 0)
    o_t = gl.arange(0, BT, layout=gl.SliceLayout(1, x_copy))
    o_c = gl.arange(0, COLS, layout=gl.SliceLayout(0, x_copy))
    base = p_x + i_g * stride_xh.to(gl.int64) + t_0 * stride_xt.to(gl.int64)
    mask = (o_t[:, None] < left) & (o_c[None, :] >= 0)
    async_load(x_smem.index(step % STAGES), base + (o_t[:, None] * stride_xt + o_c[None, :]), mask=mask)
    o_t = gl.arange(0, BT, layout=gl.SliceLayout(1, u_copy))
    o_e = gl.arange(0, E, layout=gl.SliceLayout(0, u_copy))
    base = p_u + i_g * stride_uh.to(gl.int64) + t_0 * stride_ut.to(gl.int64)
    mask = (o_t[:, None] < left) & (o_e[None, :] >= 0)
    async_load(u_smem.index(step % STAGES), base + (o_t[:, None] * stride_ut + o_e[None, :]), mask=mask)
    async_copy.commit_group()


@gluon.jit
def load_factors(
    step, n_steps, n_blocks, length, p_f, p_x, p_w, i_2, i_3, stride_xt, stride_xh, stride_wh, f_copy: gl.constexpr,
    P: gl.constexpr, WEIGHTED: gl.constexpr, GROUP: gl.constexpr, FIBRES: gl.constexpr, BT: gl.constexpr,
):  # fmt: skip
    """w[t] x[t, i_1 ...] (times x[t, i_2], x[t, i_3]) of one step: bf16 [BT, FIBRES]; zeros past the last step."""
    i_g, t_0 = tokens_of(step, n_blocks, GROUP, BT)
    left = gl.where(step < n_steps, length - t_0, 0)
    o_t = gl.arange(0, BT, layout=gl.SliceLayout(1, f_copy))
    o_f = gl.arange(0, FIBRES, layout=gl.SliceLayout(0, f_copy))
    shift = i_g * stride_xh.to(gl.int64) + t_0 * stride_xt.to(gl.int64)
    m_t = o_t < left
    mask = m_t[:, None] & (o_f[None, :] >= 0)
    b_f = gl.load(p_f + shift + (o_t[:, None] * stride_xt + o_f[None, :]), mask=mask, other=0.0)
    if WEIGHTED or P > 2:
        b_w = gl.full([BT], 1.0, gl.float32, gl.SliceLayout(1, f_copy))
        if WEIGHTED:
            b_w = gl.load(p_w + i_g * stride_wh + t_0 + o_t, mask=m_t, other=0.0)
        p_t = p_x + shift + o_t * stride_xt
        if P >= 3:
            b_w = b_w * gl.load(p_t + i_2, mask=m_t, other=0.0).to(gl.float32)
        if P == 4:
            b_w = b_w * gl.load(p_t + i_3, mask=m_t, other=0.0).to(gl.float32)
        b_f = (b_f.to(gl.float32) * b_w[:, None]).to(gl.bfloat16)
    return b_f


@gluon.jit
def expanded_tokens(x_smem, f_pairs, x_layout: gl.constexpr, cube: gl.constexpr, COLS: gl.constexpr, BT: gl.constexpr):
    """phi^T of one step, pairs of tokens: int32 [FIBRES, COLS, BT / 2]."""
    b_x = x_smem.permute((1, 0)).load(x_layout)  # [COLS, BT]
    low, high = gl.split(gl.reshape(b_x, [COLS, BT // 2, 2]))
    b_x = gl.inline_asm_elementwise(
        "mov.b32 $0, {$1, $2};", "=r,h,h", [low, high], dtype=gl.int32, is_pure=True, pack=1
    )
    b_x = gl.convert_layout(b_x, gl.SliceLayout(0, cube), assert_trivial=True)
    b_c = f_pairs.load(gl.SliceLayout(1, cube))  # [FIBRES, BT / 2]
    return times(gl.expand_dims(b_c, 1), gl.expand_dims(b_x, 0))


def _tiles(e: int) -> UpdateTiles:
    """The best of those tried on an H200 (docs/kernel-notes.md): 256 rows, a brick of one pair of tiles of 16."""
    return UpdateTiles(Brick(16, 16), 64, 4, 4 if e <= 64 else 8)


def _tables_on(device: torch.device, d: int, p: int, d_tile: int, shape: Brick) -> tuple[Tensor, Tensor]:
    """Where each brick starts, and the state rows it holds, on the device: copied once."""
    sizes = d, p, d_tile, shape
    return tables.on_device(device, brick_table, *sizes), tables.on_device(device, brick_row_table, *sizes)


def update_state_hopper(
    x: Tensor, u: Tensor, w: Tensor | None, states: Tensor, *, p: int, chunk_size: int, first: int, d_tile: int,
    tiles: UpdateTiles | None = None,
) -> None:  # fmt: skip
    """Writes S of `states` [B, Hk, n_states, elements] for the chunks from `first` on; arguments as `update_state`.

    x and u bf16, p at least 2.
    """
    B, T, Hx, d = x.shape
    e = u.shape[-1]
    _, Hk, n_states, elements = states.shape
    C, N = chunks(T, chunk_size)
    tiles = tiles or _tiles(e)
    shape = tiles.brick
    table, rows = _tables_on(x.device, d, p, d_tile, shape)
    hopper_update_kernel[(len(table) * n_states * B * Hk,)](
        x, u, w, states, table, rows,
        T, C, N, first, n_states, len(table), elements,
        *x.stride()[:3], *u.stride()[:3],
        heads=Hk, GROUP=Hx // Hk, P=p, E=e, WEIGHTED=w is not None,
        FIBRES=shape.fibres, COLS=shape.columns, BT=tiles.tokens, STAGES=tiles.stages,
        num_warps=tiles.num_warps,
    )  # fmt: skip
