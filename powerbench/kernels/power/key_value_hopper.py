"""key_value_attention for Hopper in Gluon: the part of `key_value_gradient` that comes from queries of the same chunk.

A program owns BM keys, whose k and v stay in shared memory, and walks the queries that see them, BN a step, for every
head of the group: first the blocks after its own last row, then those on the diagonal. The tiles are transposed, keys
by queries, so that what the products make is the register operand of the next ones. The two products of the next block,
k q^T and v dy^T, run together with the two of this one that add to dv and dk.

Gates are two vectors, exp(a_i - a_ref) and exp(a_ref - a_j), a_ref that of the block's last key. After the block both
are at most 1. On the diagonal the first exceeds 1; as long as the gates of the block lose less than MILD in all, that
fits every dtype here, and the same vectors do. Else the accumulators take exp(a_ref - a_j) before the diagonal, and
each pair on it its own exponential.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from powerbench.kernels.power.attend_hopper import MILD, inverse, powered
from powerbench.kernels.power.hopper import copy_rows, row_copy, store_rows
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.tiling import chunks


class KeyValueTiles(NamedTuple):
    """Keys a program, queries a step, buffers of copies of queries, and warps: one for 16 keys."""

    keys: int
    queries: int
    stages: int
    num_warps: int


@gluon.jit
def queries_of(step, n_after, row_0, GROUP: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr):
    """Head of the group, and first query in the chunk, of a step: n_after blocks after the keys, then their own.

    Heads change fastest: GROUP is a constant, so that nothing is divided by a variable.
    """
    block = step // GROUP
    t_0 = gl.where(block < n_after, BM + block * BN, (block - n_after) * BN)
    return step % GROUP, row_0 + t_0


@gluon.jit
def copy_queries(step, n_steps, n_after, row_0, length, p_q, p_dy, stride_qt, stride_qh, stride_dyt, stride_dyh,
                 q_smem, dy_smem, q_copy: gl.constexpr, dy_copy: gl.constexpr, GROUP: gl.constexpr, BM: gl.constexpr,
                 BN: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Starts the copies of q and dy of one step; past the last step and past `length` zeros are written."""
    i_g, t_0 = queries_of(step, n_after, row_0, GROUP, BM, BN)
    left = gl.where(step < n_steps, length - t_0, 0)
    slot = step % STAGES
    i_g = i_g.to(gl.int64)
    o_t = t_0.to(gl.int64)
    base_q = p_q + i_g * stride_qh + o_t * stride_qt
    base_dy = p_dy + i_g * stride_dyh + o_t * stride_dyt
    copy_rows(base_q, stride_qt, left, q_smem.index(slot), q_copy, BN, HEAD)
    copy_rows(base_dy, stride_dyt, left, dy_smem.index(slot), dy_copy, BN, E)
    async_copy.commit_group()


@gluon.jit
def load_weights(step, n_after, row_0, length, p_den, p_delta, p_a, line: gl.constexpr, heads,
                 GROUP: gl.constexpr, GATED: gl.constexpr, NORMALIZE: gl.constexpr, BM: gl.constexpr,
                 BN: gl.constexpr):  # fmt: skip
    """den, delta and a of the queries of a step, float32 [BN]; 1 and 0 past `length`, where q and dy are 0 too."""
    i_g, t_0 = queries_of(step, n_after, row_0, GROUP, BM, BN)
    o_i = t_0 + gl.arange(0, BN, layout=line)
    b_den = gl.full([BN], 1.0, gl.float32, line)
    b_delta = gl.zeros([BN], gl.float32, line)
    b_a = gl.zeros([BN], gl.float32, line)
    if NORMALIZE:
        o_row = o_i.to(gl.int64) * heads + i_g
        b_den = gl.load(p_den + o_row, mask=o_i < length, other=1.0)
        b_delta = gl.load(p_delta + o_row, mask=o_i < length, other=0.0)
    if GATED:
        b_a = gl.load(p_a + gl.minimum(o_i, length - 1))
    return b_den, b_delta, b_a


@gluon.jit
def factor_after(factor, P: gl.constexpr):
    """What makes factor^p s^(p-1) of s^(p-1), or of (factor s)^(p-1) where that is a power at all."""
    return factor if P >= 3 else powered(factor, P)


