"""Chunk and tile sizes where the caller leaves them open: a small measured table, never tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

from powerbench.kernels.power.feature_map import d_tiles, tspow_dim


class _Sizes(NamedTuple):
    """`d_tile` is a wish: the largest divisor of the head dimension up to it is taken."""

    d_tile: int
    chunk_size: int


_CUDA = {1: _Sizes(256, 128), 2: _Sizes(16, 1024), 3: _Sizes(8, 2048), 4: _Sizes(4, 4096)}
_CPU = {1: _Sizes(256, 256), 2: _Sizes(8, 512), 3: _Sizes(8, 1024), 4: _Sizes(4, 2048)}


def choose(
    p: int,
    head_dim: int,
    value_dim: int,
    seqlen: int,
    device_type: str,
    chunk_size: int | None = None,
    d_tile: int | None = None,
    *,
    streaming: bool = False,
) -> tuple[int, int]:
    """(chunk_size, d_tile) for a problem, with those that are given left as they are. p is 1 to 4.

    d_tile depends on p, head_dim and device_type only, so that the calls that hand a state on agree on its rows.
    Sequences that are short against the state's dimension get one chunk as long as themselves (the attention form
    alone), unless a state goes in or out (`streaming`).
    """
    sizes = (_CUDA if device_type == "cuda" else _CPU)[p]
    if d_tile is None:
        d_tile = head_dim if p == 1 else max(tile for tile in d_tiles(head_dim) if tile <= sizes.d_tile)
    if chunk_size is None:
        state = 2 * tspow_dim(head_dim, p, d_tile) * value_dim // (head_dim + value_dim)
        chunk_size = seqlen if seqlen <= state and not streaming else sizes.chunk_size
    return chunk_size, d_tile
