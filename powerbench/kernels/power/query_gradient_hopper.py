"""query_gradient for Hopper in Gluon: what `query_gradient` computes, with the layout of every operand written down.

First the state, then the keys of the chunk, in one accumulator, as in `attend_hopper`. A block of keys takes three
products: scores for the next block run beside ds k of this one, and dy v^T by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from powerbench.kernels.power import hopper
from powerbench.kernels.power.attend_hopper import MILD, copy_keys, inverse, powered
from powerbench.kernels.power.contract_hopper import columns_of, contract_gradient_state, prefix_steps_on
from powerbench.kernels.power.hopper import copy_rows, packed, reinterpret, row_copy, store_rows
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import chunks


class QueryTiles(NamedTuple):
    """Query rows a program, keys a block, buffers of copies of keys, warps."""

    rows: int
    keys: int
    key_stages: int
    num_warps: int


@gluon.jit(do_not_specialize=["seqlen", "n_chunks", "first", "n_blocks", "heads", "group"])
def query_gradient_hopper_kernel(
    dy_ptr, q_ptr, k_ptr, v_ptr, y_ptr, den_ptr, a_ptr, r_ptr, steps_ptr, rows_ptr,
    dq_ptr, delta_ptr, w_ptr, zw_ptr, qdq_ptr, scale_p, factor,
    seqlen, chunk, n_chunks, first, n_blocks, elements, z_start, n_steps,
    stride_dyb, stride_dyt, stride_dyh, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh,
    stride_vb, stride_vt, stride_vh, stride_yb, stride_yt, stride_yh,
    heads, group, P: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr,
    GATED: gl.constexpr, NORMALIZE: gl.constexpr, STATE: gl.constexpr, WEIGHTS: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, KEY_STAGES: gl.constexpr, MILD: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """BM query rows of one chunk and head. No state comes into the chunks before `first`."""
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BN, 16])
    ds_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, acc_layout)
    s_row: gl.constexpr = gl.SliceLayout(1, s_layout)
    s_col: gl.constexpr = gl.SliceLayout(0, s_layout)
    q_copy: gl.constexpr = row_copy(HEAD, num_warps)
    v_copy: gl.constexpr = row_copy(E, num_warps)
    line: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])
    dy_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, E], gl.bfloat16)

    pid = gl.program_id(0)
    i_m = n_blocks - 1 - pid % n_blocks  # the longest rows first
    i_g = pid // n_blocks % group  # then the heads of a group: neighbours read the same state and keys
    i_n = pid // n_blocks // group % n_chunks
    i_bhk = pid // n_blocks // group // n_chunks
    i_b = (i_bhk // (heads // group)).to(gl.int64)  # offsets times strides are int64
    i_hk = (i_bhk % (heads // group)).to(gl.int64)
    i_bhk = i_bhk.to(gl.int64)
    i_h = i_hk * group + i_g
    start = (i_n * chunk).to(gl.int64)
    length = gl.minimum(chunk, seqlen - i_n * chunk)
    row_0 = i_m * BM
    rows_left = length - row_0
    o_m = gl.arange(0, BM, layout=row_layout)
    o_w = ((i_b * heads + i_h) * n_chunks + i_n) * chunk + row_0 + o_m  # int64 [BM]: the weights, [B, H, N, C]
    if rows_left <= 0:
        if WEIGHTS:  # past the end of the sequence they must be numbers
            gl.store(w_ptr + o_w, gl.zeros([BM], gl.float32, row_layout), mask=row_0 + o_m < chunk)
            gl.store(zw_ptr + o_w, gl.zeros([BM], gl.float32, row_layout), mask=row_0 + o_m < chunk)
        return
    p_q = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + row_0) * stride_qt
    p_dy = dy_ptr + i_b * stride_dyb + i_h * stride_dyh + (start + row_0) * stride_dyt
    p_k = k_ptr + i_b * stride_kb + i_hk * stride_kh + start * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_hk * stride_vh + start * stride_vt
    o_row = (i_b * seqlen + start + row_0 + o_m) * heads + i_h  # int64 [BM]: rows of dq, and den, delta, q . dq
    m_row = o_m < rows_left

    q_smem = gl.allocate_shared_memory(
        gl.bfloat16, [BM, HEAD], gl.NVMMASharedLayout.get_default_for([BM, HEAD], gl.bfloat16)
    )
    dy_smem = gl.allocate_shared_memory(gl.bfloat16, [1, BM, E], dy_layout)
    copy_rows(p_q, stride_qt, rows_left, q_smem, q_copy, BM, HEAD)
    copy_rows(p_dy, stride_dyt, rows_left, dy_smem.index(0), v_copy, BM, E)
    async_copy.commit_group()

    delta = gl.zeros([BM], gl.float32, row_layout)
    b_r = gl.full([BM], 1.0, gl.float32, row_layout) * scale_p
    if NORMALIZE:
        p_y = y_ptr + i_b * stride_yb + i_h * stride_yh + (start + row_0) * stride_yt
        o_r = gl.arange(0, BM, layout=gl.SliceLayout(1, v_copy))
        o_e = gl.arange(0, E, layout=gl.SliceLayout(0, v_copy))
        mask = (o_r[:, None] < rows_left) & (o_e[None, :] >= 0)
        b_y = gl.load(p_y + (o_r[:, None] * stride_yt + o_e[None, :]), mask=mask, other=0.0).to(gl.float32)
        b_dy = gl.load(p_dy + (o_r[:, None] * stride_dyt + o_e[None, :]), mask=mask, other=0.0).to(gl.float32)
        delta = gl.convert_layout(gl.sum(b_y * b_dy, 1), row_layout)
        gl.store(delta_ptr + o_row, delta, mask=m_row)
        b_r = inverse(gl.load(den_ptr + o_row, mask=m_row, other=1.0))
    p_a = a_ptr
    a_ref = 0.0
    b_decay = gl.full([BM], 1.0, gl.float32, row_layout)
    mild = True
    if GATED:
        p_a = a_ptr + (i_bhk * n_chunks + i_n) * chunk
        a_ref = gl.load(p_a + row_0)
        last = gl.minimum(BM, rows_left) - 1
        mild = a_ref - gl.load(p_a + row_0 + last) < MILD
        b_a = gl.load(p_a + row_0 + gl.minimum(o_m, last))
        b_decay = gl.exp(b_a - a_ref)
    if WEIGHTS:
        b_w = gl.where(m_row, b_r, 0.0) * powered(factor, P)
        if GATED:
            b_w = b_w * gl.exp(b_a)
        gl.store(w_ptr + o_w, b_w, mask=row_0 + o_m < chunk)
        gl.store(zw_ptr + o_w, -delta * b_w, mask=row_0 + o_m < chunk)

    acc = gl.zeros([BM, HEAD], gl.float32, acc_layout)
    if STATE:
        if i_n >= first:
            p_r = r_ptr + (i_bhk * (n_chunks - first) + i_n - first) * elements
            columns = columns_of(p_q, stride_qt, rows_left, BM, HEAD, num_warps)
            if NORMALIZE:
                z_smem = gl.allocate_shared_memory(
                    gl.bfloat16, [HEAD, HEAD], gl.NVMMASharedLayout.get_default_for([HEAD, HEAD], gl.bfloat16)
                )
                copy_rows(p_r + z_start, HEAD, HEAD, z_smem, q_copy, HEAD, HEAD)
                async_copy.commit_group()
                async_copy.wait_group(0)
                acc = warpgroup_mma(q_smem, z_smem, acc, is_async=True)
                acc = warpgroup_mma_wait(0, deps=[acc])
                acc = acc * -delta[:, None]
            else:
                async_copy.wait_group(0)
            dy_pairs = reinterpret(dy_smem, gl.int32, [1, BM, E // 2], packed(dy_layout))
            acc = contract_gradient_state(
                acc, p_r, steps_ptr, rows_ptr, n_steps, columns, dy_pairs, P, BM, HEAD, E, num_warps
            )
            if GATED:  # up to the block's first row; from there on with the keys, below
                acc = acc * gl.exp(a_ref)

    k_smem = gl.allocate_shared_memory(
        gl.bfloat16, [KEY_STAGES, BN, HEAD], gl.NVMMASharedLayout.get_default_for([BN, HEAD], gl.bfloat16)
    )
    v_smem = gl.allocate_shared_memory(
        gl.bfloat16, [KEY_STAGES, BN, E], gl.NVMMASharedLayout.get_default_for([BN, E], gl.bfloat16)
    )
    g_smem = gl.allocate_shared_memory(gl.float32, [2, BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    n_before = row_0 // BN  # key blocks before the diagonal
    for j in gl.static_range(KEY_STAGES - 2):
        copy_keys(j, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E, KEY_STAGES)
    o_g = gl.arange(0, BN, layout=line)
    b_g = gl.full([BN], 1.0, gl.float32, line)
    if GATED:
        b_g = gl.load(p_a + o_g, mask=o_g < length, other=0.0)
    s_delta = gl.convert_layout(delta, s_row)
    async_copy.wait_group(KEY_STAGES - 3)
    zeros = gl.zeros([BM, BN], gl.float32, s_layout)
    scores = warpgroup_mma(q_smem, k_smem.index(0).permute((1, 0)), zeros, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    async_copy.wait_group(KEY_STAGES - 3)  # once more: its barrier here spares one in every step
    for j in range(n_before):
        if GATED:
            g_smem.index(j % 2).store(gl.exp(a_ref - b_g))
            o_j = (j + 1) * BN + o_g
            b_g = gl.load(p_a + o_j, mask=o_j < length, other=0.0)
        copy_keys(
            j + KEY_STAGES - 2, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E,
            KEY_STAGES,
        )  # fmt: skip
        b_f = powered(scores * factor if P >= 3 else scores, P - 1)
        async_copy.wait_group(KEY_STAGES - 3)  # and the barrier of g_smem
        if GATED:
            b_f = b_f * g_smem.index(j % 2).load(s_col)[None, :]
        b_f = b_f.to(gl.bfloat16)  # float32 would not leave registers enough for dA
        b_da = warpgroup_mma(
            dy_smem.index(0), v_smem.index(j % KEY_STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        b_da = warpgroup_mma_wait(0, deps=[b_da])
        b_ds = gl.convert_layout((b_da - s_delta[:, None]).to(gl.bfloat16) * b_f, ds_layout)
        scores = warpgroup_mma(
            q_smem, k_smem.index((j + 1) % KEY_STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        acc = warpgroup_mma(b_ds, k_smem.index(j % KEY_STAGES), acc, is_async=True)
        scores, acc, _ = warpgroup_mma_wait(0, deps=[scores, acc, b_ds])

    o_i = gl.arange(0, BM, layout=s_row)
    if GATED:
        if not mild:
            acc = acc * b_decay[:, None]
    for i in gl.static_range(BM // BN):
        j = n_before + i
        b_f = powered(scores * factor if P >= 3 else scores, P - 1)
        o_j = i * BN + gl.arange(0, BN, layout=s_col)
        if GATED:
            g_smem.index(j % 2).store(gl.exp(a_ref - b_g))  # used where it is mild
            o_next = (j + 1) * BN + o_g
            b_g = gl.load(p_a + o_next, mask=o_next < length, other=0.0)
        if i + 1 < BM // BN:
            copy_keys(
                j + KEY_STAGES - 2, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E,
                KEY_STAGES,
            )  # fmt: skip
            async_copy.wait_group(KEY_STAGES - 3)
        if GATED:
            if mild:
                b_f = b_f * g_smem.index(j % 2).load(s_col)[None, :]
            else:
                b_aj = gl.load(p_a + row_0 + o_j, mask=o_j < rows_left, other=0.0)
                b_ai = gl.load(p_a + row_0 + gl.minimum(o_i, rows_left - 1))
                b_f = b_f * gl.exp(gl.minimum(b_ai[:, None] - b_aj[None, :], 0.0))
        b_f = gl.where(o_i[:, None] >= o_j[None, :], b_f, 0.0).to(gl.bfloat16)
        b_da = warpgroup_mma(
            dy_smem.index(0), v_smem.index(j % KEY_STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
        )
        b_da = warpgroup_mma_wait(0, deps=[b_da])
        b_ds = gl.convert_layout((b_da - s_delta[:, None]).to(gl.bfloat16) * b_f, ds_layout)
        if i + 1 < BM // BN:
            scores = warpgroup_mma(
                q_smem, k_smem.index((j + 1) % KEY_STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
            )
        acc = warpgroup_mma(b_ds, k_smem.index(j % KEY_STAGES), acc, is_async=True)
        if i + 1 < BM // BN:
            scores, acc, _ = warpgroup_mma_wait(0, deps=[scores, acc, b_ds])
        else:
            acc, _ = warpgroup_mma_wait(0, deps=[acc, b_ds])
    async_copy.wait_group(0)
    if GATED:
        if mild:
            acc = acc * b_decay[:, None]
    # (factor s)^(p-1) times factor: scaled above where it is a power at all
    acc = acc * (P * b_r * (factor if P >= 3 else powered(factor, P)))[:, None]
    if GATED:
        b_x = q_smem.load(acc_layout).to(gl.float32)
        gl.store(qdq_ptr + o_row, gl.sum(acc * b_x, 1), mask=m_row)
    p_dq = dq_ptr + ((i_b * seqlen + start + row_0) * heads + i_h) * HEAD
    store_rows(p_dq, heads * HEAD, rows_left, acc.to(dq_ptr.dtype.element_ty), num_warps)


def serves(dtype: torch.dtype, device: torch.device, d: int, e: int, p: int, *, with_state: bool, with_z: bool) -> bool:
    """Whether the Hopper kernels of the backward pass take the call; what they do not take, the portable ones do.

    With a state: p = 2, and p = 3 as long as no Z is asked for and two blocks of columns fit (d < 128).
    """
    if not hopper.serves(dtype, device, d, e) or p == 1:
        return False
    return not with_state or p == 2 or (p == 3 and not with_z and d < 128)


def _tiles(d: int, e: int) -> QueryTiles:
    """The best of those tried on an H200 (docs/kernel-notes.md)."""
    if max(d, e) > 64:
        return QueryTiles(128, 64, 3, 8)
    return QueryTiles(128, 64, 5, 4)


def query_gradient_hopper(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, den: Tensor | None, a: Tensor | None, r: Tensor | None,
    sizes: StateSizes, out: tuple[Tensor | None, ...],
    *, p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, first: int,
    tiles: QueryTiles | None = None,
) -> None:  # fmt: skip
    """Writes `out`, the tensors of a `QueryGradient`; arguments as `query_gradient`, for bf16."""
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    tiles = tiles or _tiles(d, e)
    blocks = triton.cdiv(C, tiles.rows)
    factor, rest = split_scale(scale, p)
    steps = rows = None
    n_steps = 0
    if r is not None:
        steps, rows = prefix_steps_on(q.device, d, p, d_tile, factor ** (p - 1) if p > 2 else 1.0)
        n_steps = len(steps)
    query_gradient_hopper_kernel[(blocks * N * B * H,)](
        dy, q, k, v, y, den, a, r, steps, rows, *out, rest**p, factor,
        T, C, N, first, blocks, sizes.elements, sizes.z_start, n_steps,
        *dy.stride()[:3], *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3],
        heads=H, group=H // Hk, P=p, HEAD=d, E=e, GATED=a is not None, NORMALIZE=normalize, STATE=r is not None,
        WEIGHTS=out[2] is not None, BM=tiles.rows, BN=tiles.keys,
        KEY_STAGES=tiles.key_stages, MILD=MILD, num_warps=tiles.num_warps,
    )  # fmt: skip
