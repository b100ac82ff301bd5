"""How much a contestant has to remember of a sequence: its state, or the keys and values of its cache."""

from __future__ import annotations

from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.state_size import state_bytes as state_bytes_of_degree
from powerbench.problem import ITEMSIZE
from powerbench.reports.curves import SOFTMAX
from powerbench.reports.rows import Row

_WITHOUT_STATE = ("flex-power", "compile-attention")  # power attention, but in its attention form alone


def state_bytes(row: Row) -> int | None:
    """Bytes to go on from, of one sequence and one layer; None where a kernel of this kind is not known.

    Of degree p: the state of each key/value head, with D rows by the kernel's d_tile, the smallest (symmetric) D where
    it has none. Of attention without a state: k and v of the context, or of its sliding window, in the problem's dtype.
    A decode row says itself what it keeps.
    """
    if row.sequence_bytes is not None:
        return row.sequence_bytes
    if row.window is not None or row.family in SOFTMAX or row.kernel in _WITHOUT_STATE:
        keys = min(row.ctx, row.window or row.ctx)
        return keys * row.kv_heads * (row.head_dim + row.value_dim) * ITEMSIZE[row.dtype]
    if row.p is None:
        return None
    tiled = row.d_tile is not None and row.head_dim % row.d_tile == 0
    rows = tspow_dim(row.head_dim, row.p, row.d_tile) if tiled and row.d_tile else None
    return row.kv_heads * state_bytes_of_degree(row.p, row.head_dim, row.value_dim, row.dtype, rows)
