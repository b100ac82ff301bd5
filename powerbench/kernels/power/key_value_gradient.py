"""key_value_gradient: dk and dv of every row, from the queries of its chunk and the gradient of the state it leaves.

With r_i and delta_i as in `query_gradient`, E the gradient of the state that leaves the chunk (EZ that of its Z), the
sums over the query heads that share the keys, and A the gate of the whole chunk:

    dv_j = sum_{i >= j} r_i exp(a_i - a_j) s_ij^p dy_i                             + exp(A - a_j) phi(k_j)^T E
    dk_j = p sum_{i >= j} r_i exp(a_i - a_j) s_ij^{p-1} (dy_i . v_j - delta_i) q_i
         + p exp(A - a_j) (1/p grad_k (phi(k_j)^T E v_j) + phi_{p-1}(k_j)^T EZ)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power import query_gradient_hopper
from powerbench.kernels.power.attend import brick_counts_on, inverse, power, since
from powerbench.kernels.power.contract import contract, contract_gradient
from powerbench.kernels.power.contract_hopper import state_brick
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.key_value_hopper import key_value_attention_hopper
from powerbench.kernels.power.key_value_state_hopper import key_value_state_hopper
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import brick, chunks, key_value_gradient_tiles, state_rows


@triton.jit
def gradient_of_keys(
    b_dk, b_dv, b_kdk, b_k, b_v, b_aj, b_lj, a_ref, l_ref, o_i, o_j, i_g, p_q, p_dy, p_den, p_delta, p_a, p_l,
    scale_p, length, stride_qt, stride_qh, stride_dyt, stride_dyh,
    heads, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, GATED: tl.constexpr,
    NORMALIZE: tl.constexpr, DIAGONAL: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """(b_dk, b_dv, b_kdk), dk and k . dk without their p, plus the queries o_i [BM] of head i_g.

    Off the diagonal gates count to a_ref. Sums of gates are pairs (a, l), as `gates` writes them.
    """
    m_i = o_i < length
    p_qi = (
        p_q + tl.cast(i_g, tl.int64) * stride_qh + o_i.to(tl.int64)[:, None] * stride_qt + tl.arange(0, HEAD)[None, :]
    )
    p_dyi = (
        p_dy + tl.cast(i_g, tl.int64) * stride_dyh + o_i.to(tl.int64)[:, None] * stride_dyt + tl.arange(0, E)[None, :]
    )
    b_q = tl.load(p_qi, mask=m_i[:, None], other=0.0)  # [BM, HEAD]
    b_dy = tl.load(p_dyi, mask=m_i[:, None], other=0.0)  # [BM, E]
    # Both before the first product, so that their copies in shared memory are alive together and lie apart. Where one
    # takes the other's place, ptxas 12.8, which Triton 3.6 brings, reads the second one's address from registers that
    # nothing has written: a wrong dk, or an illegal access (float16; `python -m tools.machine_code` finds such code).
    b_q_op = b_q.to(OP)
    b_dy_op = b_dy.to(OP)
    b_w = tl.zeros([o_i.shape[0]], tl.float32) + scale_p  # [BM]
    if NORMALIZE:
        o_row = o_i.to(tl.int64) * heads + i_g
        b_w = inverse(tl.load(p_den + o_row, mask=m_i, other=1.0))
    b_s = tl.dot(b_k, tl.trans(b_q.to(SCORES)), input_precision="ieee")  # [BN, BM]
    b_f = power(b_s * FACTOR, P - 1) * FACTOR  # so that b_f b_s is (factor s)^p, and b_f p times its gradient
    if GATED:
        b_ai = tl.load(p_a + tl.minimum(o_i, length - 1))
        b_li = tl.load(p_l + tl.minimum(o_i, length - 1))
        if DIAGONAL:  # masked before the exponential, which could overflow above the diagonal
            b_since = since(
                b_ai[None, :], b_li[None, :], b_aj[:, None], b_lj[:, None], a_ref, l_ref, SCORES == tl.float32
            )  # fmt: skip
            b_f *= tl.exp(tl.where(o_j[:, None] <= o_i[None, :], b_since, 0.0))
        else:
            b_w *= tl.exp((b_ai - a_ref) + (b_li - l_ref))
    b_f *= b_w[None, :]
    if DIAGONAL:
        b_f = tl.where(o_j[:, None] <= o_i[None, :], b_f, 0.0)
    b_ds = tl.dot(b_v, tl.trans(b_dy.to(SCORES)), input_precision="ieee")  # [BN, BM]
    if NORMALIZE:
        b_ds -= tl.load(p_delta + o_row, mask=m_i, other=0.0)[None, :]
    b_p = b_f * b_s
    if GATED:
        b_kdk += tl.sum(b_p * b_ds, 1)
    b_dv = tl.dot(b_p.to(OP), b_dy_op, b_dv, input_precision="ieee")
    b_ds *= b_f
    b_dk = tl.dot(b_ds.to(OP), b_q_op, b_dk, input_precision="ieee")
    return b_dk, b_dv, b_kdk


@triton.jit(do_not_specialize=["seqlen", "n_chunks", "n_future", "n_blocks", "kv_heads"])
def key_value_gradient_kernel(
    dy_ptr, q_ptr, k_ptr, v_ptr, den_ptr, delta_ptr, a_ptr, e_ptr, counts_ptr, counts_z_ptr, dk_ptr, dv_ptr, kdk_ptr,
    scale_p, seqlen, chunk, n_chunks, n_future, n_blocks, elements, z_start, z_width, n_prefixes,
    stride_dyb, stride_dyt, stride_dyh, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    kv_heads, GROUP: tl.constexpr, P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr,
    GATED: tl.constexpr, NORMALIZE: tl.constexpr, STATE: tl.constexpr, WITH_Z: tl.constexpr,
    FIBRES: tl.constexpr, COLS: tl.constexpr, FIBRES_Z: tl.constexpr, COLS_Z: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, SCORES: tl.constexpr, OP: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """BN key rows of one chunk and key/value head. Gradients of the state leave the chunks before `n_future`."""
    pid = tl.program_id(0)
    i_m = pid % n_blocks  # the keys that most queries see first
    i_n = pid // n_blocks % n_chunks
    i_bh = pid // n_blocks // n_chunks
    i_b = (i_bh // kv_heads).to(tl.int64)  # offsets times strides are int64
    i_h = (i_bh % kv_heads).to(tl.int64)
    i_bh = i_bh.to(tl.int64)
    start = (i_n * chunk).to(tl.int64)
    length = tl.minimum(chunk, seqlen - i_n * chunk)
    row_0 = i_m * BN
    if row_0 >= length:
        return

    o_i = tl.arange(0, BM)
    o_j = row_0 + tl.arange(0, BN)
    o_d = tl.arange(0, HEAD)
    o_e = tl.arange(0, E)
    m_j = o_j < length
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh + (start + o_j) * stride_kt  # [BN]
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh + (start + o_j) * stride_vt
    p_q = q_ptr + i_b * stride_qb + i_h * GROUP * stride_qh + start * stride_qt
    p_dy = dy_ptr + i_b * stride_dyb + i_h * GROUP * stride_dyh + start * stride_dyt
    o_row = ((i_b * seqlen + start) * kv_heads + i_h) * GROUP  # of den and delta
    p_den, p_delta = den_ptr, delta_ptr
    if NORMALIZE:
        p_den = den_ptr + o_row
        p_delta = delta_ptr + o_row
    row_out = (i_b * seqlen + start) * kv_heads + i_h  # int64: the chunk's first row of dk, dv and k . dk
    b_v = tl.load(p_v[:, None] + o_e[None, :], mask=m_j[:, None], other=0.0)  # [BN, E]
    b_dk = tl.zeros([BN, HEAD], tl.float32)
    b_dv = tl.zeros([BN, E], tl.float32)
    b_kdk = tl.zeros([BN], tl.float32)
    p_a, a_ref, b_aj = a_ptr, 0.0, tl.zeros([BN], tl.float32)
    p_l, l_ref, b_lj = a_ptr, 0.0, b_aj
    if GATED:
        p_a = a_ptr + (i_bh * n_chunks + i_n) * chunk
        p_l = p_a + (tl.num_programs(0) // n_blocks).to(tl.int64) * chunk  # the low parts follow all high ones
        a_ref = tl.load(p_a + tl.minimum(row_0 + BN, length) - 1)
        l_ref = tl.load(p_l + tl.minimum(row_0 + BN, length) - 1)
        b_aj = tl.load(p_a + tl.minimum(o_j, length - 1))  # [BN]
        b_lj = tl.load(p_l + tl.minimum(o_j, length - 1))

    if STATE:
        has_state = (i_n < n_future).to(tl.int32)
        p_e = e_ptr + (i_bh * n_future + tl.minimum(i_n, n_future - 1)) * elements
        b_dv = contract(b_dv, p_k, m_j, p_e, counts_ptr, has_state, P, HEAD, E, W, FIBRES, COLS, OP)
        if WITH_Z:
            if P == 1:  # its Z is dz, against ones
                b_dk += tl.load(p_e + z_start + o_d * z_width, mask=o_d < HEAD * has_state, other=0.0)[None, :]
            else:
                b_dk = contract(
                    b_dk, p_k, m_j, p_e + z_start, counts_z_ptr, has_state,
                    P - 1, HEAD, HEAD, W, FIBRES_Z, COLS_Z, OP,
                )  # fmt: skip
        b_dk = contract_gradient(b_dk, p_k, m_j, b_v, p_e, n_prefixes, has_state, P, HEAD, E, W, OP)
        if GATED:  # from the block's last row on; up to there with the queries, below
            decay = tl.exp((tl.load(p_a + chunk - 1) - a_ref) + (tl.load(p_l + chunk - 1) - l_ref))
            b_dk *= decay
            b_dv *= decay
            b_x = tl.load(p_k[:, None] + o_d[None, :], mask=m_j[:, None], other=0.0)
            b_kdk = tl.sum(b_dk * b_x.to(tl.float32), 1)

    # After the block's last row exp(a_i - a_j) is exp(a_i - a_ref) * exp(a_ref - a_j), a_ref that row's: both are at
    # most 1, and the exponentials are of vectors instead of a [BN, BM] tile.
    b_k = tl.load(p_k[:, None] + o_d[None, :], mask=m_j[:, None], other=0.0).to(SCORES)  # [BN, HEAD]
    b_v = b_v.to(SCORES)
    after = row_0 + tl.maximum(BM, BN)
    n_after = tl.cdiv(tl.maximum(length - after, 0), BM)
    for step in range(0, n_after * GROUP):
        b_dk, b_dv, b_kdk = gradient_of_keys(
            b_dk, b_dv, b_kdk, b_k, b_v, b_aj, b_lj, a_ref, l_ref,
            after + step // GROUP * BM + o_i, o_j, step % GROUP,
            p_q, p_dy, p_den, p_delta, p_a, p_l, scale_p, length,
            stride_qt, stride_qh, stride_dyt, stride_dyh,
            kv_heads * GROUP, P, HEAD, E, GATED, NORMALIZE, False, SCORES, OP, FACTOR,
        )  # fmt: skip
    if GATED:
        b_decay = tl.exp((a_ref - b_aj) + (l_ref - b_lj))
        b_dk *= b_decay[:, None]
        b_dv *= b_decay[:, None]
        b_kdk *= b_decay
    n_here = tl.cdiv(tl.minimum(length - row_0, BN), BM)
    for step in range(0, n_here * GROUP):
        b_dk, b_dv, b_kdk = gradient_of_keys(
            b_dk, b_dv, b_kdk, b_k, b_v, b_aj, b_lj, a_ref, l_ref,
            row_0 + step // GROUP * BM + o_i, o_j, step % GROUP,
            p_q, p_dy, p_den, p_delta, p_a, p_l, scale_p, length,
            stride_qt, stride_qh, stride_dyt, stride_dyh,
            kv_heads * GROUP, P, HEAD, E, GATED, NORMALIZE, True, SCORES, OP, FACTOR,
        )  # fmt: skip

    b_dk *= P
    o_out = row_out + o_j * kv_heads  # int64 [BN]: rows of dk, dv and k . dk
    if GATED:
        tl.store(kdk_ptr + o_out, b_kdk * P, mask=m_j)
    tl.store(dk_ptr + o_out[:, None] * HEAD + o_d[None, :], b_dk.to(dk_ptr.dtype.element_ty), mask=m_j[:, None])
    tl.store(dv_ptr + o_out[:, None] * E + o_e[None, :], b_dv.to(dv_ptr.dtype.element_ty), mask=m_j[:, None])


def key_value_gradient(
    dy: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    den: Tensor | None,
    delta: Tensor | None,
    a: Tensor | None,
    dr: Tensor | None,
    sizes: StateSizes,
    *,
    p: int,
    chunk_size: int,
    d_tile: int,
    scale: float,
    normalize: bool,
    scores: tl.dtype,
    operand: tl.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """dk [B, T, Hk, d], dv [B, T, Hk, e] in k's dtype and, with gates, k . dk float32 [B, T, Hk] before dk is rounded.

    dy [B, T, H, e], q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in one dtype, last dimension contiguous; den and
    delta float32 [B, T, H] if `normalize`; a float32 [2, B, Hk, N, C] or None; dr [B, Hk, n, elements] in the layout
    `sizes`, the gradients of the states that leave the chunks 0 .. n - 1 (None where none has one), n = N - 1 or N.
    """
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    dk = torch.empty(B, T, Hk, d, dtype=k.dtype, device=k.device)
    dv = torch.empty(B, T, Hk, e, dtype=k.dtype, device=k.device)
    kdk = None if a is None else torch.empty(B, T, Hk, dtype=torch.float32, device=k.device)
    if query_gradient_hopper.serves(
        q.dtype, q.device, d, e, p, with_state=dr is not None, with_z=sizes.z_rows > 0
    ) and (dr is None or state_brick(d_tile)):
        if dr is not None:
            key_value_state_hopper(k, v, a, dr, sizes, dk, dv, p=p, chunk_size=C, d_tile=d_tile)
        key_value_attention_hopper(
            dy, q, k, v, den, delta, a, dk, dv, kdk,
            p=p, chunk_size=C, scale=scale, normalize=normalize, add=dr is not None,
        )  # fmt: skip
        return dk, dv, kdk
    tiles = key_value_gradient_tiles(d, e, C, q.element_size())
    rows = state_rows(q.element_size())
    degrees = p, max(p - 1, 1)
    shape, shape_z = (brick(d, degree, d_tile, rows) for degree in degrees)
    counts, counts_z = (brick_counts_on(q.device, d, degree, d_tile, rows) for degree in degrees)
    blocks = triton.cdiv(C, tiles.rows)
    factor, rest = split_scale(scale, p)
    key_value_gradient_kernel[(blocks * N * B * Hk,)](
        dy, q, k, v, den, delta, a, dr, counts, counts_z, dk, dv, kdk, rest**p,
        T, C, N, 0 if dr is None else dr.shape[2], blocks, sizes.elements, sizes.z_start, sizes.z_width,
        tspow_dim(d, p - 1, d_tile) if p > 1 else 1,
        *dy.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        kv_heads=Hk, GROUP=H // Hk, P=p, HEAD=d, E=e, W=d_tile, GATED=a is not None, NORMALIZE=normalize,
        STATE=dr is not None, WITH_Z=sizes.z_rows > 0,
        FIBRES=shape.fibres, COLS=shape.columns, FIBRES_Z=shape_z.fibres, COLS_Z=shape_z.columns,
        BM=tiles.tokens, BN=tiles.rows, SCORES=scores, OP=operand, FACTOR=factor,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    return dk, dv, kdk