@gluon.jit
def store_weights(
    slot,
    b_den,
    b_delta,
    b_loss,
    factor,
    w_smem,
    delta_smem,
    P: gl.constexpr,
    GATED: gl.constexpr,
    NORMALIZE: gl.constexpr,
):
    """r_i exp(b_loss), and the factor of `weighted`, and delta_i to shared memory; no r_i where it is one for all."""
    after = factor_after(factor, P)
    if NORMALIZE:
        b_w = inverse(b_den) * after
        if GATED:
            b_w = b_w * gl.exp(b_loss)
        w_smem.index(slot).store(b_w)
        delta_smem.index(slot).store(b_delta)
    elif GATED:
        w_smem.index(slot).store(gl.exp(b_loss) * after)


@gluon.jit
def weighted(slot, b_s, factor, w_smem, P: gl.constexpr, WEIGHTED: gl.constexpr):
    """factor^p s^(p-1) times the weight of its query: float32 as b_s [BM, BN]."""
    s_col: gl.constexpr = gl.SliceLayout(0, b_s.type.layout)
    b_f = powered(b_s * factor if P >= 3 else b_s, P - 1)
    if WEIGHTED:  # the factor is in the weight
        b_f = b_f * w_smem.index(slot).load(s_col)[None, :]
    else:
        b_f = b_f * factor_after(factor, P)
    return b_f


@gluon.jit
def operands(slot, b_f, b_s, b_da, delta_smem, p_layout: gl.constexpr, ds_layout: gl.constexpr,
             NORMALIZE: gl.constexpr):  # fmt: skip
    """P^T and dS^T without its p, bf16 [BM, BN], from s^(p-1) weighted, s and dy . v."""
    s_col: gl.constexpr = gl.SliceLayout(0, b_s.type.layout)
    if NORMALIZE:
        b_da = b_da - delta_smem.index(slot).load(s_col)[None, :]
    b_p = gl.convert_layout((b_f * b_s).to(gl.bfloat16), p_layout)
    b_ds = gl.convert_layout((b_f * b_da).to(gl.bfloat16), ds_layout)
    return b_p, b_ds


@gluon.jit
def add_products(
    b_p, b_ds, b_s, b_da, b_dv, b_dk, no_scores, at, k_smem, v_smem, q_smem, dy_smem, LAST: gl.constexpr
):  # fmt: skip
    """dv + P^T dy and dk + dS^T q of the queries of step `at`, and, unless LAST, k q^T and v dy^T of the next."""
    STAGES: gl.constexpr = q_smem.shape[0]
    q_now, dy_now = q_smem.index(at % STAGES), dy_smem.index(at % STAGES)
    q_next, dy_next = q_smem.index((at + 1) % STAGES), dy_smem.index((at + 1) % STAGES)
    # dv and dk first: scores are dead by then, so that the next ones take their registers
    b_dv = warpgroup_mma(b_p, dy_now, b_dv, is_async=True)
    b_dk = warpgroup_mma(b_ds, q_now, b_dk, is_async=True)
    if LAST:
        b_dv, b_dk, _, _ = warpgroup_mma_wait(0, deps=[b_dv, b_dk, b_p, b_ds])
    else:
        b_s = warpgroup_mma(k_smem, q_next.permute((1, 0)), no_scores, use_acc=False, is_async=True)
        b_da = warpgroup_mma(v_smem, dy_next.permute((1, 0)), no_scores, use_acc=False, is_async=True)
        # the products read the registers of b_p and b_ds until here
        b_s, b_da, b_dv, b_dk, _, _ = warpgroup_mma_wait(0, deps=[b_s, b_da, b_dv, b_dk, b_p, b_ds])
    return b_s, b_da, b_dv, b_dk


@gluon.jit
def diagonal(block, slot, mild, b_s, b_da, b_aj, p_a, rows_left, factor, w_smem, delta_smem, p_layout: gl.constexpr,
             ds_layout: gl.constexpr, P: gl.constexpr, GATED: gl.constexpr, NORMALIZE: gl.constexpr):  # fmt: skip
    """`operands` of a block on the diagonal, where only queries from a key on count. p_a is that of the first key."""
    BM: gl.constexpr = b_s.shape[0]
    BN: gl.constexpr = b_s.shape[1]
    s_layout: gl.constexpr = b_s.type.layout
    o_j = gl.arange(0, BM, layout=gl.SliceLayout(1, s_layout))
    o_i = block * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, s_layout))
    b_f = weighted(slot, b_s, factor, w_smem, P, GATED or NORMALIZE)
    if GATED and not mild:
        b_ai = gl.load(p_a + gl.minimum(o_i, rows_left - 1))
        b_f = b_f * gl.exp(gl.minimum(b_ai[None, :] - b_aj[:, None], 0.0))  # before the mask it could overflow
    b_f = gl.where(o_j[:, None] <= o_i[None, :], b_f, 0.0)
    return operands(slot, b_f, b_s, b_da, delta_smem, p_layout, ds_layout, NORMALIZE)


