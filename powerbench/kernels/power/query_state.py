"""query_state: what the past adds to each row, exp(a_i) phi(q_i)^T R_n, phi expanded on chip; then the division."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.expand import brick_rows, outer
from powerbench.kernels.power.tiling import brick, brick_counts, chunks, query_tiles


@triton.jit
def contract(
    p_x, m_t, p_r, counts_ptr,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, FIBRES: tl.constexpr, COLS: tl.constexpr,
    BT: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """phi_P(x)^T R, float32 [BT, E]: p_x points at BT rows of x (mask m_t), p_r at R [D, E] in dtype OP.

    One loop, so that the loads stay ahead of the products, walks the counts_ptr[c_0 / COLS] bricks at columns c_0 in
    the order of `brick_table`: i_1 fastest, each index ending where the tile of the next one ends.
    """
    o_col = tl.arange(0, COLS)
    o_fib = tl.arange(0, FIBRES)
    o_e = tl.arange(0, E)
    b_acc = tl.zeros([BT, E], tl.float32)
    for c_0 in range(0, HEAD, COLS):
        b_x = tl.load(p_x[:, None] + (c_0 + o_col)[None, :], mask=m_t[:, None], other=0.0)  # [BT, COLS]
        if P == 1:
            b_r = tl.load(p_r + (c_0 + o_col)[:, None] * E + o_e[None, :])  # [ROWS, E]
            b_acc = tl.dot(b_x.to(OP), b_r, b_acc, input_precision="ieee")
        else:
            i_1 = 0
            i_2 = 0
            i_3 = 0
            for _ in range(0, tl.load(counts_ptr + c_0 // COLS)):
                b_c = tl.load(p_x[:, None] + (i_1 + o_fib)[None, :], mask=m_t[:, None], other=0.0)  # [BT, FIBRES]
                if P >= 3:
                    b_2 = tl.load(p_x + i_2, mask=m_t, other=0.0).to(tl.float32)
                    if P == 4:
                        b_2 *= tl.load(p_x + i_3, mask=m_t, other=0.0).to(tl.float32)
                    b_c = b_c.to(tl.float32) * b_2[:, None]
                b_phi = outer(b_c, b_x, FIBRES, OP)  # [BT, ROWS]
                o_row, m_row = brick_rows(c_0, i_1, i_2, i_3, P, HEAD, W, FIBRES, COLS)
                p_row = p_r + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
                if W % FIBRES == 0 and W % COLS == 0:  # bricks stop where the tiles stop: nothing to mask
                    b_r = tl.load(p_row)  # [ROWS, E]
                else:
                    b_r = tl.load(p_row, mask=m_row[:, None], other=0.0)
                b_acc = tl.dot(b_phi, b_r, b_acc, input_precision="ieee")
                i_1 = tl.multiple_of(i_1 + FIBRES, FIBRES)
                if P >= 3:
                    wrap = i_1 >= (i_2 // W + 1) * W
                    i_1 = tl.where(wrap, 0, i_1)
                    i_2 = tl.where(wrap, i_2 + 1, i_2)
                if P == 4:
                    wrap = i_2 >= (i_3 // W + 1) * W
                    i_2 = tl.where(wrap, 0, i_2)
                    i_3 = tl.where(wrap, i_3 + 1, i_3)
    return b_acc


@triton.jit
def query_state_kernel(
    q_ptr, a_ptr, r_ptr, rz_ptr, counts_ptr, counts_z_ptr, num_ptr, den_ptr, y_ptr,
    seqlen, chunk, n_chunks, first, n_blocks, dim, dim_z,
    stride_qb, stride_qt, stride_qh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr,
    FIBRES: tl.constexpr, COLS: tl.constexpr, FIBRES_Z: tl.constexpr, COLS_Z: tl.constexpr,
    BT: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """BT query rows of one chunk and head, through all bricks of the state."""
    pid = tl.program_id(0)
    n_incoming = n_chunks - first
    i_t = pid % n_blocks  # fastest, with the heads of a group next: neighbours read the same state
    i_g = pid // n_blocks % GROUP
    i_r = pid // n_blocks // GROUP  # (batch, key/value head, incoming state)
    i_n = first + i_r % n_incoming
    i_bhk = (i_r // n_incoming).to(tl.int64)  # offsets times strides are int64
    i_b = i_bhk // (HEADS // GROUP)
    i_h = i_bhk % (HEADS // GROUP) * GROUP + i_g
    start = i_n * chunk
    length = tl.minimum(chunk, seqlen - start)
    if i_t * BT >= length:
        return

    o_t = i_t * BT + tl.arange(0, BT)
    o_e = tl.arange(0, E)
    m_t = o_t < length
    p_x = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + o_t).to(tl.int64) * stride_qt  # [BT]
    o_out = (i_b * seqlen + start + o_t) * HEADS + i_h  # int64 [BT]

    if GATED:
        b_a = tl.exp(tl.load(a_ptr + (i_bhk * n_chunks + i_n) * chunk + o_t, mask=m_t, other=0.0))
    if NORMALIZE:
        # phi_p(q) . z = q . (phi_{p-1}(q)^T Z): Z is a state of degree p - 1 with k in the place of v.
        p_rz = rz_ptr + i_r.to(tl.int64) * dim_z * HEAD
        b_z = contract(p_x, m_t, p_rz, counts_z_ptr, P - 1, HEAD, HEAD, W, FIBRES_Z, COLS_Z, BT, OP)
        b_q = tl.load(p_x[:, None] + tl.arange(0, HEAD)[None, :], mask=m_t[:, None], other=0.0)
        b_den = tl.sum(b_z * b_q.to(tl.float32), 1)
        if GATED:
            b_den *= b_a
        b_den += tl.load(den_ptr + o_out, mask=m_t, other=1.0)
    p_r = r_ptr + i_r.to(tl.int64) * dim * E
    b_num = contract(p_x, m_t, p_r, counts_ptr, P, HEAD, E, W, FIBRES, COLS, BT, OP)
    if GATED:
        b_num *= b_a[:, None]
    b_num += tl.load(num_ptr + o_out[:, None] * E + o_e[None, :], mask=m_t[:, None], other=0.0)
    if NORMALIZE:
        b_num = b_num / b_den[:, None]
    tl.store(y_ptr + o_out[:, None] * E + o_e[None, :], b_num.to(y_ptr.dtype.element_ty), mask=m_t[:, None])


@lru_cache(maxsize=64)
def _counts_on(device: torch.device, d: int, p: int, d_tile: int, rows: int) -> Tensor:
    """Bricks at each run of columns, int32 on the device: copied once."""
    return torch.tensor(brick_counts(d, p, d_tile, brick(d, p, d_tile, rows)), dtype=torch.int32, device=device)


def query_state(
    q: Tensor,
    a: Tensor | None,
    r: Tensor,
    rz: Tensor | None,
    *,
    num: Tensor,
    den: Tensor,
    y: Tensor,
    p: int,
    chunk_size: int,
    d_tile: int,
    first: int,
    operand: tl.dtype,
) -> None:
    """Finish y [B, T, H, e] of the chunks from `first` on: add the past to num and den, and divide.

    q [B, T, H, d] with contiguous last dimension; a float32 [B, Hk, N, C] or None; r [B, Hk, N - first, D, e] in the
    operand's dtype, weighted by multiplicity and scale^p; rz [B, Hk, N - first, D', d] the same for the denominator
    (degree p - 1), None without normalisation; num float32 [B, T, H, e] and den float32 [B, T, H] from `attention`.
    """
    B, T, H, d = q.shape
    Hk, D, e = r.shape[1], r.shape[3], r.shape[4]
    C, N = chunks(T, chunk_size)
    tiles = query_tiles(d, e, C, q.element_size())
    degrees = p, max(p - 1, 1)
    shape, shape_z = (brick(d, degree, d_tile, tiles.rows) for degree in degrees)
    counts, counts_z = (_counts_on(q.device, d, degree, d_tile, tiles.rows) for degree in degrees)
    blocks = triton.cdiv(C, tiles.tokens)
    query_state_kernel[(blocks * (N - first) * B * H,)](
        q, a, r, rz, counts, counts_z, num, den, y,
        T, C, N, first, blocks, D, 0 if rz is None else rz.shape[3],
        *q.stride()[:3],
        HEADS=H, GROUP=H // Hk, P=p, HEAD=d, E=e, W=d_tile, GATED=a is not None, NORMALIZE=rz is not None,
        FIBRES=shape.fibres, COLS=shape.columns, FIBRES_Z=shape_z.fibres, COLS_Z=shape_z.columns,
        BT=tiles.tokens, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
