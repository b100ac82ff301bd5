"""Chunk and tile sizes where the caller leaves them open: a small measured table, never tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

from powerbench.kernels.power.feature_map import d_tiles, tspow_dim


class _Sizes(NamedTuple):
    """`d_tile` is a wish: the largest divisor of the head dimension up to it is taken (p = 1 has no tiles).

    `wide_chunk_size` is the chunk where a head dimension is above 64. `attention_share`: one chunk up to this share of
    the length at which both forms multiply equally much; `attention_up_to`: and up to this length in any case.
    """

    d_tile: int
    chunk_size: int
    wide_chunk_size: int
    attention_share: float = 0.5
    attention_up_to: int = 0


# Measured on an H200 in bfloat16, gated, forward and forward + backward, for p = 1 at head dimension 64, p = 2 at 64
# and 128, p = 3 at 32 (docs/kernel-notes.md); p = 4 takes over the share of p = 2. It is above 1 because attention runs
# nearer to the roof of the tensor cores than the state's phases do. At head dimensions 16 and 32, p = 2, one chunk is
# still the faster at T = 2048 (0.060 against 0.070 ms, 0.049 against 0.064), chunks of 1024 are at 4096.
_CUDA = {
    1: _Sizes(256, 128, 128),
    2: _Sizes(8, 1024, 2048, 1.6, 2048),
    3: _Sizes(8, 4096, 4096, 1.6),
    4: _Sizes(4, 4096, 4096, 1.6),
}

# Measured on one core of an AMD EPYC (Zen 5, torch 2.13), forward, gated, T = 4096 or 8192, float32 and bfloat16, best
# of five, over d_tile 2 to 32 and chunks of 64 to 1024, for p = 1 at head dimension 64; p = 2 at 32, 64, 128; p = 3 at
# 16, 32; p = 4 at 16. At the lengths at which `choose` prefers the attention form alone it was the faster, or level.
# The like of it on another machine:
#   powerbench sweep --kernels power-torch --device cpu --heads 1 --kv-heads 1 --p 2 --head-dim 64 --ctx 8k \
#     --d-tile 4,8,16,32 --chunk 256,512,1024
_CPU = {1: _Sizes(256, 256, 256), 2: _Sizes(8, 512, 512), 3: _Sizes(2, 512, 512), 4: _Sizes(2, 1024, 1024)}


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
    """(chunk_size, d_tile) for a problem; what is given stays as it is. p is 1 to 4.

    d_tile depends on p, head_dim and device_type alone, so that calls that hand a state on agree on its rows. A
    sequence that is short against the state gets one chunk as long as itself, which is the attention form alone, unless
    a state goes in or out (`streaming`): up to a share of the length at which both forms would multiply equally much,
    (d + e) T against 4 D e a token, and up to a length at which chunks cost more than they save.
    """
    sizes = (_CUDA if device_type == "cuda" else _CPU)[p]
    if d_tile is None:
        d_tile = head_dim if p == 1 else max(tile for tile in d_tiles(head_dim) if tile <= sizes.d_tile)
    if chunk_size is None:
        equal = 4 * tspow_dim(head_dim, p, d_tile) * value_dim / (head_dim + value_dim)
        short = seqlen <= max(sizes.attention_share * equal, sizes.attention_up_to) and not streaming
        wide = max(head_dim, value_dim) > 64
        chunk_size = seqlen if short else sizes.wide_chunk_size if wide else sizes.chunk_size
    return chunk_size, d_tile
