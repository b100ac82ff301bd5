"""phi on chip: where a brick of state rows starts, and its outer product. Shared by update_state and query_state.

Index arithmetic instead of tables: with M = d / d_tile tiles, the tuples of R indices whose tiles do not decrease and
start at the earliest in tile t number C(n + R - 1, R) * d_tile^R with n = M - t, so the row of a tuple is a polynomial.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def suffix_rows(n_tiles, R: tl.constexpr, W: tl.constexpr):
    """Rows of degree R on n_tiles tiles of W: C(n + R - 1, R) * W^R. int32 is enough: 128^4 rows at the most."""
    if R == 1:
        rows = n_tiles * W
    elif R == 2:
        rows = n_tiles * (n_tiles + 1) // 2 * (W * W)
    elif R == 3:
        rows = n_tiles * (n_tiles + 1) * (n_tiles + 2) // 6 * (W * W * W)
    else:
        rows = n_tiles * (n_tiles + 1) * (n_tiles + 2) // 2 * (n_tiles + 3) // 12 * (W * W * W * W)
    return rows


@triton.jit
def rows_before(n_tiles, i, tile, R: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """Rows before index i (of tile `tile`) where n_tiles tiles are still allowed and R indices follow."""
    n_rest = M - tile
    return suffix_rows(n_tiles, R + 1, W) - suffix_rows(n_rest, R + 1, W) + (i - tile * W) * suffix_rows(n_rest, R, W)


@triton.jit
def fibre_row(i_1, t_1, i_2, i_3, P: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """State row of column 0 of the fibre (i_1, ..., i_{P-1}); i_1 and its tile t_1 may be vectors. P is 2, 3 or 4."""
    row = rows_before(M, i_1, t_1, P - 1, M, W)
    t_last = t_1
    if P >= 3:
        row += rows_before(M - t_1, i_2, i_2 // W, P - 2, M, W)
        t_last = i_2 // W
    if P == 4:
        row += rows_before(M - i_2 // W, i_3, i_3 // W, 1, M, W)
        t_last = i_3 // W
    return row - t_last * W


@triton.jit
def brick_rows(
    c_0, i_1, i_2, i_3, P: tl.constexpr, HEAD: tl.constexpr, W: tl.constexpr, FIBRES: tl.constexpr, COLS: tl.constexpr
):
    """State rows of a brick and whether the state keeps them: int32 and int1 [FIBRES * COLS], i_1 major.

    The brick covers i_1 .. i_1 + FIBRES - 1 and the columns c_0 .. c_0 + COLS - 1.
    """
    o_row = tl.arange(0, FIBRES * COLS)
    o_col = c_0 + o_row % COLS
    if P == 1:
        row = o_col
        keep = o_col >= 0
    else:
        o_1 = i_1 + o_row // COLS
        t_1 = i_1 // W if W % FIBRES == 0 else o_1 // W  # one tile for the whole brick: the polynomials are scalars
        row = fibre_row(o_1, t_1, i_2, i_3, P, HEAD // W, W) + o_col
        if P == 2:
            keep = o_col >= o_1 // W * W
        elif P == 3:
            keep = (o_col >= i_2 // W * W) & (o_1 // W <= i_2 // W)
        else:
            keep = (o_col >= i_3 // W * W) & (o_1 // W <= i_2 // W)
    return row, keep


@triton.jit
def outer(b_c, b_x, FIBRES: tl.constexpr, OP: tl.constexpr):
    """phi of a brick, [BT, FIBRES * COLS] in dtype OP: factors b_c [BT, FIBRES] times columns b_x [BT, COLS].

    Where x is in OP already the product is one packed instruction for two elements, and rounds the factor first (no
    loss at p = 2 without gates, where the factor is a column of x). Else both stay float32 until the product is.
    """
    if b_x.dtype == OP:
        b_c = b_c.to(OP)
    else:
        b_c = b_c.to(tl.float32)
        b_x = b_x.to(tl.float32)
    if FIBRES == 1:
        b_phi = b_x * b_c
    else:
        b_phi = tl.reshape(b_c[:, :, None] * b_x[:, None, :], [b_x.shape[0], FIBRES * b_x.shape[1]])
    return b_phi.to(OP)
