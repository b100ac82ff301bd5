"""How a decoding step in Triton cuts its work; the launcher and the ledger both take it from here. No torch.

The state of one sequence and key/value head is read in tiles of `rows` rows, several of them by one program, so that
many programs stream at once where the batch is small and few partial sums are written where it is large. A program asks
memory for a whole tile before it does anything else. An H200's multiprocessor must have about 30 KB on the way at any
time, and programs spend most of theirs otherwise: four or five tiles of 32 KB beside each other have room to spare.
Sizes are chosen from these figures and from registers as compiled; those for one query were measured on an H200, at
d = e = 64 (docs/kernel-notes.md).

A plain bfloat16 state is read otherwise where `walks` says so: by programs that stay, and walk over the tiles of all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from powerbench.kernels.power.feature_map import feature_map

# Of a tile that one query meets: 64 registers a thread of four warps, 32 KB. Of a lazy state in 16 bits twice as many,
# which take as many registers and are as many bytes on the way.
READ_ELEMENTS = 8192
MOVED_ELEMENTS = 4096  # of one that meets several queries, as a matrix
MANY_QUERIES = 16  # beyond, their sums take registers too
PIECE_ELEMENTS = 2048  # of a lazy state's tile, moved on at once: few registers, because this is seldom
MAX_ROWS = 128  # one a thread, which makes phi of it; of a lazy state in 16 bits two
MANY_ROWS = 64  # where phi of 16 tokens or queries has to stay in registers at once
MIN_ROWS = 16  # what a product takes
MAX_TILES = 4  # a program: enough that its partial sums are little beside what it reads
LAZY_TILES = 2  # likewise for one query and a lazy state: the tiles of a program are moved on one after another
RESIDENT_PROGRAMS = 660  # stand beside each other on an H200 at once: five on each multiprocessor
LEAST_FRONT, MOST_FRONT = 2, 4  # sequences folded first: of those that are due, the last ones delay the end
FOLD_TOKENS = 16  # moved into a piece at once: what a product takes; 32 spill registers
LAZY_REGISTERS = 96  # five programs on a multiprocessor; without the bound ptxas takes up to 110, for as little
WIDE_REGISTERS = 128  # for tiles of 256 rows, whose addresses would be spilled: four programs
PROGRAMS = 8192  # wanted before a program takes more than one tile
LEAST_PROGRAMS = 132  # one for each multiprocessor of an H200: below, tiles are halved
WINDOW_TOKENS = 16  # of the KV window at once: what a product takes
WINDOW_BYTES = 16384  # of the KV window on the way to a query: all of 64 tokens at d = e = 64 in bfloat16
WALK_ROWS = 128  # of a tile that is walked over, one a thread: 16 KB at e = 64
WALK_COLUMNS = 64  # at most: wider tiles spill, and do not leave room for three programs
WALK_PROGRAMS = 3  # on each multiprocessor at once
WALK_STAGES = 3  # of a program's pipeline: two tiles come in, one goes out; 48 KB of shared memory at e = 64
WALK_REGISTERS = 168  # a thread, so that three programs have room
WALK_LANES = 16  # rows of sums that a walker keeps
INDEX_BITS = 7  # head dimensions of the Triton backend go up to 128


class Split(NamedTuple):
    """`programs` programs for the state of a head, each with `tiles` tiles of `rows` rows (the last with fewer)."""

    rows: int
    tiles: int
    programs: int


def split(dim: int, e: int, heads: int, queries: int, lazy: bool, itemsize: int) -> Split:
    """For states of `dim` rows, e columns, itemsize bytes; `heads`: batch times key/value heads, `queries`: of one."""
    wide = 4 // itemsize if lazy else 1
    elements = READ_ELEMENTS * wide if queries == 1 else MOVED_ELEMENTS
    elements = elements if queries <= MANY_QUERIES else PIECE_ELEMENTS
    most = MAX_ROWS * wide if queries == 1 else MANY_ROWS
    rows = max(MIN_ROWS, min(most, elements // e, 1 << (dim - 1).bit_length()))
    while rows > 2 * MIN_ROWS and -(-dim // rows) * heads < LEAST_PROGRAMS:
        rows //= 2
    number = -(-dim // rows)
    tiles = min(LAZY_TILES if lazy and queries == 1 else MAX_TILES, max(1, number * heads // PROGRAMS))
    return Split(rows, tiles, -(-number // tiles))


class Walk(NamedTuple):
    """`walkers` programs share the tiles of all states, in their order; none has over one tile more than another.

    A state has `tiles` tiles, of WALK_ROWS rows, and is met by `slots` walkers at most.
    """

    tiles: int
    walkers: int
    slots: int


def walks(
    dim: int, e: int, heads: int, queries: int, itemsize: int, *, lazy: bool, dense: bool, processors: int
) -> bool:
    """Whether a step walks over the states (`walk_kernel`); else they are cut by `split`.

    Sizes as `split` has them. dense: the states lie one behind the other, from an address that TMA takes. processors:
    multiprocessors of a device that has TMA, else 0. A walk has no product for several queries. Measured on an H200 at
    p = 2, d = e = 64 alone (docs/kernel-notes.md) it takes 3 to 21 % less time than `step_kernel` where the state is
    bfloat16, more where it is float32.
    """
    plain = itemsize == 2 and queries == 1 and not lazy
    whole = dense and dim % WALK_ROWS == 0 and heads * dim < 1 << 31  # TMA counts rows in int32
    return plain and whole and e <= WALK_COLUMNS and processors > 0


def walk(dim: int, heads: int, processors: int) -> Walk:
    """For `heads` states of `dim` rows: batch times key/value heads; multiprocessors as in `walks`."""
    tiles = dim // WALK_ROWS
    walkers = min(heads * tiles, WALK_PROGRAMS * processors)
    shortest = heads * tiles // walkers
    return Walk(tiles, walkers, -(-(tiles - 1) // shortest) + 1)


def front_sequences(batch: int, programs: int, window: int) -> int:
    """How many sequences the first programs of a lazy step can move on; `programs`: those of one sequence.

    None where all programs run at once: there a fold begins at once anyway. Else as many as are due where ages differ,
    one in `window`, but at most MOST_FRONT: they take the due sequences that stand last, and of the others' folds most
    are done before the last tile is read. Where all are due, all the others fold as they would without, and so many are
    read twice. On an H200 four are as fast as two at batch 64 and 7 % faster at 256 (window 64, bfloat16 state); a
    float32 state does not show it.
    """
    if batch * programs <= RESIDENT_PROGRAMS:
        return 0
    return max(LEAST_FRONT, min(MOST_FRONT, -(-batch // window)))


def most_registers(e: int, queries: int, lazy: bool, itemsize: int, token_itemsize: int) -> int | None:
    """Bound on a thread's registers, where a step was compiled with it and spilled none; itemsize: of the state."""
    if not lazy or queries > 1 or e > 64 or token_itemsize > 2:
        return None
    return LAZY_REGISTERS if itemsize == 4 else WIDE_REGISTERS


def piece(rows: int, e: int) -> int:
    """Rows of a lazy state's tile of `rows` rows that are moved on at once."""
    return min(rows, MANY_ROWS, max(MIN_ROWS, PIECE_ELEMENTS // e))


def window_stages(d: int, e: int, itemsize: int) -> int:
    """Stages of the pipeline in which a query meets its window, WINDOW_TOKENS a step."""
    return 1 + max(1, WINDOW_BYTES // (WINDOW_TOKENS * (d + e) * itemsize))


def packed_indices(d: int, p: int, d_tile: int) -> np.ndarray:
    """int32 [D]: the index tuple of each row, the first index in the lowest 7 bits. d is at most 128, p at most 4."""
    shifts = INDEX_BITS * np.arange(p, dtype=np.int32)
    packed: np.ndarray = (feature_map(d, p, d_tile).indices << shifts).sum(axis=1, dtype=np.int32)
    return packed
