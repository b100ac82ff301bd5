"""A state contracted with phi of some rows, for Hopper in Gluon: the two products of `contract`, phi made in registers.

Both walk a table of steps and multiply [BM, K] of phi by K rows, or columns, of the state at a time. The next phi is
made while the product of this one runs. Where registers allow it, a product is waited for only when the next one is
under way: in `contract_gradient_state`, and in `contract_state` where its caller says LATE (docs/kernel-notes.md). phi
stays packed, two bf16 in an int32: carried from step to step as single values, LLVM swaps the halves of each pair on
the way in and on the way out. Factors that multiply both halves are stored twice.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import warpgroup_mma, warpgroup_mma_wait

from powerbench.kernels.power import tables
from powerbench.kernels.power.feature_map import feature_map
from powerbench.kernels.power.hopper import (
    async_load,
    copy_rows,
    packed,
    reinterpret,
    row_copy,
    times,
    unfolded_pairs,
    unpacked,
)
from powerbench.kernels.power.tiling import Brick, brick_row_table, brick_table

STATE_ROWS = 64  # rows of a brick: the depth of one product with the state
STAGES = gl.constexpr(4)  # buffers of copies of a state; a table of steps is a multiple of it
# Fields of a step: first row of the state, rows between fibres, i_1 / F, column / C, i_2, i_3, pair of multiplicities.
STEP_FIELDS = gl.constexpr(8)


@gluon.jit
def paired_factors(p_x, stride, n, BM: gl.constexpr, HEAD: gl.constexpr, F: gl.constexpr, C: gl.constexpr,
                   num_warps: gl.constexpr):  # fmt: skip
    """Rows x [BM, HEAD] at p_x (n of them) in shared memory, cut up as `contract_state` reads them.

    int32 [HEAD / F, BM, F], every value twice, and [HEAD / C, BM, C / 2], neighbouring columns.
    """
    f_smem = gl.allocate_shared_memory(gl.bfloat16, [HEAD // F, BM, F, 2], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
    x_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, C], gl.bfloat16)
    x_smem = gl.allocate_shared_memory(gl.bfloat16, [HEAD // C, BM, C], x_layout)
    for i in gl.static_range(HEAD // C):
        copy_rows(p_x + i * C, stride, n, x_smem.index(i), row_copy(C, num_warps), BM, C)
    async_copy.commit_group()
    layout: gl.constexpr = gl.BlockedLayout([1, F, 2], [32, 1, 1], [num_warps, 1, 1], [2, 1, 0])
    o_f = gl.arange(0, F, layout=gl.SliceLayout(0, gl.SliceLayout(2, layout)))
    o_r = gl.arange(0, BM, layout=gl.SliceLayout(1, gl.SliceLayout(2, layout)))
    mask = (o_r[:, None] < n) & (o_f[None, :] >= 0)
    for i in gl.static_range(HEAD // F):
        b_f = gl.load(p_x + i * F + (o_r[:, None] * stride + o_f[None, :]), mask=mask, other=0.0)
        f_smem.index(i).store(gl.expand_dims(b_f, 2).broadcast_to([BM, F, 2]))
    async_copy.wait_group(0)
    f_pairs = reinterpret(f_smem, gl.int32, [HEAD // F, BM, F], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    return f_pairs, reinterpret(x_smem, gl.int32, [HEAD // C, BM, C // 2], packed(x_layout))


@gluon.jit
def columns_of(p_x, stride, n, BM: gl.constexpr, HEAD: gl.constexpr, num_warps: gl.constexpr):
    """Columns of x [BM, HEAD] at p_x (n rows) in shared memory, one after the other: bf16 [HEAD, BM]."""
    smem = gl.allocate_shared_memory(gl.bfloat16, [HEAD, BM], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, num_warps // 4], [1, 0])
    o_r = gl.arange(0, BM, layout=gl.SliceLayout(1, layout))
    o_c = gl.arange(0, HEAD, layout=gl.SliceLayout(0, layout))
    mask = (o_r[:, None] < n) & (o_c[None, :] >= 0)
    smem.store(gl.permute(gl.load(p_x + (o_r[:, None] * stride + o_c[None, :]), mask=mask, other=0.0), (1, 0)))
    return reinterpret(smem, gl.bfloat16, [HEAD, BM], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def column_pair(columns, i, layout: gl.constexpr):
    """Column i of `columns_of`, every value twice: int32 [BM]."""
    b_x = columns.index(i).load(layout)
    return gl.inline_asm_elementwise("mov.b32 $0, {$1, $1};", "=r,h", [b_x], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def brick_of(step, p_steps, P: gl.constexpr):
    """i_1 / F, the run of columns, i_2, i_3 (i_1 / F again where P has none) and the multiplicities of one step."""
    at = p_steps + step * STEP_FIELDS
    i_1 = gl.load(at + 2)
    i_2 = i_1
    i_3 = i_1
    if P >= 3:
        i_2 = gl.load(at + 4)
    if P == 4:
        i_3 = gl.load(at + 5)
    return i_1, gl.load(at + 3), i_2, i_3, gl.load(at + 6)


@gluon.jit
def expanded(brick, f_smem, x_smem, columns, cube: gl.constexpr, P: gl.constexpr):
    """phi of one step times its multiplicity: int32 [BM, F, C / 2], pairs of bf16."""
    i_1, run, i_2, i_3, multiplicities = brick
    b_x = x_smem.index(run).load(gl.SliceLayout(1, cube))  # [BM, C / 2]
    b_f = times(f_smem.index(i_1).load(gl.SliceLayout(2, cube)), multiplicities)  # [BM, F]
    if P >= 3:
        row_layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, cube))
        b_c = column_pair(columns, i_2, row_layout)  # [BM]
        if P == 4:
            b_c = times(b_c, column_pair(columns, i_3, row_layout))
        b_f = times(b_f, gl.expand_dims(b_c, 1))
    return times(gl.expand_dims(b_f, 2), gl.expand_dims(b_x, 1))


@gluon.jit
def prefix(step, p_steps, P: gl.constexpr):
    """i_1, i_2 (i_1 again at P = 2) and the pair of multiplicities of one step of `contract_gradient_state`."""
    i_1 = gl.load(p_steps + step * STEP_FIELDS + 2)
    i_2 = i_1
    if P == 3:
        i_2 = gl.load(p_steps + step * STEP_FIELDS + 4)
    return i_1, i_2, gl.load(p_steps + step * STEP_FIELDS + 6)


@gluon.jit
def expanded_prefix(i_1, i_2, multiplicities, columns, b_u, cube: gl.constexpr, P: gl.constexpr):
    """One row of phi_{P-1} times its multiplicity and every column of u: int32 [BM, 1, E / 2], pairs of bf16."""
    row_layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, cube))
    b_f = times(column_pair(columns, i_1, row_layout), multiplicities)  # [BM]
    if P == 3:
        b_f = times(b_f, column_pair(columns, i_2, row_layout))
    return times(gl.expand_dims(gl.expand_dims(b_f, 1), 2), gl.expand_dims(b_u, 1))


@gluon.jit
def rows_of(step, n_steps, p_steps):
    """First row of the state of one step, and rows between its fibres."""
    at = gl.minimum(step, n_steps - 1) * STEP_FIELDS
    return gl.load(p_steps + at), gl.load(p_steps + at + 1)


@gluon.jit
def state_buffers(ROWS: gl.constexpr, E: gl.constexpr, APART: gl.constexpr):
    """STAGES buffers for ROWS rows of a state, to be asked for by `state_buffer`. APART: each an allocation of its own.

    In one allocation, with an index only known when it runs, the compiler takes the next copy to meet what a product
    still reads, and puts a second barrier into every step.
    """
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, E], gl.bfloat16)
    if APART:
        r_0 = gl.allocate_shared_memory(gl.bfloat16, [ROWS, E], layout)
        r_1 = gl.allocate_shared_memory(gl.bfloat16, [ROWS, E], layout)
        r_2 = gl.allocate_shared_memory(gl.bfloat16, [ROWS, E], layout)
        r_3 = gl.allocate_shared_memory(gl.bfloat16, [ROWS, E], layout)
        buffers = (r_0, r_1, r_2, r_3)
    else:
        buffers = gl.allocate_shared_memory(gl.bfloat16, [STAGES, ROWS, E], layout)
    return buffers


@gluon.jit
def state_buffer(buffers, step, i: gl.constexpr, APART: gl.constexpr):
    """That of one step, which is i modulo STAGES where they stand apart."""
    if APART:
        buffer = buffers[i % STAGES]
    else:
        buffer = buffers.index(step % STAGES)
    return buffer


@gluon.jit
def copy_state(step, n_steps, row_0, apart, p_r, r_smem, copy: gl.constexpr, ROWS: gl.constexpr, C: gl.constexpr,
               E: gl.constexpr):  # fmt: skip
    """Starts the copy of the state rows of one step, of which `rows_of` says where they stand, into r_smem."""
    o_r = gl.arange(0, ROWS, layout=gl.SliceLayout(1, copy))
    o_e = gl.arange(0, E, layout=gl.SliceLayout(0, copy))
    o_row = o_r // C * apart + o_r % C
    base = p_r + row_0.to(gl.int64) * E
    mask = (o_r[:, None] >= 0) & (o_e[None, :] >= 0) & (step < n_steps)
    async_load(r_smem, base + (o_row[:, None] * E + o_e[None, :]), mask=mask)
    async_copy.commit_group()


@gluon.jit
def contract_state(
    acc, p_r, p_steps, n_steps, f_smem, x_smem, columns, P: gl.constexpr, BM: gl.constexpr, E: gl.constexpr,
    F: gl.constexpr, C: gl.constexpr, APART: gl.constexpr, LATE: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """acc [BM, E] plus phi_P(q)^T R, R [D, E] at p_r.

    APART: copies of R stand in buffers of their own, as many steps unrolled. LATE: a product is waited for when the
    next one is under way.
    """
    # Two at least, so that phi and the next phi swap registers without being moved.
    UNROLL: gl.constexpr = STAGES if APART else 2
    ROWS: gl.constexpr = F * C
    acc_layout: gl.constexpr = acc.type.layout
    phi_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    cube: gl.constexpr = unfolded_pairs(gl.to_linear_layout(phi_layout, [BM, ROWS]), C)
    copy: gl.constexpr = row_copy(E, num_warps)
    buffers = state_buffers(ROWS, E, APART)
    for step in gl.static_range(STAGES - 2):
        row_0, apart = rows_of(step, n_steps, p_steps)
        copy_state(step, n_steps, row_0, apart, p_r, state_buffer(buffers, step, step, APART), copy, ROWS, C, E)
    row_0, apart = rows_of(STAGES - 2, n_steps, p_steps)  # loaded a step before they are used
    b_phi = expanded(brick_of(0, p_steps, P), f_smem, x_smem, columns, cube, P)
    if LATE:
        brick = brick_of(1, p_steps, P)  # loaded a step before it is used
        b_last = b_phi
        # a product in flight across a loop that may be skipped would be waited for at once
        gl.assume(n_steps >= UNROLL)
    for turn in range(n_steps // UNROLL):
        for i in gl.static_range(UNROLL):
            at = UNROLL * turn + i
            # The copy goes into the buffer of step at - 2, whose product every warp has waited for before the barrier
            # of the last step, or LATE of this one: both come with wait_group.
            if LATE:
                async_copy.wait_group(STAGES - 3)
            else:
                free = state_buffer(buffers, at + STAGES - 2, i + STAGES - 2, APART)
                copy_state(at + STAGES - 2, n_steps, row_0, apart, p_r, free, copy, ROWS, C, E)
                async_copy.wait_group(STAGES - 2)
            b_a = unpacked(b_phi, phi_layout, BM, ROWS)
            acc = warpgroup_mma(b_a, state_buffer(buffers, at, i, APART), acc, is_async=True)
            if LATE:
                free = state_buffer(buffers, at + STAGES - 2, i + STAGES - 2, APART)
                copy_state(at + STAGES - 2, n_steps, row_0, apart, p_r, free, copy, ROWS, C, E)
            row_0, apart = rows_of(at + STAGES - 1, n_steps, p_steps)
            if LATE:
                following = brick_of(gl.minimum(at + 2, n_steps - 1), p_steps, P)
                acc, _, _ = warpgroup_mma_wait(1, deps=[acc, b_a, b_last])  # for that of the step before
                b_last = b_phi
                b_phi = expanded(brick, f_smem, x_smem, columns, cube, P)
                brick = following
            else:
                b_next = expanded(
                    brick_of(gl.minimum(at + 1, n_steps - 1), p_steps, P), f_smem, x_smem, columns, cube, P
                )
                acc, _ = warpgroup_mma_wait(0, deps=[acc, b_a])  # the product reads the registers of b_a until here
                b_phi = b_next
    if LATE:
        acc, _ = warpgroup_mma_wait(0, deps=[acc, b_last])
    async_copy.wait_group(0)
    return acc


@gluon.jit
def copy_gathered(step, n_steps, o_row, p_r, r_smem, copy: gl.constexpr, E: gl.constexpr):
    """Starts the copy of the state rows o_row [HEAD] of one step into r_smem."""
    o_r = gl.arange(0, o_row.shape[0], layout=gl.SliceLayout(1, copy))
    o_e = gl.arange(0, E, layout=gl.SliceLayout(0, copy))
    mask = (o_r[:, None] >= 0) & (o_e[None, :] >= 0) & (step < n_steps)
    pointers = p_r + (o_row[:, None] * E + o_e[None, :])
    async_load(r_smem, pointers, mask=mask)
    async_copy.commit_group()


@gluon.jit
def gathered(step, n_steps, p_rows, copy: gl.constexpr, HEAD: gl.constexpr):
    """The rows of the state that a step of `contract_gradient_state` reads: int32 [HEAD]."""
    return gl.load(p_rows + gl.minimum(step, n_steps - 1) * HEAD + gl.arange(0, HEAD, layout=gl.SliceLayout(1, copy)))


@gluon.jit
def contract_gradient_state(acc, p_r, p_steps, p_rows, n_steps, columns, u_pairs, P: gl.constexpr, BM: gl.constexpr,
                            HEAD: gl.constexpr, E: gl.constexpr, num_warps: gl.constexpr):  # fmt: skip
    """acc [BM, HEAD] plus 1 / P of the gradient of phi_P(x)^T R, for gradients u: see `contract.contract_gradient`.

    P is 2 or 3. columns are the `columns_of` x, u_pairs int32 [1, BM, E / 2] hold u; p_steps is the table of
    `prefix_steps_on`, p_rows int32 [n_steps, HEAD] says which row of R stands for (prefix, b).
    """
    acc_layout: gl.constexpr = acc.type.layout
    phi_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    cube: gl.constexpr = unfolded_pairs(gl.to_linear_layout(phi_layout, [BM, E]), E)  # [BM, 1, E / 2]
    copy: gl.constexpr = row_copy(E, num_warps)
    buffers = state_buffers(HEAD, E, True)
    for step in gl.static_range(STAGES - 2):
        copy_gathered(step, n_steps, gathered(step, n_steps, p_rows, copy, HEAD), p_r, buffers[step], copy, E)
    b_u = u_pairs.index(0).load(gl.SliceLayout(1, cube))  # [BM, E / 2]
    i_1, i_2, multiplicities = prefix(0, p_steps, P)
    b_phi = expanded_prefix(i_1, i_2, multiplicities, columns, b_u, cube, P)
    i_1, i_2, multiplicities = prefix(1, p_steps, P)  # loaded a step before they are used
    o_row = gathered(STAGES - 2, n_steps, p_rows, copy, HEAD)
    gl.assume(n_steps >= STAGES)  # a product in flight across a loop that may be skipped would be waited for at once
    b_last = b_phi
    for turn in range(n_steps // STAGES):
        for i in gl.static_range(STAGES):  # as in contract_state
            at = STAGES * turn + i
            async_copy.wait_group(STAGES - 3)
            b_a = unpacked(b_phi, phi_layout, BM, E)
            acc = warpgroup_mma(b_a, buffers[i].permute((1, 0)), acc, is_async=True)
            # into the buffer of step at - 2, whose product every warp has waited for before this step's barrier
            copy_gathered(at + STAGES - 2, n_steps, o_row, p_r, buffers[(i + 2) % STAGES], copy, E)
            o_row = gathered(at + STAGES - 1, n_steps, p_rows, copy, HEAD)
            following = prefix(gl.minimum(at + 2, n_steps - 1), p_steps, P)
            acc, _, _ = warpgroup_mma_wait(1, deps=[acc, b_a, b_last])  # for that of the step before
            b_last = b_phi
            b_phi = expanded_prefix(i_1, i_2, multiplicities, columns, b_u, cube, P)
            i_1, i_2, multiplicities = following
    acc, _ = warpgroup_mma_wait(0, deps=[acc, b_last])
    async_copy.wait_group(0)
    return acc


def state_brick(d_tile: int) -> Brick | None:
    """The brick of `contract_state`: STATE_ROWS rows within one tile of each index; None where tiles are too small."""
    columns = min(d_tile & -d_tile, STATE_ROWS)
    fibres = STATE_ROWS // columns
    return Brick(fibres, columns) if columns >= 8 and d_tile % fibres == 0 else None


def state_steps_on(
    device: torch.device, d: int, p: int, d_tile: int, shape: Brick, factor: float = 1.0
) -> Tensor:  # fmt: skip
    """The steps of `contract_state`, one a brick, int32 [steps, STEP_FIELDS], on the device.

    A multiple of STAGES: the last may weigh 0. Multiplicities are times `factor`, a power of two.
    """
    return tables.on_device(device, _state_steps, d, p, d_tile, shape, factor)


def _state_steps(d: int, p: int, d_tile: int, shape: Brick, factor: float) -> np.ndarray:
    first, rows = brick_table(d, p, d_tile, shape), brick_row_table(d, p, d_tile, shape)
    number = len(first)
    steps = np.zeros((number + -number % STAGES.value, STEP_FIELDS.value), dtype=np.int32)
    steps[:number, 0] = rows[:, 0]
    steps[:number, 1] = rows[:, shape.columns] - rows[:, 0] if shape.fibres > 1 else 0
    steps[:number, 2] = first[:, 1] // shape.fibres
    steps[:number, 3] = first[:, 0] // shape.columns
    steps[:number, 4:6] = first[:, 2:]
    steps[:number, 6] = _pairs(factor * feature_map(d, p, d_tile).multiplicity[rows[:, 0]])
    return steps


def prefix_steps_on(
    device: torch.device, d: int, p: int, d_tile: int, factor: float = 1.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The steps of `contract_gradient_state` and its rows, int32 [steps, STEP_FIELDS] and [steps, d], on the device.

    One step a prefix (i_1, ..., i_{p-1}) of `feature_map`, p at least 2; a multiple of STAGES: the last may weigh 0.
    Multiplicities are times `factor`, a power of two.
    """
    return tables.on_device(device, _prefix_steps, d, p, d_tile, factor)


