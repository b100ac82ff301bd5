"""Bricks cover every state row exactly once, and the ledger's counts are those of the table the kernels walk."""

from __future__ import annotations

import numpy as np
import pytest

from powerbench.kernels.power.feature_map import d_tiles, feature_map, tspow_dim
from powerbench.kernels.power.tiling import (
    attend_tiles,
    brick,
    brick_counts,
    brick_table,
    check_sizes,
    chunks,
    executed_rows,
    key_value_gradient_tiles,
    query_gradient_tiles,
    update_tiles,
)

SMALL = [(16, p, d_tile) for p in (1, 2, 3, 4) for d_tile in d_tiles(16)] + [
    (64, 2, 1), (64, 2, 8), (64, 2, 16), (64, 2, 64), (128, 2, 2), (128, 2, 128), (32, 3, 4), (32, 3, 32),
]  # fmt: skip


def kept_tuples(d, p, d_tile, shape):
    """All index tuples of all bricks, in the table's order, those that the state does not keep left out."""
    tuples = []
    for c_0, i_1, i_2, i_3 in brick_table(d, p, d_tile, shape):
        first, last = np.meshgrid(i_1 + np.arange(shape.fibres), c_0 + np.arange(shape.columns), indexing="ij")
        middle = [np.full_like(first, i) for i in (i_2, i_3)[: max(p - 2, 0)]]
        block = np.stack([first, *middle, last][-p:] if p > 1 else [last], axis=-1).reshape(-1, p)
        assert block.max() < d
        tuples.append(block[(np.diff(block // d_tile, axis=1) >= 0).all(axis=1)])
    return np.concatenate(tuples)


@pytest.mark.parametrize(("d", "p", "d_tile"), SMALL)
@pytest.mark.parametrize("rows", [32, 64, 256])
def test_bricks_cover_every_state_row_once(d, p, d_tile, rows):
    tuples = kept_tuples(d, p, d_tile, brick(d, p, d_tile, rows))
    order = np.lexsort(tuples.T[::-1])
    np.testing.assert_array_equal(tuples[order], feature_map(d, p, d_tile).indices)


@pytest.mark.parametrize(("d", "p", "d_tile"), SMALL)
@pytest.mark.parametrize("rows", [32, 64, 256])
def test_counts_are_those_of_the_table(d, p, d_tile, rows):
    shape = brick(d, p, d_tile, rows)
    table = brick_table(d, p, d_tile, shape)
    blocks = np.bincount(table[:, 0] // shape.columns, minlength=d // shape.columns)
    assert blocks.tolist() == brick_counts(d, p, d_tile, shape)
    assert executed_rows(d, p, d_tile, rows) == len(table) * shape.rows >= tspow_dim(d, p, d_tile)
    assert (np.diff(table[:, 0]) >= 0).all()  # by columns: contract keeps them in registers


@pytest.mark.parametrize(
    ("d", "p", "d_tile", "rows", "expected"),
    [
        (64, 2, 64, 64, 4096),  # the full tensor power
        (64, 2, 16, 64, 2560),  # nothing wasted while d_tile is a multiple of both sides
        (64, 2, 8, 64, 2304),
        (64, 2, 16, 256, 2560),
        (64, 2, 1, 64, 2304),  # of 2080: the bricks on the diagonal are half masked
        (64, 3, 8, 64, 61440),
        (64, 1, 64, 64, 64),
    ],
)
def test_executed_rows_of_known_cases(d, p, d_tile, rows, expected):
    assert executed_rows(d, p, d_tile, rows) == expected


def test_token_tiles_never_exceed_the_rounded_chunk():
    for tiles in (attend_tiles, update_tiles, query_gradient_tiles, key_value_gradient_tiles):
        for itemsize in (2, 4):
            assert [tiles(64, 64, chunk, itemsize).tokens for chunk in (1, 16, 17)] == [16, 16, 32]


@pytest.mark.parametrize("chunk", [1, 16, 33, 1024])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_smaller_tiles_divide_larger_ones(chunk, head_dim, itemsize):
    """The kernels' loops rely on it, and the ledger's count of covered pairs: no tile begins inside another."""
    for tiles in (attend_tiles, query_gradient_tiles):
        sides = tiles(head_dim, head_dim, chunk, itemsize)
        assert sides.tokens % sides.rows == 0
    sides = key_value_gradient_tiles(head_dim, head_dim, chunk, itemsize)
    assert sides.rows % sides.tokens == 0


def test_chunks_are_never_longer_than_the_sequence():
    assert chunks(1000, 512) == (512, 2)
    assert chunks(1000, 4096) == (1000, 1)
    assert chunks(1, 1) == (1, 1)


@pytest.mark.parametrize(("p", "d", "e", "named"), [(5, 64, 64, "p is 5"), (2, 48, 64, "48"), (2, 64, 256, "256")])
def test_refuses_sizes_the_kernels_lack(p, d, e, named):
    with pytest.raises(ValueError, match=named):
        check_sizes(p, d, e)
