"""attend for Hopper in Gluon: what `attend` computes, with the layout of every operand written down.

Two phases share one accumulator. First the state: phi(q) is made in registers, STATE_ROWS of its rows a step, as an
outer product of F columns and a run of C columns of q (a brick that lies in one tile of each index, so that it has one
multiplicity), and meets the rows of the state that stand in a table of steps. Then the keys of the chunk: scores of the
next block are multiplied while nothing else waits for them, together with the values of this one; with LATE the
product with the values runs on under the weights of the next block.

Gates off the diagonal are two vectors, exp(a_i - a_ref) and exp(a_ref - a_j), a_ref that of the block's first row. On
the diagonal the second exceeds 1; as long as the gates of the block lose less than MILD in all, that fits every dtype
here, and the same vectors do. Else the block takes one exponential a pair.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from powerbench.kernels.power import hopper
from powerbench.kernels.power.contract_hopper import (
    STATE_ROWS,
    columns_of,
    contract_state,
    paired_factors,
    state_brick,
    state_steps_on,
)
from powerbench.kernels.power.hopper import copy_rows, row_copy, store_rows
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import Brick, chunks

MILD = 60.0  # e^60 is far inside float32 and bf16
SMALLEST = gl.constexpr(2.0**-126)  # the smallest normal number of float32


class AttendTiles(NamedTuple):
    """Query rows a program, keys a block, whether state copies stand apart, buffers of copies of keys, warps.

    late: a product with the state or with one block's values is waited for when the next one is under way. `rows` is
    then a multiple of twice `keys`, and five buffers of keys take the place of four.
    """

    rows: int
    keys: int
    apart: bool
    key_stages: int
    late: bool
    num_warps: int


@gluon.jit
def lane_sums(x, M: gl.constexpr, N: gl.constexpr):
    """Sums of x [M, N] over the columns that one thread holds: [M, 4]; the rest is summed once, at the end."""
    return gl.sum(gl.sum(gl.reshape(x, [M, N // 8, 4, 2]), 3), 1)


@gluon.jit
def load_rows(p_x, stride, n, layout: gl.constexpr, ROWS: gl.constexpr, WIDTH: gl.constexpr, factor):
    """bf16 [ROWS, WIDTH]: rows 0 .. n - 1 of p_x, `stride` apart, times a power of two; zeros after them."""
    o_r = gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    o_c = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout))
    mask = (o_r[:, None] < n) & (o_c[None, :] >= 0)
    b_x = gl.load(p_x + (o_r[:, None] * stride + o_c[None, :]), mask=mask, other=0.0)
    return (b_x.to(gl.float32) * factor).to(gl.bfloat16)


@gluon.jit
def inverse(den):
    """`attend.inverse`: 1 / den; 0 for a denominator that is zero, or too small for float32 to hold its inverse."""
    zero = gl.abs(den) < SMALLEST
    return gl.where(zero, 0.0, 1.0 / gl.where(zero, 1.0, den))


@gluon.jit
def powered(x, P: gl.constexpr):
    """x^P, P in 1 .. 4."""
    y = x
    if P >= 2:
        y = y * x
    if P == 3:
        y = y * x
    if P == 4:
        y = y * y
    return y


@gluon.jit
def copy_keys(j, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, k_copy: gl.constexpr, v_copy: gl.constexpr,
              BN: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Starts the copy of key block j; past `length` zeros are written."""
    left = length - j * BN
    slot = j % STAGES
    copy_rows(p_k + j * BN * stride_kt.to(gl.int64), stride_kt, left, k_smem.index(slot), k_copy, BN, HEAD)
    copy_rows(p_v + j * BN * stride_vt.to(gl.int64), stride_vt, left, v_smem.index(slot), v_copy, BN, E)
    async_copy.commit_group()