@gluon.jit(do_not_specialize=["seqlen", "n_chunks", "n_blocks", "heads"])
def key_value_hopper_kernel(
    dy_ptr, q_ptr, k_ptr, v_ptr, den_ptr, delta_ptr, a_ptr, dk_ptr, dv_ptr, kdk_ptr, scale_p, factor,
    seqlen, chunk, n_chunks, n_blocks,
    stride_dyb, stride_dyt, stride_dyh, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh,
    heads, GROUP: gl.constexpr, P: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr,
    GATED: gl.constexpr, NORMALIZE: gl.constexpr, ADD: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr, MILD: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """BM keys of one chunk and key/value head."""
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, E, 16])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BN, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, dk_layout, 2)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dv_layout, 2)
    s_row: gl.constexpr = gl.SliceLayout(1, s_layout)
    dk_row: gl.constexpr = gl.SliceLayout(1, dk_layout)
    dv_row: gl.constexpr = gl.SliceLayout(1, dv_layout)
    q_copy: gl.constexpr = row_copy(HEAD, num_warps)
    dy_copy: gl.constexpr = row_copy(E, num_warps)
    line: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])

    pid = gl.program_id(0)
    i_m = pid % n_blocks  # the keys that most queries see first
    i_n = pid // n_blocks % n_chunks
    i_bh = pid // n_blocks // n_chunks
    i_b = (i_bh // (heads // GROUP)).to(gl.int64)  # offsets times strides are int64
    i_h = (i_bh % (heads // GROUP)).to(gl.int64)
    i_bh = i_bh.to(gl.int64)
    start = (i_n * chunk).to(gl.int64)
    length = gl.minimum(chunk, seqlen - i_n * chunk)
    row_0 = i_m * BM
    if row_0 >= length:
        return
    rows_left = length - row_0
    n_after = gl.cdiv(gl.maximum(rows_left - BM, 0), BN)
    n_off = n_after * GROUP
    n_steps = n_off + BM // BN * GROUP
    p_q = q_ptr + i_b * stride_qb + i_h * GROUP * stride_qh + start * stride_qt
    p_dy = dy_ptr + i_b * stride_dyb + i_h * GROUP * stride_dyh + start * stride_dyt
    o_first = (i_b * seqlen + start) * heads + i_h * GROUP  # of den and delta
    p_den, p_delta = den_ptr, delta_ptr
    if NORMALIZE:
        p_den = den_ptr + o_first
        p_delta = delta_ptr + o_first
    p_a, p_a_here = a_ptr, a_ptr
    a_ref = 0.0
    mild = True
    o_m = gl.arange(0, BM, layout=s_row)
    b_aj = gl.zeros([BM], gl.float32, s_row)
    if GATED:
        p_a = a_ptr + (i_bh * n_chunks + i_n) * chunk
        p_a_here = p_a + row_0
        last = gl.minimum(BM, rows_left) - 1
        a_ref = gl.load(p_a_here + last)
        mild = gl.load(p_a_here) - a_ref < MILD
        b_aj = gl.load(p_a_here + gl.minimum(o_m, last))

    k_smem = gl.allocate_shared_memory(
        gl.bfloat16, [BM, HEAD], gl.NVMMASharedLayout.get_default_for([BM, HEAD], gl.bfloat16)
    )
    v_smem = gl.allocate_shared_memory(gl.bfloat16, [BM, E], gl.NVMMASharedLayout.get_default_for([BM, E], gl.bfloat16))
    q_smem = gl.allocate_shared_memory(
        gl.bfloat16, [STAGES, BN, HEAD], gl.NVMMASharedLayout.get_default_for([BN, HEAD], gl.bfloat16)
    )
    dy_smem = gl.allocate_shared_memory(
        gl.bfloat16, [STAGES, BN, E], gl.NVMMASharedLayout.get_default_for([BN, E], gl.bfloat16)
    )
    w_smem = gl.allocate_shared_memory(gl.float32, [2, BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    delta_smem = gl.allocate_shared_memory(gl.float32, [2, BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh + (start + row_0) * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh + (start + row_0) * stride_vt
    copy_rows(p_k, stride_kt, rows_left, k_smem, q_copy, BM, HEAD)
    copy_rows(p_v, stride_vt, rows_left, v_smem, dy_copy, BM, E)
    async_copy.commit_group()
    for step in gl.static_range(STAGES - 2):
        copy_queries(
            step, n_steps, n_after, row_0, length, p_q, p_dy, stride_qt, stride_qh, stride_dyt, stride_dyh,
            q_smem, dy_smem, q_copy, dy_copy, GROUP, BM, BN, HEAD, E, STAGES,
        )  # fmt: skip
    b_den, b_delta, b_a = load_weights(
        0, n_after, row_0, length, p_den, p_delta, p_a, line, heads, GROUP, GATED, NORMALIZE, BM, BN
    )
    b_dk = gl.zeros([BM, HEAD], gl.float32, dk_layout)
    b_dv = gl.zeros([BM, E], gl.float32, dv_layout)
    no_scores = gl.zeros([BM, BN], gl.float32, s_layout)
    async_copy.wait_group(STAGES - 3)
    b_s = warpgroup_mma(k_smem, q_smem.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    b_da = warpgroup_mma(v_smem, dy_smem.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    b_s, b_da = warpgroup_mma_wait(0, deps=[b_s, b_da])
    async_copy.wait_group(STAGES - 3)  # for its barrier: without it the compiler puts one into the loop
    for step in range(n_off):
        store_weights(step % 2, b_den, b_delta, b_a - a_ref, factor, w_smem, delta_smem, P, GATED, NORMALIZE)
        b_den, b_delta, b_a = load_weights(
            step + 1, n_after, row_0, length, p_den, p_delta, p_a, line, heads, GROUP, GATED, NORMALIZE, BM, BN
        )
        # into the buffers of step - 2, whose products every warp has waited for before the barrier of step - 1
        copy_queries(
            step + STAGES - 2, n_steps, n_after, row_0, length, p_q, p_dy, stride_qt, stride_qh, stride_dyt, stride_dyh,
            q_smem, dy_smem, q_copy, dy_copy, GROUP, BM, BN, HEAD, E, STAGES,
        )  # fmt: skip
        async_copy.wait_group(STAGES - 3)  # and the barrier of w_smem and delta_smem
        b_f = weighted(step % 2, b_s, factor, w_smem, P, GATED or NORMALIZE)
        b_p, b_ds = operands(step % 2, b_f, b_s, b_da, delta_smem, p_layout, ds_layout, NORMALIZE)
        b_s, b_da, b_dv, b_dk = add_products(
            b_p, b_ds, b_s, b_da, b_dv, b_dk, no_scores, step, k_smem, v_smem, q_smem, dy_smem, False
        )

    b_decay = gl.exp(a_ref - b_aj)  # [BM]
    if GATED and not mild:
        b_dk = b_dk * gl.convert_layout(b_decay, dk_row)[:, None]
        b_dv = b_dv * gl.convert_layout(b_decay, dv_row)[:, None]
    for u in range(BM // BN * GROUP - 1):
        step = n_off + u
        store_weights(
            step % 2, b_den, b_delta, gl.where(mild, b_a - a_ref, 0.0), factor, w_smem, delta_smem, P, GATED, NORMALIZE
        )  # fmt: skip
        b_den, b_delta, b_a = load_weights(
            step + 1, n_after, row_0, length, p_den, p_delta, p_a, line, heads, GROUP, GATED, NORMALIZE, BM, BN
        )
        copy_queries(
            step + STAGES - 2, n_steps, n_after, row_0, length, p_q, p_dy, stride_qt, stride_qh, stride_dyt, stride_dyh,
            q_smem, dy_smem, q_copy, dy_copy, GROUP, BM, BN, HEAD, E, STAGES,
        )  # fmt: skip
        async_copy.wait_group(STAGES - 3)
        b_p, b_ds = diagonal(
            u // GROUP, step % 2, mild, b_s, b_da, b_aj, p_a_here, rows_left, factor, w_smem, delta_smem,
            p_layout, ds_layout, P, GATED, NORMALIZE,
        )  # fmt: skip
        b_s, b_da, b_dv, b_dk = add_products(
            b_p, b_ds, b_s, b_da, b_dv, b_dk, no_scores, step, k_smem, v_smem, q_smem, dy_smem, False
        )
    step = n_steps - 1
    store_weights(
        step % 2, b_den, b_delta, gl.where(mild, b_a - a_ref, 0.0), factor, w_smem, delta_smem, P, GATED, NORMALIZE
    )
    async_copy.wait_group(0)
    b_p, b_ds = diagonal(
        BM // BN - 1, step % 2, mild, b_s, b_da, b_aj, p_a_here, rows_left, factor, w_smem, delta_smem,
        p_layout, ds_layout, P, GATED, NORMALIZE,
    )  # fmt: skip
    b_s, b_da, b_dv, b_dk = add_products(
        b_p, b_ds, b_s, b_da, b_dv, b_dk, no_scores, step, k_smem, v_smem, q_smem, dy_smem, True
    )

    b_scale = gl.full([BM], 1.0, gl.float32, s_row)  # what dk and dv have in common
    if GATED:
        b_scale = gl.where(mild, b_decay, 1.0)
    if not NORMALIZE:
        b_scale = b_scale * scale_p
    b_dk = b_dk * gl.convert_layout(b_scale * P, dk_row)[:, None]
    b_dv = b_dv * gl.convert_layout(b_scale, dv_row)[:, None]
    o_row = (i_b * seqlen + start + row_0) * (heads // GROUP) + i_h  # int64: rows of dk, dv and k . dk
    o_k = gl.arange(0, BM, layout=dk_row)
    o_v = gl.arange(0, BM, layout=dv_row)
    o_d = gl.arange(0, HEAD, layout=gl.SliceLayout(0, dk_layout))
    o_e = gl.arange(0, E, layout=gl.SliceLayout(0, dv_layout))
    if ADD:
        p_dk = dk_ptr + o_row * HEAD + (o_k * (heads // GROUP * HEAD))[:, None] + o_d[None, :]
        p_dv = dv_ptr + o_row * E + (o_v * (heads // GROUP * E))[:, None] + o_e[None, :]
        m_dk = (o_k < rows_left)[:, None] & (o_d >= 0)[None, :]
        m_dv = (o_v < rows_left)[:, None] & (o_e >= 0)[None, :]
        b_dk += gl.load(p_dk, mask=m_dk, other=0.0).to(gl.float32)
        b_dv += gl.load(p_dv, mask=m_dv, other=0.0).to(gl.float32)
    if GATED:
        b_kdk = gl.sum(b_dk * k_smem.load(dk_layout).to(gl.float32), 1)
        gl.store(kdk_ptr + o_row + o_k * (heads // GROUP), b_kdk, mask=o_k < rows_left)
    heads_out = heads // GROUP
    store_rows(dk_ptr + o_row * HEAD, heads_out * HEAD, rows_left, b_dk.to(dk_ptr.dtype.element_ty), num_warps)
    store_rows(dv_ptr + o_row * E, heads_out * E, rows_left, b_dv.to(dv_ptr.dtype.element_ty), num_warps)


def _tiles(d: int, e: int) -> KeyValueTiles:
    """The best of those tried on an H200 (docs/kernel-notes.md); for wide heads what fits into registers."""
    return KeyValueTiles(64, 64, 4, 4) if max(d, e) <= 64 else KeyValueTiles(128, 64 if d + e <= 192 else 32, 4, 8)


def key_value_attention_hopper(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, den: Tensor | None, delta: Tensor | None, a: Tensor | None,
    dk: Tensor, dv: Tensor, kdk: Tensor | None,
    *, p: int, chunk_size: int, scale: float, normalize: bool, add: bool, tiles: KeyValueTiles | None = None,
) -> None:  # fmt: skip
    """Writes dk [B, T, Hk, d], dv [B, T, Hk, e] bf16 and, with gates, k . dk float32 [B, T, Hk] before dk is rounded.

    With `add` the values in dk and dv, the part that comes from the state, are added to. Arguments as
    `key_value_gradient`, bf16; dk, dv and kdk contiguous.
    """
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    tiles = tiles or _tiles(d, e)
    blocks = triton.cdiv(C, tiles.keys)
    factor, rest = split_scale(scale, p)
    key_value_hopper_kernel[(blocks * N * B * Hk,)](
        dy, q, k, v, den if normalize else None, delta if normalize else None, a, dk, dv, kdk, rest**p, factor,
        T, C, N, blocks,
        *dy.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        heads=H, GROUP=H // Hk, P=p, HEAD=d, E=e, GATED=a is not None, NORMALIZE=normalize, ADD=add,
        BM=tiles.keys, BN=tiles.queries, STAGES=tiles.stages, MILD=MILD, num_warps=tiles.num_warps,
    )  # fmt: skip
