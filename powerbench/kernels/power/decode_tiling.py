"""How a decoding step in Triton cuts its work; the launcher and the ledger both take it from here. No torch.

The state of one sequence and key/value head is read in tiles of `rows` rows, several of them by one program, so that
many programs stream at once where the batch is small and few partial sums are written where it is large. Sizes are
chosen from the bytes that a multiprocessor must keep in flight (about 30 KB on an H200), not tuned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from powerbench.kernels.power.feature_map import feature_map

TILE_ELEMENTS = 2048  # 16 a thread of four warps
MAX_ROWS = 64  # phi of a window's tokens, [WINDOW_TOKENS, rows], has to stay in registers
MAX_TILES = 8  # a program: enough that its partial sums are little beside what it reads
PROGRAMS = 2048  # wanted before a program takes more than one tile
WINDOW_TOKENS = 16  # of the KV window a step
INDEX_BITS = 7  # head dimensions of the Triton backend go up to 128


class Split(NamedTuple):
    """`programs` programs for the state of a head, each with `tiles` tiles of `rows` rows (the last with fewer)."""

    rows: int
    tiles: int
    programs: int


def split(dim: int, e: int, heads: int) -> Split:
    """For states of `dim` rows and e columns; `heads`: batch times key/value heads."""
    rows = min(MAX_ROWS, max(16, TILE_ELEMENTS // e))
    number = -(-dim // rows)
    tiles = min(MAX_TILES, max(1, number * heads // PROGRAMS))
    return Split(rows, tiles, -(-number // tiles))


def packed_indices(d: int, p: int, d_tile: int) -> np.ndarray:
    """int32 [D]: the index tuple of each row, the first index in the lowest 7 bits. d is at most 128, p at most 4."""
    shifts = INDEX_BITS * np.arange(p, dtype=np.int32)
    packed: np.ndarray = (feature_map(d, p, d_tile).indices << shifts).sum(axis=1, dtype=np.int32)
    return packed
