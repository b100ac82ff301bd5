"""The flat layout of a chunk's state, as the Triton kernels hold it between launches. No torch."""

from __future__ import annotations

from typing import NamedTuple

from powerbench.kernels.power.feature_map import tspow_dim

ONES_WIDTH = 16  # p = 1 has no degree below it: its Z sums x against ones, of the narrowest width a product takes


class StateSizes(NamedTuple):
    """The flat layout of one chunk's state: S [rows, width], then Z [z_rows, z_width] (no rows where none is kept)."""

    rows: int
    width: int
    z_rows: int
    z_width: int

    @property
    def elements(self) -> int:
        """Elements of one state."""
        return self.rows * self.width + self.z_rows * self.z_width

    @property
    def z_start(self) -> int:
        """Where Z begins."""
        return self.rows * self.width


def state_sizes(p: int, d: int, e: int, d_tile: int, *, with_z: bool) -> StateSizes:
    """Sizes of a state of degree p; Z is of degree p - 1 against the d columns of x (p = 1: degree 1 against ones)."""
    rows = tspow_dim(d, p, d_tile)
    if not with_z:
        return StateSizes(rows, e, 0, d)
    return StateSizes(rows, e, d, ONES_WIDTH) if p == 1 else StateSizes(rows, e, tspow_dim(d, p - 1, d_tile), d)
