"""How the Triton kernels cut their work: tile sizes, bricks of state rows, and what is really multiplied.

Pure Python and numpy. The portable kernels take their tile sizes from here and the ledger counts with the same
functions, so that the two cannot disagree; Hopper's kernels name their own (`*_hopper.py`). Every launch multiplies
whole tiles: chunks are rounded up to whole tiles of tokens, and queries meet the keys of the chunk in those tiles of
`tokens` by `rows` that hold a causal pair.

Bricks. The rows of the state that share (i_1, ..., i_{p-1}) are a fibre: one product of p - 1 columns of x times the
columns x[:, start:] (see `feature_map`). The tensor cores want more rows than a narrow fibre has, so a matrix product
works on a brick: `fibres` neighbouring values of i_1 times `columns` neighbouring values of i_p, for fixed
(i_2, ..., i_{p-1}). Its phi is an outer product of two short runs of columns of x, both contiguous in memory. Bricks
stop where the tiles stop when d_tile is a multiple of both sides; when d_tile is smaller, the bricks on the diagonal
also cover rows that the state does not keep, and these are masked (read as zero, never written).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from powerbench.kernels.power.feature_map import feature_map

DEGREES = (1, 2, 3, 4)
HEAD_DIMS = (16, 32, 64, 128)  # of q and k, and of v: powers of two that the tensor cores take


@dataclass(frozen=True)
class Tiles:
    """A launch's tile sizes: tokens per tile, rows of the other operand (keys, or state rows), and Triton's knobs."""

    tokens: int
    rows: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Brick:
    """Sides of a brick: values of i_1 (1 when p = 1, which has no such index) and values of i_p."""

    fibres: int
    columns: int

    @property
    def rows(self) -> int:
        """State rows a brick covers, those it masks included."""
        return self.fibres * self.columns


def check_sizes(p: int, d: int, e: int) -> None:
    """Raise ValueError, saying what is allowed, unless the kernels have this degree and these head dimensions."""
    if p not in DEGREES:
        raise ValueError(f"p is {p}; the Triton backend has p in {_listed(DEGREES)}")
    if d not in HEAD_DIMS:
        raise ValueError(f"the head dimension of q and k is {d}; the Triton backend has {_listed(HEAD_DIMS)}")
    if e not in HEAD_DIMS:
        raise ValueError(f"the head dimension of v is {e}; the Triton backend has {_listed(HEAD_DIMS)}")


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def chunks(seqlen: int, chunk_size: int) -> tuple[int, int]:
    """Chunk length really used (never above seqlen) and number of chunks; the last chunk may be shorter."""
    length = min(seqlen, chunk_size)
    return length, -(-seqlen // length)


def _token_tile(wanted: int, chunk: int) -> int:
    return min(wanted, max(16, 1 << (chunk - 1).bit_length()))


# The sizes below follow the first trials on an H200 (bf16, p = 2, d = e = 64: docs/kernel-notes.md) and, elsewhere, the
# compiler's own count of registers: tiles of 128 tokens, four warps while a float32 accumulator of [tokens, 64] is held
# and eight beyond. float32 products run on the ordinary cores, which need smaller tiles.


def attend_tiles(d: int, e: int, chunk: int, itemsize: int) -> Tiles:
    """BM query rows (`tokens`) times BN keys (`rows`) of the attention inside a chunk of `chunk` tokens."""
    if itemsize == 4:
        return Tiles(_token_tile(32, chunk), _token_tile(32, chunk), 4, 2)
    wide = max(d, e) > 64
    return Tiles(_token_tile(128, chunk), _token_tile(64, chunk), 8 if wide else 4, 2 if wide else 3)


def state_rows(itemsize: int) -> int:
    """State rows a step where rows of q or k meet a state (`contract`)."""
    return 32 if itemsize == 4 else 64


def update_tiles(d: int, e: int, chunk: int, itemsize: int) -> Tiles:
    """Tokens a step, and state rows a program, of update_state."""
    if itemsize == 4:
        return Tiles(_token_tile(32, chunk), 64, 4, 2)
    return Tiles(_token_tile(64, chunk), 256, 4 if e <= 64 else 8, 3)


def brick(d: int, p: int, d_tile: int, rows: int) -> Brick:
    """The sides of bricks of at most `rows` state rows (a power of two): as square as d_tile asks, columns up to 64."""
    if p == 1:
        return Brick(1, min(d, rows))
    square = 1 << (rows.bit_length() - 1) // 2
    columns = min(d, 64, max(d_tile, square), rows)
    return Brick(min(d, rows // columns), columns)


def brick_counts(d: int, p: int, d_tile: int, shape: Brick) -> list[int]:
    """How many bricks stand at each run of `columns` columns; together they cover the state."""

    def tile_end(index: int) -> int:  # the indices below it may stand before `index` in a tuple
        return (index // d_tile + 1) * d_tile

    @cache
    def prefixes(limit: int, degree: int) -> int:
        if degree == 1:
            return -(-limit // shape.fibres)
        return sum(prefixes(tile_end(i), degree - 1) for i in range(limit))

    starts = range(0, d, shape.columns)
    if p == 1:
        return [1] * len(starts)
    return [prefixes(tile_end(start + shape.columns - 1), p - 1) for start in starts]


def brick_table(d: int, p: int, d_tile: int, shape: Brick) -> np.ndarray:
    """int32 [bricks, 4]: first i_p, first i_1, i_2 and i_3 of each brick; an index that degree p lacks is 0."""
    starts = np.arange(0, d, shape.columns)
    table = np.zeros((len(starts), 4), dtype=np.int64)
    table[:, 0] = starts
    last = starts + shape.columns - 1
    for column in range(p - 1, 0, -1):  # the middle indices from the last to the second, then i_1
        step = shape.fibres if column == 1 else 1
        repeats = -(-(last // d_tile + 1) * d_tile // step)
        parent = np.repeat(np.arange(len(table)), repeats)
        within = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        table = table[parent]
        table[:, column] = last = within * step
    return table.astype(np.int32)


def brick_row_table(d: int, p: int, d_tile: int, shape: Brick) -> np.ndarray:
    """int32 [bricks, rows of a brick]: the state rows of each brick, i_1 major; -1 where the state keeps none."""
    fm = feature_map(d, p, d_tile)
    powers = d ** np.arange(p - 1, -1, -1, dtype=np.int64)
    keys = fm.indices.astype(np.int64) @ powers  # ascending: the rows stand in lexicographic order
    first = brick_table(d, p, d_tile, shape).astype(np.int64)
    columns = first[:, :1, None] + np.arange(shape.columns)  # [bricks, 1, columns]
    wanted = columns * powers[-1]
    if p > 1:
        wanted = wanted + (first[:, 1, None] + np.arange(shape.fibres))[:, :, None] * powers[0]
    for middle in range(2, p):  # i_2, then i_3
        wanted = wanted + first[:, middle, None, None] * powers[middle - 1]
    wanted = wanted.reshape(len(first), -1)
    rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[rows] == wanted, rows, -1).astype(np.int32)


def executed_rows(d: int, p: int, d_tile: int, rows: int) -> int:
    """State rows multiplied per token with bricks of `rows` rows: at least D, more where bricks are masked."""
    shape = brick(d, p, d_tile, rows)
    return sum(brick_counts(d, p, d_tile, shape)) * shape.rows


# The backward pass: sizes at which the compiler spills few registers on sm_90 (Triton 3.6 and 3.9), with rows of 128 in
# 16 bits, because every tile of rows reads a whole state.


def query_gradient_tiles(d: int, e: int, chunk: int, itemsize: int) -> Tiles:
    """BM query rows (`tokens`, a multiple of BN) times BN keys (`rows`) of query_gradient."""
    wide = max(d, e) > 64
    if itemsize == 4:
        return Tiles(_token_tile(32, chunk), _token_tile(16 if wide else 32, chunk), 8, 2)
    return Tiles(_token_tile(128, chunk), _token_tile(32 if wide else 64, chunk), 8, 2 if wide else 3)


def key_value_gradient_tiles(d: int, e: int, chunk: int, itemsize: int) -> Tiles:
    """BM queries a step (`tokens`) times BN key rows (`rows`) of key_value_gradient."""
    wide = max(d, e) > 64
    if itemsize == 4:
        return Tiles(_token_tile(16 if wide else 32, chunk), _token_tile(32, chunk), 8, 2)
    return Tiles(_token_tile(32 if wide else 64, chunk), _token_tile(128, chunk), 8, 2)