@gluon.jit
def attend_hopper_kernel(
    q_ptr, k_ptr, v_ptr, a_ptr, r_ptr, steps_ptr, z_steps_ptr, y_ptr, den_ptr, scale_p, factor,
    seqlen, chunk, n_chunks, first, n_blocks, elements, z_start, n_steps, n_z_steps,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    HEADS: gl.constexpr, GROUP: gl.constexpr, P: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr,
    GATED: gl.constexpr, NORMALIZE: gl.constexpr, STATE: gl.constexpr, SAVE_DEN: gl.constexpr,
    F: gl.constexpr, C: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    APART: gl.constexpr, KEY_STAGES: gl.constexpr, LATE: gl.constexpr, MILD: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """BM query rows of one chunk and head. No state comes into the chunks before `first`.

    HEADS and GROUP are constants: as variables they cost 20 % of the time at d = e = 128 with a state (an H200).
    """
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, E, 16])
    z_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BN, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, acc_layout)
    s_row: gl.constexpr = gl.SliceLayout(1, s_layout)
    s_col: gl.constexpr = gl.SliceLayout(0, s_layout)
    q_copy: gl.constexpr = row_copy(HEAD, num_warps)
    v_copy: gl.constexpr = row_copy(E, num_warps)
    line: gl.constexpr = gl.BlockedLayout([1], [32], [num_warps], [0])

    pid = gl.program_id(0)
    i_m = n_blocks - 1 - pid % n_blocks  # the longest rows first
    i_g = pid // n_blocks % GROUP  # then the heads of a group: neighbours read the same state and keys
    i_n = pid // n_blocks // GROUP % n_chunks
    i_bhk = (pid // n_blocks // GROUP // n_chunks).to(gl.int64)  # offsets times strides are int64
    i_b = i_bhk // (HEADS // GROUP)
    i_hk = i_bhk % (HEADS // GROUP)
    i_h = i_hk * GROUP + i_g
    start = (i_n * chunk).to(gl.int64)
    length = gl.minimum(chunk, seqlen - i_n * chunk)
    row_0 = i_m * BM
    if row_0 >= length:
        return
    p_q = q_ptr + i_b * stride_qb + i_h * stride_qh + (start + row_0) * stride_qt
    p_k = k_ptr + i_b * stride_kb + i_hk * stride_kh + start * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_hk * stride_vh + start * stride_vt
    rows_left = length - row_0
    p_a = a_ptr
    a_ref = 0.0
    if GATED:
        p_a = a_ptr + (i_bhk * n_chunks + i_n) * chunk
        a_ref = gl.load(p_a + row_0)

    acc = gl.zeros([BM, E], gl.float32, acc_layout)
    den = gl.zeros([BM], gl.float32, row_layout)
    q_smem = gl.allocate_shared_memory(
        gl.bfloat16, [BM, HEAD], gl.NVMMASharedLayout.get_default_for([BM, HEAD], gl.bfloat16)
    )
    # The factor, a power of two, meets q and not the scores: a product a score would cost an eighth of the time.
    q_smem.store(load_rows(p_q, stride_qt, rows_left, q_copy, BM, HEAD, factor))
    fence_async_shared()

    if STATE:
        if i_n >= first:
            p_r = r_ptr + (i_bhk * (n_chunks - first) + i_n - first) * elements
            z_smem = gl.allocate_shared_memory(
                gl.bfloat16, [HEAD, HEAD], gl.NVMMASharedLayout.get_default_for([HEAD, HEAD], gl.bfloat16)
            )
            if NORMALIZE and P == 2:
                copy_rows(p_r + z_start, HEAD, HEAD, z_smem, q_copy, HEAD, HEAD)
                async_copy.commit_group()
            # q once more, cut into the columns that phi is made of
            f_pairs, x_pairs = paired_factors(p_q, stride_qt, rows_left, BM, HEAD, F, C, num_warps)
            columns = f_pairs
            if P >= 3:
                columns = columns_of(p_q, stride_qt, rows_left, BM, HEAD, num_warps)
            if NORMALIZE:
                # phi_p(q) . z = q . (phi_{p-1}(q)^T Z): Z is a state of degree p - 1 with k in the place of v.
                b_z = gl.zeros([BM, HEAD], gl.float32, z_layout)
                if P == 2:
                    b_z = warpgroup_mma(q_smem, z_smem, b_z, is_async=True)
                    b_z = warpgroup_mma_wait(0, deps=[b_z])
                else:
                    b_z = contract_state(
                        b_z, p_r + z_start, z_steps_ptr, n_z_steps, f_pairs, x_pairs, columns,
                        P - 1, BM, HEAD, F, C, APART, LATE, num_warps,
                    )  # fmt: skip
                b_x = q_smem.load(z_layout).to(gl.float32)
                den = gl.convert_layout(gl.sum(b_z * b_x, 1), row_layout)
            acc = contract_state(
                acc, p_r, steps_ptr, n_steps, f_pairs, x_pairs, columns,
                P, BM, E, F, C, APART, LATE, num_warps,
            )  # fmt: skip
            if GATED:  # up to the block's first row; from there on with the keys, below
                acc = acc * gl.exp(a_ref)
                den = den * gl.exp(a_ref)

    last = gl.minimum(BM, rows_left) - 1
    mild = True
    if GATED:
        mild = a_ref - gl.load(p_a + row_0 + last) < MILD
    k_smem = gl.allocate_shared_memory(
        gl.bfloat16, [KEY_STAGES, BN, HEAD], gl.NVMMASharedLayout.get_default_for([BN, HEAD], gl.bfloat16)
    )
    v_smem = gl.allocate_shared_memory(
        gl.bfloat16, [KEY_STAGES, BN, E], gl.NVMMASharedLayout.get_default_for([BN, E], gl.bfloat16)
    )
    g_smem = gl.allocate_shared_memory(gl.float32, [2, BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    n_before = row_0 // BN  # key blocks before the diagonal
    # Blocks copied ahead. A buffer is free once every warp has waited for its product and met the others at a barrier.
    AHEAD: gl.constexpr = KEY_STAGES - 3 if LATE else KEY_STAGES - 2
    sums = lane_sums(gl.zeros([BM, BN], gl.float32, s_layout), BM, BN)
    for j_0 in gl.static_range(AHEAD):
        copy_keys(j_0, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E, KEY_STAGES)
    o_g = gl.arange(0, BN, layout=line)
    b_g = gl.full([BN], 1.0, gl.float32, line)
    if GATED:
        b_g = gl.load(p_a + o_g, mask=o_g < length, other=0.0)
    async_copy.wait_group(AHEAD - 1)
    no_scores = gl.zeros([BM, BN], gl.float32, s_layout)
    scores = warpgroup_mma(q_smem, k_smem.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=[scores])
    async_copy.wait_group(AHEAD - 1)  # once more: its barrier here spares one in every step
    if n_before > 0:
        STEPS: gl.constexpr = 2 if LATE else 1  # as in contract_state: registers swapped without being moved
        # a product in flight across a loop that may be skipped would be waited for at once
        gl.assume(n_before >= STEPS)
        b_last = gl.zeros([BM, BN], gl.bfloat16, p_layout)
        for step in range(n_before // STEPS):
            for i in gl.static_range(STEPS):
                j = STEPS * step + i
                b_p = powered(scores, P)
                if GATED:
                    g_smem.index(j % 2).store(gl.exp(a_ref - b_g))
                    o_j = (j + 1) * BN + o_g
                    b_g = gl.load(p_a + o_j, mask=o_j < length, other=0.0)
                copy_keys(
                    j + AHEAD, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E,
                    KEY_STAGES,
                )  # fmt: skip
                async_copy.wait_group(AHEAD - 1)  # and the barrier of g_smem
                if GATED:
                    b_p = b_p * g_smem.index(j % 2).load(s_col)[None, :]
                if NORMALIZE:
                    sums += lane_sums(b_p, BM, BN)
                b_p = gl.convert_layout(b_p.to(gl.bfloat16), p_layout)
                scores = warpgroup_mma(
                    q_smem, k_smem.index((j + 1) % KEY_STAGES).permute((1, 0)), no_scores, use_acc=False, is_async=True
                )
                acc = warpgroup_mma(b_p, v_smem.index(j % KEY_STAGES), acc, is_async=True)
                if LATE:
                    scores, acc, _, _ = warpgroup_mma_wait(1, deps=[scores, acc, b_p, b_last])
                    b_last = b_p
                else:
                    scores, acc, _ = warpgroup_mma_wait(0, deps=[scores, acc, b_p])
        if LATE:
            acc, _ = warpgroup_mma_wait(0, deps=[acc, b_last])

    o_i = gl.arange(0, BM, layout=s_row)
    o_m = gl.arange(0, BM, layout=row_layout)
    # Where it is mild and the output normalised, what all of a row has in common cancels.
    KEEP_DECAY: gl.constexpr = GATED and (SAVE_DEN or not NORMALIZE)
    b_decay = gl.full([BM], 1.0, gl.float32, row_layout)
    if KEEP_DECAY:
        b_decay = gl.exp(gl.load(p_a + row_0 + gl.minimum(o_m, last)) - a_ref)
    if GATED:
        if not mild:
            b_lost = gl.exp(gl.load(p_a + row_0 + gl.minimum(o_m, last)) - a_ref)
            acc = acc * b_lost[:, None]
            den = den * b_lost
            sums = sums * gl.convert_layout(b_lost, gl.SliceLayout(1, sums.type.layout))[:, None]
    for i in gl.static_range(BM // BN):
        j = n_before + i
        b_p = powered(scores, P)
        o_j = i * BN + gl.arange(0, BN, layout=s_col)
        if GATED:
            g_smem.index(j % 2).store(gl.exp(a_ref - b_g))  # used where it is mild
            o_next = (j + 1) * BN + o_g
            b_g = gl.load(p_a + o_next, mask=o_next < length, other=0.0)
        if i + 1 < BM // BN:
            copy_keys(
                j + AHEAD, length, p_k, p_v, stride_kt, stride_vt, k_smem, v_smem, q_copy, v_copy, BN, HEAD, E,
                KEY_STAGES,
            )  # fmt: skip
            async_copy.wait_group(AHEAD - 1)
        if GATED:
            if mild:
                b_p = b_p * g_smem.index(j % 2).load(s_col)[None, :]
            else:
                b_aj = gl.load(p_a + row_0 + o_j, mask=o_j < rows_left, other=0.0)
                b_ai = gl.load(p_a + row_0 + gl.minimum(o_i, rows_left - 1))
                b_p = b_p * gl.exp(gl.minimum(b_ai[:, None] - b_aj[None, :], 0.0))
        b_p = gl.where(o_i[:, None] >= o_j[None, :], b_p, 0.0)
        if NORMALIZE:
            sums += lane_sums(b_p, BM, BN)
        b_p = gl.convert_layout(b_p.to(gl.bfloat16), p_layout)
        if i + 1 < BM // BN:
            scores = warpgroup_mma(
                q_smem, k_smem.index((j + 1) % KEY_STAGES).permute((1, 0)), no_scores, use_acc=False, is_async=True
            )
        acc = warpgroup_mma(b_p, v_smem.index(j % KEY_STAGES), acc, is_async=True)
        if i + 1 < BM // BN:
            scores, acc, _ = warpgroup_mma_wait(0, deps=[scores, acc, b_p])
        else:
            acc, _ = warpgroup_mma_wait(0, deps=[acc, b_p])
    async_copy.wait_group(0)
    den += gl.convert_layout(gl.sum(sums, 1), row_layout)
    o_row = (i_b * seqlen + start + row_0) * HEADS + i_h  # int64: first row of y and den
    if NORMALIZE:
        # Row 0 sees one key: rounded as its weight was, den makes y_0 exactly v_0. Else dy . v_0 - dy . y_0, which is
        # 0, would come out of the backward pass as an error over <q_0, k_0>.
        den = gl.where((o_m == 0) & (row_0 == 0) & (i_n < first), den.to(gl.bfloat16).to(gl.float32), den)
        b_scale = inverse(den)
        if SAVE_DEN:
            if GATED:
                den = gl.where(mild, den * b_decay, den)
            gl.store(den_ptr + o_row + o_m * HEADS, den, mask=o_m < rows_left)
    else:
        b_scale = gl.full([BM], 1.0, gl.float32, row_layout) * scale_p
        if GATED:
            b_scale = gl.where(mild, b_scale * b_decay, b_scale)
    b_y = (acc * b_scale[:, None]).to(y_ptr.dtype.element_ty)
    store_rows(y_ptr + o_row * E, HEADS * E, rows_left, b_y, num_warps)


def serves(dtype: torch.dtype, device: torch.device, d: int, e: int, p: int, d_tile: int, *, with_state: bool) -> bool:
    """Whether `attend_hopper` takes the call; what it does not take, `attend` does."""
    if not hopper.serves(dtype, device, d, e):
        return False
    # beyond p = 2 columns of q stand in shared memory once more, which at d = 128 holds no more
    return not with_state or (p > 1 and state_brick(d_tile) is not None and (p == 2 or d < 128))


def _tiles(d: int, e: int) -> AttendTiles:
    """The best of those tried on an H200 (docs/kernel-notes.md)."""
    if max(d, e) <= 64:
        return AttendTiles(128, 64, True, 4, False, 4)  # 4 warps have no registers left for the late wait
    return AttendTiles(128, 64, False, 5, True, 8)


def attend_hopper(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor | None, r: Tensor | None, sizes: StateSizes,
    *, p: int, chunk_size: int, d_tile: int, scale: float, normalize: bool, first: int, save_den: bool,
    tiles: AttendTiles | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `attend`, for bf16."""
    B, T, H, d = q.shape
    Hk, e = v.shape[2:]
    C, N = chunks(T, chunk_size)
    tiles = tiles or _tiles(d, e)
    shape = state_brick(d_tile) or Brick(1, STATE_ROWS)
    blocks = triton.cdiv(C, tiles.rows)
    factor, rest = split_scale(scale, p)
    y = torch.empty(B, T, H, e, dtype=q.dtype, device=q.device)
    den = torch.empty(B, T, H, dtype=torch.float32, device=q.device) if save_den and normalize else None
    steps = z_steps = None
    n_steps = n_z_steps = 0
    if r is not None:
        steps = z_steps = state_steps_on(q.device, d, p, d_tile, shape, factor**p)
        if normalize and p > 2:
            z_steps = state_steps_on(q.device, d, p - 1, d_tile, shape, factor ** (p - 1))
        n_steps, n_z_steps = len(steps), len(z_steps)
    attend_hopper_kernel[(blocks * N * B * H,)](
        q, k, v, a, r, steps, z_steps, y, den, rest**p, factor,
        T, C, N, first, blocks, sizes.elements, sizes.z_start, n_steps, n_z_steps,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        HEADS=H, GROUP=H // Hk, P=p, HEAD=d, E=e, GATED=a is not None, NORMALIZE=normalize,
        STATE=r is not None, SAVE_DEN=den is not None, F=shape.fibres, C=shape.columns, BM=tiles.rows, BN=tiles.keys,
        APART=tiles.apart, KEY_STAGES=tiles.key_stages, LATE=tiles.late, MILD=MILD, num_warps=tiles.num_warps,
    )  # fmt: skip
    return y, den
