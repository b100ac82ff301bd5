"""dk and dv of every row from the state that leaves its chunk, for Hopper in Gluon; the chunk's own queries come after.

    dv_j = exp(A - a_j) phi(k_j)^T E              dk_j = p exp(A - a_j) (1/p grad_k (phi(k_j)^T E v_j) + k_j^T EZ)

One after the other, with one accumulator each, so that two programs share a multiprocessor. The results wait in dk and
dv themselves for `key_value_attention_hopper`, which adds the rest: one more rounding to bf16, and no memory of their
own.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from powerbench.kernels.power.contract_hopper import (
    columns_of,
    contract_gradient_state,
    contract_state,
    paired_factors,
    prefix_steps_on,
    state_brick,
    state_steps_on,
)
from powerbench.kernels.power.hopper import copy_rows, packed, reinterpret, row_copy, store_rows
from powerbench.kernels.power.sizes import StateSizes
from powerbench.kernels.power.tiling import chunks


class KeyStateTiles(NamedTuple):
    """Key rows a program, warps."""

    rows: int
    num_warps: int


@gluon.jit
def key_value_state_kernel(
    k_ptr, v_ptr, a_ptr, e_ptr, steps_ptr, prefixes_ptr, rows_ptr, dk_ptr, dv_ptr,
    seqlen, chunk, n_chunks, n_future, n_blocks, elements, z_start, n_steps, n_prefixes,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    HEADS: gl.constexpr, P: gl.constexpr, HEAD: gl.constexpr, E: gl.constexpr, GATED: gl.constexpr,
    WITH_Z: gl.constexpr, F: gl.constexpr, C: gl.constexpr, BM: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """BM key rows of one chunk and key/value head; zeros in the chunks from `n_future` on, which no gradient leaves.

    HEADS is a constant: as a variable it takes 30 registers more, and at d = e = 128 twice the time (an H200).
    """
    dk_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, HEAD, 16])
    dv_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, E, 16])
    pid = gl.program_id(0)
    i_m = pid % n_blocks
    i_n = pid // n_blocks % n_chunks
    i_bh = (pid // n_blocks // n_chunks).to(gl.int64)  # offsets times strides are int64
    i_b = i_bh // HEADS
    i_h = i_bh % HEADS
    start = (i_n * chunk).to(gl.int64)
    row_0 = i_m * BM
    left = gl.minimum(chunk, seqlen - i_n * chunk) - row_0
    if left <= 0:
        return
    p_k = k_ptr + i_b * stride_kb + i_h * stride_kh + (start + row_0) * stride_kt
    p_v = v_ptr + i_b * stride_vb + i_h * stride_vh + (start + row_0) * stride_vt
    row_out = (i_b * seqlen + start + row_0) * HEADS + i_h  # of dk and dv
    p_a = a_ptr
    if GATED:
        p_a = a_ptr + (i_bh * n_chunks + i_n) * chunk
    p_e = e_ptr + (i_bh * n_future + i_n) * elements
    has_future = i_n < n_future

    acc = gl.zeros([BM, E], gl.float32, dv_layout)
    if has_future:
        f_pairs, x_pairs = paired_factors(p_k, stride_kt, left, BM, HEAD, F, C, num_warps)
        columns = f_pairs
        if P >= 3:
            columns = columns_of(p_k, stride_kt, left, BM, HEAD, num_warps)
        acc = contract_state(
            acc, p_e, steps_ptr, n_steps, f_pairs, x_pairs, columns, P, BM, E, F, C, True, True, num_warps
        )
    store_decayed(acc, dv_ptr + row_out * E, p_a, chunk, row_0, left, 1.0, HEADS, GATED, BM, E, num_warps)

    dk = gl.zeros([BM, HEAD], gl.float32, dk_layout)
    if has_future:
        if WITH_Z:
            k_smem = gl.allocate_shared_memory(
                gl.bfloat16, [BM, HEAD], gl.NVMMASharedLayout.get_default_for([BM, HEAD], gl.bfloat16)
            )
            z_smem = gl.allocate_shared_memory(
                gl.bfloat16, [HEAD, HEAD], gl.NVMMASharedLayout.get_default_for([HEAD, HEAD], gl.bfloat16)
            )
            copy_rows(p_k, stride_kt, left, k_smem, row_copy(HEAD, num_warps), BM, HEAD)
            copy_rows(p_e + z_start, HEAD, HEAD, z_smem, row_copy(HEAD, num_warps), HEAD, HEAD)
            async_copy.commit_group()
            async_copy.wait_group(0)
            dk = warpgroup_mma(k_smem, z_smem, dk, is_async=True)
            dk = warpgroup_mma_wait(0, deps=[dk])
        v_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, E], gl.bfloat16)
        v_smem = gl.allocate_shared_memory(gl.bfloat16, [1, BM, E], v_layout)
        copy_rows(p_v, stride_vt, left, v_smem.index(0), row_copy(E, num_warps), BM, E)
        async_copy.commit_group()
        k_columns = columns_of(p_k, stride_kt, left, BM, HEAD, num_warps)
        async_copy.wait_group(0)
        v_pairs = reinterpret(v_smem, gl.int32, [1, BM, E // 2], packed(v_layout))
        dk = contract_gradient_state(
            dk, p_e, prefixes_ptr, rows_ptr, n_prefixes, k_columns, v_pairs, P, BM, HEAD, E,
            num_warps,
        )  # fmt: skip
    store_decayed(dk, dk_ptr + row_out * HEAD, p_a, chunk, row_0, left, P, HEADS, GATED, BM, HEAD, num_warps)


@gluon.jit
def store_decayed(acc, p_out, p_a, chunk, row_0, left, factor, HEADS: gl.constexpr, GATED: gl.constexpr,
                  BM: gl.constexpr, WIDTH: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """acc [BM, WIDTH] times factor and exp(A - a_j), to rows HEADS apart."""
    row_layout: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    o_m = gl.arange(0, BM, layout=row_layout)
    b_w = gl.full([BM], 1.0, gl.float32, row_layout) * factor
    if GATED:
        b_a = gl.load(p_a + row_0 + gl.minimum(o_m, left - 1))
        b_w = b_w * gl.exp(gl.minimum(gl.load(p_a + chunk - 1) - b_a, 0.0))
    store_rows(p_out, HEADS * WIDTH, left, (acc * b_w[:, None]).to(p_out.dtype.element_ty), num_warps)


def _tiles(d: int, e: int) -> KeyStateTiles:
    """The best of those tried on an H200 (docs/kernel-notes.md)."""
    return KeyStateTiles(128, 4 if max(d, e) <= 64 else 8)


def key_value_state_hopper(
    k: Tensor, v: Tensor, a: Tensor | None, dr: Tensor, sizes: StateSizes, dk: Tensor, dv: Tensor,
    *, p: int, chunk_size: int, d_tile: int, tiles: KeyStateTiles | None = None,
) -> None:  # fmt: skip
    """Writes the share of the state in dk [B, T, Hk, d] and dv [B, T, Hk, e], bf16; arguments as key_value_gradient."""
    B, T, Hk, d = k.shape
    e = v.shape[-1]
    C, N = chunks(T, chunk_size)
    tiles = tiles or _tiles(d, e)
    blocks = triton.cdiv(C, tiles.rows)
    shape = state_brick(d_tile)
    assert shape  # `serves` says so
    steps = state_steps_on(k.device, d, p, d_tile, shape)
    prefixes, prefix_rows = prefix_steps_on(k.device, d, p, d_tile)
    key_value_state_kernel[(blocks * N * B * Hk,)](
        k, v, a, dr, steps, prefixes, prefix_rows, dk, dv,
        T, C, N, dr.shape[2], blocks, sizes.elements, sizes.z_start, len(steps), len(prefixes),
        *k.stride()[:3], *v.stride()[:3],
        HEADS=Hk, P=p, HEAD=d, E=e, GATED=a is not None, WITH_Z=sizes.z_rows > 0, F=shape.fibres, C=shape.columns,
        BM=tiles.rows, num_warps=tiles.num_warps,
    )  # fmt: skip
