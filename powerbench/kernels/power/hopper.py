"""What the Hopper kernels share: where they run, layouts of phi, copies of rows to shared memory.

These kernels are written in Gluon, Triton's language for explicit layouts, for bf16 on devices of compute capability
9.0; the kernels of the same names without `_hopper` are the portable path and serve everything else.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

HEAD_DIMS = (32, 64, 128)

# Triton 3.9 renamed these two.
async_load = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
_descriptor = gl.shared_memory_descriptor
reinterpret = getattr(_descriptor, "reinterpret", None) or _descriptor._reinterpret


def serves(dtype: torch.dtype, device: torch.device, d: int, e: int) -> bool:
    """Whether the Hopper kernels take operands of this dtype and these head dimensions on this device."""
    if dtype != torch.bfloat16 or d not in HEAD_DIMS or e not in HEAD_DIMS or triton.knobs.runtime.interpret:
        return False
    return device.type == "cuda" and _is_hopper(device)


@lru_cache(maxsize=16)
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


@gluon.constexpr_function
def unfolded_rows(layout, columns):
    """The linear layout of [rows, tokens], as one of [rows / columns, columns, tokens]."""

    def split(bases):
        return [[row // columns, row % columns, token] for row, token in bases]

    rows, tokens = layout.shape
    return gl.DistributedLinearLayout(
        split(layout.reg_bases), split(layout.lane_bases), split(layout.warp_bases), split(layout.block_bases),
        [rows // columns, columns, tokens],
    )  # fmt: skip


@gluon.constexpr_function
def unfolded_row_pairs(layout, columns):
    """The linear layout of bf16 [rows, tokens], as one of packed pairs [rows / columns, columns, tokens / 2]."""

    def split(bases):
        return [[row // columns, row % columns, token // 2] for row, token in bases if (row, token) != (0, 1)]

    rows, tokens = layout.shape
    return gl.DistributedLinearLayout(
        split(layout.reg_bases), split(layout.lane_bases), split(layout.warp_bases), split(layout.block_bases),
        [rows // columns, columns, tokens // 2],
    )  # fmt: skip


@gluon.constexpr_function
def unfolded_pairs(layout, columns):
    """The linear layout of bf16 [tokens, rows], as one of packed pairs [tokens, rows / columns, columns / 2]."""

    def split(bases):
        return [[token, row // columns, row % columns // 2] for token, row in bases if (token, row) != (0, 1)]

    tokens, rows = layout.shape
    return gl.DistributedLinearLayout(
        split(layout.reg_bases), split(layout.lane_bases), split(layout.warp_bases), split(layout.block_bases),
        [tokens, rows // columns, columns // 2],
    )  # fmt: skip


@gluon.constexpr_function
def packed(layout):
    """The layout of the same bytes, two 16-bit elements as one of 32 bits."""
    return gl.NVMMASharedLayout(layout.swizzle_byte_width, 32, layout.rank)


@gluon.constexpr_function
def row_copy(width, num_warps):
    """Layout of a copy of rows of `width` 16-bit elements: 16 bytes a thread."""
    across = min(width // 8, 32)
    return gl.BlockedLayout([1, 8], [32 // across, across], [num_warps, 1], [1, 0])


@gluon.jit
def copy_rows(p_x, stride, n, smem, copy: gl.constexpr, ROWS: gl.constexpr, WIDTH: gl.constexpr):
    """Starts the copy of rows 0 .. n - 1 of p_x, `stride` apart, and zeros after them, to smem [ROWS, WIDTH]."""
    o_r = gl.arange(0, ROWS, layout=gl.SliceLayout(1, copy))
    o_c = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, copy))
    mask = (o_r[:, None] < n) & (o_c[None, :] >= 0)
    async_load(smem, p_x + (o_r[:, None] * stride + o_c[None, :]), mask=mask)


@gluon.constexpr_function
def row_store(width, num_warps):
    """Layout in which rows of `width` 16-bit elements are written: 16 bytes a thread.

    Other rows than in `row_copy`: with the same ones the compiler would keep their offsets in registers from the first
    copy to the last store, through all loops.
    """
    across = min(width // 8, 32)
    return gl.BlockedLayout([4, 8], [32 // across, across], [num_warps, 1], [1, 0])


@gluon.jit
def store_rows(p_x, stride, n, b_x, num_warps: gl.constexpr):
    """Writes the first n rows of b_x [ROWS, WIDTH] to p_x, `stride` apart, whole rows together.

    From the layout of a product a warp would write pieces of 16 bytes.
    """
    layout: gl.constexpr = row_store(b_x.shape[1], num_warps)
    o_r = gl.arange(0, b_x.shape[0], layout=gl.SliceLayout(1, layout))
    o_c = gl.arange(0, b_x.shape[1], layout=gl.SliceLayout(0, layout))
    mask = (o_r[:, None] < n) & (o_c[None, :] >= 0)
    gl.store(p_x + (o_r[:, None] * stride + o_c[None, :]), gl.convert_layout(b_x, layout), mask=mask)


@gluon.jit
def times(x, y):
    """Product of two bf16 pairs, packed in an int32 each."""
    return gl.inline_asm_elementwise("mul.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def unpacked(b_phi, layout: gl.constexpr, BM: gl.constexpr, ROWS: gl.constexpr):
    """Packed pairs of phi, int32 with BM * ROWS / 2 elements, as the bf16 [BM, ROWS] that a product takes."""
    low, high = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [b_phi], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=1
    )
    return gl.convert_layout(gl.reshape(gl.join(low, high), [BM, ROWS]), layout, assert_trivial=True)
