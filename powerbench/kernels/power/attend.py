"""attend: y of every row, from the state that came into its chunk and from the keys of the chunk before it.

    y_i = (exp(a_i) phi(q_i)^T R + sum_{j <= i} exp(a_i - a_j) <q_i, k_j>^p v_j) / the same with 1 for v_j and Z for R

phi is expanded on chip, and nothing but y (and the denominators, for the backward pass) goes to device memory.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power import attend_hopper, tables
from powerbench.kernels.power.contract import contract
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import attend_tiles, brick, brick_counts, chunks, state_rows

SMALLEST = tl.constexpr(2.0**-126)  # the smallest normal number of float32: a denominator below it is zero


@triton.jit
def power(x, P: tl.constexpr):
    """x^P by multiplications, P in 0 .. 4."""
    if P == 0:
        y = x * 0.0 + 1.0
    else:
        y = x
    if P >= 2:
        y = y * x
    if P == 3:
        y = y * x
    if P == 4:
        y = y * y
    return y


@triton.jit
def inverse(den):
    """1 / den; 0 for a denominator that is zero, or too small for float32 to hold its inverse: no such row counts."""
    zero = tl.abs(den) < SMALLEST
    return tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, den))


@triton.jit
def since(b_a, b_l, b_aj, b_lj, a_ref, l_ref, WIDE: tl.constexpr):
    """Gates between the later of two positions (b_a, b_l) and the earlier (b_aj, b_lj): sums as pairs, in shapes that
    broadcast to a tile. WIDE: to the last digit of float32; else each counts from the reference first, as a vector.
    """
    if WIDE:
        between = (b_a - b_aj) + (b_l - b_lj)
    else:
        between = ((b_a - a_ref) + (b_l - l_ref)) - ((b_aj - a_ref) + (b_lj - l_ref))
    return between


@triton.jit
def attend_keys(
    b_num, b_den, b_q, b_ai, b_li, a_ref, l_ref, factor, o_i, o_j, p_k, p_v, p_a, p_l, length,
    stride_kt, stride_vt,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr, NORMALIZE: tl.constexpr,
    DIAGONAL: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr,
):  # fmt: skip
    """(b_num, b_den) plus the keys o_j [BN]. Off the diagonal there is no mask, and gates count from a_ref.

    Sums of gates are pairs (a, l), as `gates` writes them.
    """
    p_kj = p_k + o_j.to(tl.int64)[:, None] * stride_kt + tl.arange(0, HEAD)[None, :]
    p_vj = p_v + o_j.to(tl.int64)[:, None] * stride_vt + tl.arange(0, E)[None, :]
    if DIAGONAL:
        m_j = o_j < length
        b_k = tl.load(p_kj, mask=m_j[:, None], other=0.0).to(SCORES)  # [BN, HEAD]
        b_v = tl.load(p_vj, mask=m_j[:, None], other=0.0)  # [BN, E]
    else:
        b_k = tl.load(p_kj).to(SCORES)
        b_v = tl.load(p_vj)
    b_p = power(tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * factor, P)  # [BM, BN]
    if DIAGONAL:
        m_ij = o_i[:, None] >= o_j[None, :]
        if GATED:  # masked before the exponential, which could overflow above the diagonal
            b_aj = tl.load(p_a + o_j, mask=m_j, other=0.0)
            b_lj = tl.load(p_l + o_j, mask=m_j, other=0.0)
            b_since = since(
                b_ai[:, None], b_li[:, None], b_aj[None, :], b_lj[None, :], a_ref, l_ref, SCORES == tl.float32
            )  # fmt: skip
            b_p *= tl.exp(tl.where(m_ij, b_since, 0.0))
        b_p = tl.where(m_ij, b_p, 0.0)
    elif GATED:
        b_p *= tl.exp((a_ref - tl.load(p_a + o_j)) + (l_ref - tl.load(p_l + o_j)))[None, :]
    if NORMALIZE:
        b_den += tl.sum(b_p, 1)
    b_p = b_p.to(OP)
    b_v_op = b_v.to(OP)
    b_num = tl.dot(b_p, b_v_op, b_num, input_precision="ieee")
    if b_v.dtype == tl.float16 and b_p.dtype == tl.bfloat16:
        # The bits of v that bf16 lacks: dy . v_j - dy . y_i of the backward pass must vanish where y_i is v_j.
        b_v_rest = b_v.to(tl.float32) - b_v_op.to(tl.float32)
        b_num = tl.dot(b_p, b_v_rest.to(OP), b_num, input_precision="ieee")
    return b_num, b_den


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "first", "n_blocks", "heads", "group"])
def attend_kernel(
    q_ptr, k_ptr, v_ptr, a_ptr, r_ptr, counts_ptr, counts_z_ptr, y_ptr, den_ptr, scale_p, factor,
    seqlen, chunk, n_chunks, first, n_blocks, elements, z_start,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    heads, group, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, STATE: tl.constexpr, SAVE_DEN: tl.constexpr,
    FIBRES: tl.constexpr, COLS: tl.constexpr, FIBRES_Z: tl.constexpr, COLS_Z: tl.constexpr,
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
    if row_0 >= length:
        return

    o_i = row_0 + tl.arange(0, BM)
    o_j = tl.arange(0, BN)
    m_i = o_i < length
    p_q = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + o_i) * stride_qt  # [BM]
    p_k = k_ptr + i_b * stride_kb + i_hk * stride_kh + start * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_hk * stride_vh + start * stride_vt
    b_num = tl.zeros([BM, E], tl.float32)
    b_den = tl.zeros([BM], tl.float32)
    p_a, a_ref, b_ai = a_ptr, 0.0, b_den
    p_l, l_ref, b_li = a_ptr, 0.0, b_den
    if GATED:
        p_a = a_ptr + (i_bhk * n_chunks + i_n) * chunk
        p_l = p_a + (tl.num_programs(0) // n_blocks // group).to(tl.int64) * chunk  # the low parts follow all high ones
        a_ref = tl.load(p_a + row_0)
        l_ref = tl.load(p_l + row_0)
        o_last = tl.minimum(o_i, length - 1)
        b_ai = tl.load(p_a + o_last)  # [BM]
        b_li = tl.load(p_l + o_last)

    if STATE:
        has_state = (i_n >= first).to(tl.int32)
        p_r = r_ptr + (i_bhk * (n_chunks - first) + tl.maximum(i_n - first, 0)) * elements
        if NORMALIZE:
            # phi_p(q) . z = q . (phi_{p-1}(q)^T Z): Z is a state of degree p - 1 with k in the place of v.
            b_z = contract(
                tl.zeros([BM, HEAD], tl.float32), p_q, m_i, p_r + z_start, counts_z_ptr, has_state,
                P - 1, HEAD, HEAD, W, FIBRES_Z, COLS_Z, OP, power(factor, P - 1),
            )  # fmt: skip
            b_x = tl.load(p_q[:, None] + tl.arange(0, HEAD)[None, :], mask=m_i[:, None], other=0.0)
            b_den = tl.sum(b_z * (b_x.to(tl.float32) * factor), 1)
        b_num = contract(b_num, p_q, m_i, p_r, counts_ptr, has_state, P, HEAD, E, W, FIBRES, COLS, OP, power(factor, P))
        if GATED:  # up to the block's first row; from there on with the keys, below
            decay = tl.exp(a_ref) * (1 + l_ref)
            b_num *= decay
            b_den *= decay

    # Before the block's first row exp(a_i - a_j) is exp(a_i - a_ref) * exp(a_ref - a_j), a_ref that row's: both are at
    # most 1, and the exponentials are of vectors instead of a [BM, BN] tile.
    b_q = tl.load(p_q[:, None] + tl.arange(0, HEAD)[None, :], mask=m_i[:, None], other=0.0).to(SCORES)  # [BM, HEAD]
    for j in range(0, row_0, BN):
        b_num, b_den = attend_keys(
            b_num, b_den, b_q, b_ai, b_li, a_ref, l_ref, factor, o_i, j + o_j, p_k, p_v, p_a, p_l, length,
            stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, False, SCORES, OP,
        )  # fmt: skip
    if GATED:
        b_decay = tl.exp((b_ai - a_ref) + (b_li - l_ref))
        b_num *= b_decay[:, None]
        b_den *= b_decay
    for j in range(row_0, tl.minimum(row_0 + BM, length), BN):
        b_num, b_den = attend_keys(
            b_num, b_den, b_q, b_ai, b_li, a_ref, l_ref, factor, o_i, j + o_j, p_k, p_v, p_a, p_l, length,
            stride_kt, stride_vt,
            P, HEAD, E, GATED, NORMALIZE, True, SCORES, OP,
        )  # fmt: skip

    o_row = (i_b * seqlen + start + o_i) * heads + i_h  # int64 [BM]: rows of y and den
    if NORMALIZE:
        # Row 0 sees one key: rounded as its weight was, den makes y_0 exactly v_0. Else dy . v_0 - dy . y_0, which is
        # 0, would come out of the backward pass as an error over <q_0, k_0>.
        b_den = tl.where((o_i == 0) & (i_n < first), b_den.to(OP).to(tl.float32), b_den)
        zero = tl.abs(b_den) < SMALLEST  # such a row is 0, and has no gradient: `inverse`
        b_y = tl.where(zero[:, None], 0.0, b_num / tl.where(zero, 1.0, b_den)[:, None])
        if SAVE_DEN:
            tl.store(den_ptr + o_row, b_den, mask=m_i)
    else:
        b_y = b_num * scale_p
    tl.store(y_ptr + o_row[:, None] * E + tl.arange(0, E)[None, :], b_y.to(y_ptr.dtype.element_ty), mask=m_i[:, None])


def brick_counts_on(device: torch.device, d: int, p: int, d_tile: int, rows: int) -> Tensor:
    """Bricks at each run of columns, int32 on the device: copied once."""
    return tables.on_device(device, _brick_counts, d, p, d_tile, rows)


def _brick_counts(d: int, p: int, d_tile: int, rows: int) -> np.ndarray:
    return np.array(brick_counts(d, p, d_tile, brick(d, p, d_tile, rows)), dtype=np.int32)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
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
    save_den: bool,
    scores: tl.dtype,
    operand: tl.dtype,
) -> tuple[Tensor, Tensor | None]:
    """y [B, T, H, e] in q's dtype and, if asked and normalised, the denominators float32 [B, T, H] of the scores times
    the factor of `split_scale`.

    q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] with contiguous last dimension; a float32 [2, B, Hk, N, C] or None;
    r [B, Hk, N - first, elements] in the layout `sizes`, the states that come into the chunks from `first` on (None
    where none does). q k^T takes operands of dtype `scores`, all other products `operand`.
    """
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    if attend_hopper.serves(q.dtype, q.device, d, e, p, d_tile, with_state=r is not None):
        return attend_hopper.attend_hopper(
            q, k, v, a, r, sizes,
            p=p, chunk_size=C, d_tile=d_tile, scale=scale, normalize=normalize, first=first, save_den=save_den,
        )  # fmt: skip
    tiles = attend_tiles(d, e, C, q.element_size())
    rows = state_rows(q.element_size())
    degrees = p, max(p - 1, 1)
    shape, shape_z = (brick(d, degree, d_tile, rows) for degree in degrees)
    counts, counts_z = (brick_counts_on(q.device, d, degree, d_tile, rows) for degree in degrees)
    blocks = triton.cdiv(C, tiles.tokens)
    factor, rest = split_scale(scale, p)
    y = torch.empty(B, T, H, e, dtype=q.dtype, device=q.device)
    den = torch.empty(B, T, H, dtype=torch.float32, device=q.device) if save_den and normalize else None
    attend_kernel[(blocks * N * B * H,)](
        q, k, v, a, r, counts, counts_z, y, den, rest**p, factor,
        T, C, N, first, blocks, sizes.elements, sizes.z_start,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        heads=H, group=H // Hk, P=p, HEAD=d, E=e, W=d_tile, GATED=a is not None, NORMALIZE=normalize,
        STATE=r is not None, SAVE_DEN=den is not None,
        FIBRES=shape.fibres, COLS=shape.columns, FIBRES_Z=shape_z.fibres, COLS_Z=shape_z.columns,
        BM=tiles.tokens, BN=tiles.rows, SCORES=scores, OP=operand,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return y, den
