"""A state contracted with phi of some rows x: the two products by which rows meet a state, phi expanded on chip.

Both read a state R [D, E] of degree P whose rows are unweighted, and put the multiplicity on the side of x:

    contract            sum_r m_r phi_P(x)_r R[r, :]                                             [BT, E]
    contract_gradient   sum_{prefixes, c} m phi_{P-1}(x)_prefix dy_c R[prefix + b, c]            [BT, HEAD]

The second is 1 / P of the gradient of the first with respect to x, dy being the gradient of the result: R is symmetric
in its P indices, so each of them gives the same term. It is one matrix product of width E for every prefix, and reads
the rows of the sorted multisets (prefix, b) for all b.
"""

from __future__ import annotations

import triton
import triton.language as tl

from powerbench.kernels.power.expand import arrangements, brick_rows, index_rows, outer, sorted_row


@triton.jit
def next_prefix(i_1, i_2, i_3, W: tl.constexpr, STEP: tl.constexpr, INDICES: tl.constexpr):
    """The next (i_1, i_2, i_3), i_1 fastest in steps of STEP, each index below the end of the tile of the next one."""
    i_1 = tl.multiple_of(i_1 + STEP, STEP)
    if INDICES >= 2:
        wrap = i_1 >= (i_2 // W + 1) * W
        i_1 = tl.where(wrap, 0, i_1)
        i_2 = tl.where(wrap, i_2 + 1, i_2)
    if INDICES == 3:
        wrap = i_2 >= (i_3 // W + 1) * W
        i_2 = tl.where(wrap, 0, i_2)
        i_3 = tl.where(wrap, i_3 + 1, i_3)
    return i_1, i_2, i_3


@triton.jit
def contract(
    b_acc, p_x, m_t, p_r, counts_ptr, has_state,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, FIBRES: tl.constexpr, COLS: tl.constexpr,
    OP: tl.constexpr, factor=1.0,
):  # fmt: skip
    """b_acc float32 [BT, E] plus factor phi_P(x)^T R: p_x points at BT rows of x (mask m_t), p_r at R [D, E].

    One loop, so that the loads stay ahead of the products, walks the counts_ptr[c_0 / COLS] bricks at columns c_0 in
    the order of `brick_table`: i_1 fastest, each index ending where the tile of the next one ends. With has_state 0
    it walks none.
    """
    WHOLE: tl.constexpr = W % FIBRES == 0 and W % COLS == 0  # bricks stop where tiles stop: one weight, nothing masked
    o_col = tl.arange(0, COLS)
    o_fib = tl.arange(0, FIBRES)
    o_e = tl.arange(0, E)
    for c_0 in range(0, HEAD * has_state, COLS):
        b_x = tl.load(p_x[:, None] + (c_0 + o_col)[None, :], mask=m_t[:, None], other=0.0)  # [BT, COLS]
        if P == 1:
            b_r = tl.load(p_r + (c_0 + o_col)[:, None] * E + o_e[None, :]).to(OP)  # [ROWS, E]
            b_acc = tl.dot((b_x * factor).to(OP), b_r, b_acc, input_precision="ieee")
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
                o_row, m_row = brick_rows(c_0, i_1, i_2, i_3, P, HEAD, W, FIBRES, COLS)
                p_row = p_r + o_row.to(tl.int64)[:, None] * E + o_e[None, :]
                if WHOLE:
                    weight = brick_weight(i_1, i_2, i_3, c_0, P, W)
                    b_phi = outer(b_c * (weight * factor), b_x, FIBRES, OP)  # [BT, ROWS]
                    b_r = tl.load(p_row)  # [ROWS, E]
                else:
                    o_1 = i_1 + tl.arange(0, FIBRES * COLS) // COLS
                    b_weight = brick_weight(o_1, i_2, i_3, c_0 + tl.arange(0, FIBRES * COLS) % COLS, P, W)
                    b_phi = (outer(b_c * factor, b_x, FIBRES, OP) * b_weight.to(tl.float32)[None, :]).to(OP)
                    b_r = tl.load(p_row, mask=m_row[:, None], other=0.0)
                b_acc = tl.dot(b_phi, b_r.to(OP), b_acc, input_precision="ieee")
                i_1, i_2, i_3 = next_prefix(i_1, i_2, i_3, W, FIBRES, P - 1)
    return b_acc


@triton.jit
def brick_weight(i_1, i_2, i_3, i_last, P: tl.constexpr, W: tl.constexpr):
    """Multiplicity of the tuples (i_1, ..., i_{P-1}, i_last), P >= 2."""
    if P == 2:
        m = arrangements(i_1 // W, i_last // W, 0, 0, P)
    elif P == 3:
        m = arrangements(i_1 // W, i_2 // W, i_last // W, 0, P)
    else:
        m = arrangements(i_1 // W, i_2 // W, i_3 // W, i_last // W, P)
    return m


@triton.jit
def contract_gradient(
    b_acc, p_x, m_t, b_dy, p_r, n_prefixes, has_state,
    P: tl.constexpr, HEAD: tl.constexpr, E: tl.constexpr, W: tl.constexpr, OP: tl.constexpr, factor=1.0,
):  # fmt: skip
    """b_acc float32 [BT, HEAD] plus factor / P of the gradient of phi_P(x)^T R with respect to x, given b_dy [BT, E].

    b_dy is in dtype OP or that of x; n_prefixes = tspow_dim(HEAD, P - 1, W), the tuples (i_1, ..., i_{P-1}) with tiles
    in order (1 where P is 1, which takes no
    factor). With has_state 0 nothing is added.
    """
    o_b = tl.arange(0, HEAD)
    b_1 = index_rows(o_b, o_b // W, 1, HEAD // W, W)  # where b is not the last index of its multiset
    b_2 = index_rows(o_b, o_b // W, 2, HEAD // W, W)
    b_3 = index_rows(o_b, o_b // W, 3, HEAD // W, W)
    o_e = tl.arange(0, E)
    i_1 = 0
    i_2 = 0
    i_3 = 0
    for _ in range(0, n_prefixes * has_state):
        o_row = sorted_row(i_1, i_2, i_3, o_b, b_1, b_2, b_3, P, HEAD, W)
        b_r = tl.load(p_r + o_row.to(tl.int64)[:, None] * E + o_e[None, :])  # [HEAD, E]
        if P == 1:
            b_a = b_dy.to(OP)
        else:
            b_c = tl.load(p_x + i_1, mask=m_t, other=0.0)  # [BT]
            if P >= 3:
                b_c = b_c.to(tl.float32) * tl.load(p_x + i_2, mask=m_t, other=0.0).to(tl.float32)
                if P == 3:
                    b_c *= arrangements(i_1 // W, i_2 // W, 0, 0, 2)
                else:
                    b_c *= tl.load(p_x + i_3, mask=m_t, other=0.0).to(tl.float32)
                    b_c *= arrangements(i_1 // W, i_2 // W, i_3 // W, 0, 3)
            b_a = outer((b_c * factor)[:, None], b_dy, 1, OP)  # [BT, E]
        b_acc = tl.dot(b_a, tl.trans(b_r.to(OP)), b_acc, input_precision="ieee")
        i_1, i_2, i_3 = next_prefix(i_1, i_2, i_3, W, 1, P - 1)
    return b_acc