def _prefix_steps(d: int, p: int, d_tile: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    prefixes = feature_map(d, p - 1, d_tile)
    number = len(prefixes.indices)
    steps = np.zeros((number + -number % STAGES.value, STEP_FIELDS.value), dtype=np.int32)
    steps[:number, 2] = prefixes.indices[:, 0]
    steps[:number, 4 : 3 + p - 1] = prefixes.indices[:, 1:]
    steps[:number, 6] = _pairs(factor * prefixes.multiplicity)
    fm = feature_map(d, p, d_tile)
    powers = d ** np.arange(p, dtype=np.int64)
    keys = np.sort(fm.indices.astype(np.int64), axis=1) @ powers
    order = np.argsort(keys, kind="stable")
    tuples = np.concatenate(
        [np.repeat(prefixes.indices, d, axis=0), np.tile(np.arange(d), number)[:, None]], axis=1
    ).astype(np.int64)
    wanted = np.sort(tuples, axis=1) @ powers
    rows = np.zeros((len(steps), d), dtype=np.int32)
    rows[:number] = order[np.searchsorted(keys[order], wanted)].reshape(number, d)
    return steps, rows


def _pairs(multiplicity: np.ndarray) -> np.ndarray:
    """int32: each multiplicity twice in bf16, which holds 1 to 24, times a power of two, exactly."""
    halves = multiplicity.astype(np.float32).view(np.int32) >> 16  # bf16 is the upper half of float32
    return halves << 16 | halves
