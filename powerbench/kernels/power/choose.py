"""Chunk and tile sizes where the caller leaves them open: a small measured table, never tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

from powerbench.kernels.power.feature_map import d_tiles, tspow_dim

WIDE = 64  # a head dimension above it makes a problem a wide one


class _Chunks(NamedTuple):
    """Tokens of a chunk where there are several, and up to where there is one instead: these shares of the length at
    which both forms multiply equally much. `training`: where gradients are wanted."""

    size: int
    forward: float = 0.5
    training: float = 0.5


class _Sizes(NamedTuple):
    """`d_tile` is a wish: the largest divisor of the head dimension up to it is taken (p = 1 has no tiles).

    `narrow` and `wide`: where no head dimension is above WIDE, and where one is. `attention_up_to`: one chunk up to
    this length in any case.
    """

    d_tile: int
    narrow: _Chunks
    wide: _Chunks
    attention_up_to: int = 0


# Measured on an H200 in bfloat16, gated, forward and forward + backward, for p = 1 at head dimension 64, p = 2 at 64
# and 128, p = 3 at 32 (docs/kernel-notes.md). Forward shares are above 1 because attention runs nearer to the roof of
# the tensor cores than the state's phases do. In training they are smaller: backward, attention makes seven products
# for forward's two, the state's phases four. At p = 3 forward alone was measured; training takes the share of p = 2 at
# narrow heads, and p = 4 takes over both. At head dimensions 16 and 32, p = 2, one chunk is still the faster at T =
# 2048 (0.060 against 0.070 ms, 0.049 against 0.064), chunks of 1024 are at 4096.
_CUDA = {
    1: _Sizes(256, narrow=_Chunks(128), wide=_Chunks(128)),
    2: _Sizes(8, narrow=_Chunks(1024, 1.6, 1.2), wide=_Chunks(2048, 1.35, 0.9), attention_up_to=2048),
    3: _Sizes(8, narrow=_Chunks(4096, 1.6, 1.2), wide=_Chunks(4096, 1.6, 1.2)),
    4: _Sizes(4, narrow=_Chunks(4096, 1.6, 1.2), wide=_Chunks(4096, 1.6, 1.2)),
}

# Measured on one core of an AMD EPYC (Zen 5, torch 2.13), forward, gated, T = 4096 or 8192, float32 and bfloat16, best
# of five, over d_tile 2 to 32 and chunks of 64 to 1024, for p = 1 at head dimension 64; p = 2 at 32, 64, 128; p = 3 at
# 16, 32; p = 4 at 16. At the lengths at which `choose` prefers the attention form alone it was the faster, or level.
# The like of it on another machine:
#   powerbench sweep --kernels power-torch --device cpu --heads 1 --kv-heads 1 --p 2 --head-dim 64 --ctx 8k \
#     --d-tile 4,8,16,32 --chunk 256,512,1024
_CPU = {
    1: _Sizes(256, narrow=_Chunks(256), wide=_Chunks(256)),
    2: _Sizes(8, narrow=_Chunks(512), wide=_Chunks(512)),
    3: _Sizes(2, narrow=_Chunks(512), wide=_Chunks(512)),
    4: _Sizes(2, narrow=_Chunks(1024), wide=_Chunks(1024)),
}


def choose(
    p: int,
    head_dim: int,
    value_dim: int,
    seqlen: int,
    device_type: str,
    chunk_size: int | None = None,
    d_tile: int | None = None,
    *,
    gradients: bool,
    streaming: bool = False,
) -> tuple[int, int]:
    """(chunk_size, d_tile) for a problem; what is given stays as it is. p is 1 to 4.

    A sequence that is short against the state gets one chunk as long as itself, which is the attention form alone,
    unless a state goes in or out (`streaming`): up to a share of the length at which both forms would multiply equally
    much, (d + e) T against 4 D e a token, and up to a length at which chunks cost more than they save. The share is
    another where `gradients` will be asked for. d_tile is that of `choose_d_tile`.
    """
    sizes = _sizes(p, device_type)
    if d_tile is None:
        d_tile = choose_d_tile(p, head_dim, device_type)
    if chunk_size is None:
        chunks = sizes.wide if max(head_dim, value_dim) > WIDE else sizes.narrow
        share = chunks.training if gradients else chunks.forward
        equal = 4 * tspow_dim(head_dim, p, d_tile) * value_dim / (head_dim + value_dim)
        short = seqlen <= max(share * equal, sizes.attention_up_to) and not streaming
        chunk_size = seqlen if short else chunks.size
    return chunk_size, d_tile


def choose_d_tile(p: int, head_dim: int, device_type: str) -> int:
    """Of these alone, so that all calls that hand a state on agree on its rows."""
    if p == 1:
        return head_dim
    return max(tile for tile in d_tiles(head_dim) if tile <= _sizes(p, device_type).d_tile)


def _sizes(p: int, device_type: str) -> _Sizes:
    return (_CUDA if device_type == "cuda" else _CPU)[p]
