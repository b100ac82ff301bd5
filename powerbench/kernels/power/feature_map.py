"""Feature maps phi with phi(q) . phi(k) = <q, k>^p: TPOW, SPOW and the tiled TSPOW between them.

The only owner of the state's dimension D, of the order of its rows and of their multiplicities. TSPOW(d_tile) cuts
the d coordinates into d / d_tile tiles and keeps one row per index tuple (i_1, ..., i_p) whose tiles do not decrease:

    tile(i_1) <= tile(i_2) <= ... <= tile(i_p),   tile(i) = i // d_tile

in lexicographic order of the tuples. d_tile = 1 keeps one row per multiset (SPOW), d_tile = d keeps them all (TPOW).
A row stands for `multiplicity` permuted copies in the full tensor power, p! / prod(m_t!) with m_t the times tile t
occurs in the tuple, so

    <q, k>^p = sum_r multiplicity[r] * prod_l q[indices[r, l]] * prod_l k[indices[r, l]].

Rows stay unweighted in the state (S = sum phi(k) v^T holds plain products of k); the multiplicity is applied on the
query's side only. Because the order is lexicographic, the rows that share (i_1, ..., i_{p-1}) are contiguous and
their last index runs over tile(i_{p-1}) * d_tile .. d - 1: kernels build on these fibres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb, factorial

import numpy as np


def tpow_dim(d: int, p: int) -> int:
    """Rows of the full tensor power: d^p."""
    return int(d**p)  # p is an int of at least 1; to the type checker d**p might be a fraction


def spow_dim(d: int, p: int) -> int:
    """Rows of the symmetric power, the smallest state there is: C(d + p - 1, p)."""
    return comb(d + p - 1, p)


def tspow_dim(d: int, p: int, d_tile: int) -> int:
    """Rows of the tiled symmetric power: C(d / d_tile + p - 1, p) * d_tile^p. Raises ValueError as `feature_map`."""
    _check(d, p, d_tile)
    return comb(d // d_tile + p - 1, p) * tpow_dim(d_tile, p)


def d_tiles(d: int) -> list[int]:
    """The tile sizes a head dimension allows: its divisors, ascending."""
    return [tile for tile in range(1, d + 1) if d % tile == 0]


def _check(d: int, p: int, d_tile: int) -> None:
    if d < 1:
        raise ValueError(f"head dimension is {d}; it must be at least 1")
    if p < 1:
        raise ValueError(f"p is {p}; the degree must be an integer of at least 1")
    if d_tile < 1 or d % d_tile:
        allowed = ", ".join(map(str, d_tiles(d)))
        raise ValueError(f"d_tile is {d_tile}; for head dimension {d} it must be one of {allowed}")


@dataclass(frozen=True)
class FeatureMap:
    """TSPOW for one head dimension d, degree p and tile size. Build it with `feature_map`, which checks and caches."""

    d: int
    p: int
    d_tile: int

    @property
    def dim(self) -> int:
        """D, the number of rows."""
        return tspow_dim(self.d, self.p, self.d_tile)

    @cached_property
    def indices(self) -> np.ndarray:
        """int32 [D, p]: the index tuple of each row."""
        tuples = np.zeros((1, 0), dtype=np.int32)
        for _ in range(self.p):
            if tuples.shape[1] == 0:
                first = np.zeros(1, dtype=np.int64)
            else:
                first = tuples[:, -1].astype(np.int64) // self.d_tile * self.d_tile
            width = self.d - first
            parent = np.repeat(np.arange(len(tuples)), width)
            within = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
            last = (first[parent] + within).astype(np.int32)
            tuples = np.concatenate([tuples[parent], last[:, None]], axis=1)
        return tuples

    @cached_property
    def multiplicity(self) -> np.ndarray:
        """float64 [D]: how many entries of the full tensor power each row stands for; sums to d^p over all rows."""
        tiles = self.indices // self.d_tile
        arrangements = np.full(len(tiles), float(factorial(self.p)))
        run = np.ones(len(tiles))
        for position in range(1, self.p):  # dividing by 1, 2, ..., m along each run of equal tiles gives m!
            run = np.where(tiles[:, position] == tiles[:, position - 1], run + 1, 1)
            arrangements /= run
        return arrangements


@lru_cache(maxsize=64)
def feature_map(d: int, p: int, d_tile: int) -> FeatureMap:
    """TSPOW(d_tile) of degree p on d coordinates.

    Raises ValueError, saying what is allowed, unless d >= 1, p >= 1 and d_tile divides d.
    """
    _check(d, p, d_tile)
    return FeatureMap(d, p, d_tile)
