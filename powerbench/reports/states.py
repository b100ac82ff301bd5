"""How much a contestant has to remember of a sequence: its state, or the keys and values of its cache."""

from __future__ import annotations

from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.problem import ITEMSIZE
from powerbench.reports.curves import SOFTMAX
from powerbench.reports.rows import Row

_STATE_ITEMSIZE = 4  # sums are kept in float32


def state_bytes(row: Row) -> int | None:
    """Bytes to go on from, of one sequence and one layer; None where a kernel of this kind is not known.

    Of degree p: D x e in float32 for each key/value head, D by the kernel's d_tile (feature_map), the smallest
    (symmetric) D where it has none. Of softmax attention: k and v of the context, in the problem's dtype.
    """
    if row.p is not None:
        tiled = row.d_tile is not None and row.head_dim % row.d_tile == 0
        rows = tspow_dim(row.head_dim, row.p, row.d_tile) if tiled and row.d_tile else spow_dim(row.head_dim, row.p)
        return rows * row.value_dim * row.kv_heads * _STATE_ITEMSIZE
    if row.family in SOFTMAX:
        return row.ctx * row.kv_heads * (row.head_dim + row.value_dim) * ITEMSIZE[row.dtype]
    return None
