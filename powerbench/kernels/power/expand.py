"""phi on chip: where state rows stand, how often they count, and the outer product of a brick; of the portable kernels.

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
def index_rows(i, tile, R: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """The part of index i (of tile `tile`) in the row of its tuple, with R > 0 indices after it.

    That of the last index is i - HEAD. The row, the number of tuples before, is suffix_rows(M, P) + the sum of parts.
    """
    return (i - tile * W + 1) * suffix_rows(M - tile, R, W) - suffix_rows(M - tile, R + 1, W)


@triton.jit
def fibre_row(i_1, t_1, i_2, i_3, P: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """State row of column 0 of the fibre (i_1, ..., i_{P-1}); i_1 and its tile t_1 may be vectors. P is 2, 3 or 4."""
    row = index_rows(i_1, t_1, P - 1, M, W) + (suffix_rows(M, P, W) - M * W)
    if P >= 3:
        row += index_rows(i_2, i_2 // W, P - 2, M, W)
    if P == 4:
        row += index_rows(i_3, i_3 // W, 1, M, W)
    return row


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
def arrangements(t_1, t_2, t_3, t_4, P: tl.constexpr):
    """Multiplicity of a row whose indices stand in tiles t_1 <= ... <= t_P: P! / prod(m!), m the runs of equal ones."""
    if P == 1:
        m = t_1 * 0 + 1
    elif P == 2:
        m = tl.where(t_1 == t_2, 1, 2)
    elif P == 3:
        equal = (t_1 == t_2).to(tl.int32) + (t_2 == t_3).to(tl.int32)
        m = tl.where(equal == 2, 1, tl.where(equal == 1, 3, 6))
    else:
        first, middle, last = t_1 == t_2, t_2 == t_3, t_3 == t_4
        equal = first.to(tl.int32) + middle.to(tl.int32) + last.to(tl.int32)
        pairs = tl.where(middle, 4, 6)  # two equal neighbours: (a a a b) or (a a b b)
        m = tl.where(equal == 3, 1, tl.where(equal == 2, pairs, tl.where(equal == 1, 12, 24)))
    return m


@triton.jit
def sorted_row(i_1, i_2, i_3, o_b, b_1, b_2, b_3, P: tl.constexpr, HEAD: tl.constexpr, W: tl.constexpr):
    """State rows of the multisets (i_1, ..., i_{P-1}, b), the prefix sorted by tiles, b in o_b anywhere; like o_b.

    Where tiles are equal any order of the indices names a row with the same value, because states are symmetric.
    b_R = index_rows(o_b, ..., R), the same for all prefixes.
    """
    M: tl.constexpr = HEAD // W
    t_b = o_b // W
    if P == 1:
        row = o_b
    elif P == 2:
        row = tl.where(t_b >= i_1 // W, index_rows(i_1, i_1 // W, 1, M, W) + o_b, b_1 + i_1)
    elif P == 3:
        last = index_rows(i_1, i_1 // W, 2, M, W) + index_rows(i_2, i_2 // W, 1, M, W) + o_b
        middle = index_rows(i_1, i_1 // W, 2, M, W) + i_2 + b_1
        front = index_rows(i_1, i_1 // W, 1, M, W) + i_2 + b_2
        row = tl.where(t_b >= i_2 // W, last, tl.where(t_b >= i_1 // W, middle, front))
    else:
        two = index_rows(i_1, i_1 // W, 3, M, W) + index_rows(i_2, i_2 // W, 2, M, W)
        last = two + index_rows(i_3, i_3 // W, 1, M, W) + o_b
        third = two + i_3 + b_1
        one = index_rows(i_2, i_2 // W, 1, M, W) + i_3
        second = index_rows(i_1, i_1 // W, 3, M, W) + one + b_2
        front = index_rows(i_1, i_1 // W, 2, M, W) + one + b_3
        row = tl.where(
            t_b >= i_3 // W, last, tl.where(t_b >= i_2 // W, third, tl.where(t_b >= i_1 // W, second, front))
        )
    if P >= 2:
        row += suffix_rows(M, P, W) - HEAD  # an index that no other follows has the part i - HEAD
    return row


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
