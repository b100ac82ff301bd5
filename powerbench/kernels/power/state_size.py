"""What power attention has to keep of a sequence, in bytes, whatever computes it. No torch."""

from __future__ import annotations

from powerbench.kernels.power.feature_map import spow_dim


def normalized_by_default(p: int) -> bool:
    """Even powers are weights, which a sum can normalise; sums of odd powers can vanish."""
    return p % 2 == 0


def state_itemsize(dtype: str) -> int:
    """Bytes of an element of a state, for inputs of this dtype: sums are kept in float32, for float64 in float64."""
    return 8 if dtype == "fp64" else 4


def state_bytes(p: int, head_dim: int, value_dim: int, dtype: str, rows: int | None = None) -> int:
    """Bytes of the state [D, e] of one sequence and key/value head, with, where it is normalised, the sums [D] of its
    denominator: the `PowerState` of `power_attention`. `rows`: D; None: of the smallest feature map."""
    columns = value_dim + normalized_by_default(p)
    return (spow_dim(head_dim, p) if rows is None else rows) * columns * state_itemsize(dtype)
