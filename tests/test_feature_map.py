"""The feature maps: dimensions, order and multiplicities of the state's rows, and phi(q) . phi(k) = <q, k>^p."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise, product
from math import comb

import numpy as np
import pytest
import torch

from powerbench.kernels.power.feature_map import d_tiles, feature_map, spow_dim, tpow_dim, tspow_dim
from powerbench.kernels.power.torch_backend import expand

MAPS = [
    (d, p, d_tile)
    for d, p in [(1, 3), (6, 1), (6, 2), (12, 2), (12, 3), (5, 3), (8, 4), (6, 4)]
    for d_tile in d_tiles(d)
]


def test_dimensions_of_the_paper():
    assert [tspow_dim(64, 2, tile) for tile in (1, 8, 16, 32, 64)] == [2080, 2304, 2560, 3072, 4096]
    assert [tspow_dim(64, 3, tile) for tile in (1, 4, 8, 16)] == [45760, 52224, 61440, 81920]
    assert [tspow_dim(32, 3, tile) for tile in (1, 4)] == [5984, 7680]
    assert [tspow_dim(16, 4, tile) for tile in (1, 4)] == [3876, 8960]


@pytest.mark.parametrize(("d", "p", "d_tile"), MAPS)
def test_rows_are_the_tuples_with_tiles_in_order(d, p, d_tile):
    """Against the definition: every tuple of the full tensor power whose tiles do not decrease, lexicographically."""
    expected = [t for t in product(range(d), repeat=p) if all(a // d_tile <= b // d_tile for a, b in pairwise(t))]
    fm = feature_map(d, p, d_tile)
    assert fm.dim == len(expected) == tspow_dim(d, p, d_tile)
    assert fm.indices.tolist() == [list(t) for t in expected]
    assert fm.multiplicity.sum() == pytest.approx(d**p, rel=1e-14)


@pytest.mark.parametrize(("d", "p"), [(7, 1), (7, 2), (6, 3), (5, 4)])
def test_the_extremes_are_spow_and_tpow(d, p):
    assert tspow_dim(d, p, 1) == spow_dim(d, p) == comb(d + p - 1, p)
    assert tspow_dim(d, p, d) == tpow_dim(d, p) == d**p
    assert feature_map(d, p, 1).indices.tolist() == [list(t) for t in combinations_with_replacement(range(d), p)]
    assert (feature_map(d, p, d).multiplicity == 1).all()


@pytest.mark.parametrize(("d", "p", "d_tile"), MAPS)
def test_inner_product_is_the_power(d, p, d_tile):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 5, d))
    fm = feature_map(d, p, d_tile)
    phi_q, phi_k = q[:, fm.indices].prod(-1), k[:, fm.indices].prod(-1)
    exact = (q @ k.T) ** p
    bound = (np.abs(q) @ np.abs(k).T) ** p  # cancellation: the error is relative to this
    np.testing.assert_array_less(np.abs((phi_q * fm.multiplicity) @ phi_k.T - exact), 1e-14 * bound)


@pytest.mark.parametrize(("d", "p", "d_tile"), MAPS)
@pytest.mark.parametrize("gradients", [False, True])
def test_expand_has_the_order_of_the_feature_map(d, p, d_tile, gradients):
    """Integer inputs: products are exact, whatever order they are multiplied in; both ways of `expand` are taken."""
    x = torch.randint(-3, 4, (2, 3, d, 7), generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_(gradients)
    rows = torch.from_numpy(feature_map(d, p, d_tile).indices).long()
    expected = torch.stack([x[..., index, :].prod(dim=-2) for index in rows], dim=-2)
    phi = expand(x, p, d_tile)
    assert phi.requires_grad == gradients
    assert torch.equal(phi, expected)


@pytest.mark.parametrize(
    ("d", "p", "d_tile", "message"),
    [
        (0, 2, 1, "head dimension is 0; it must be at least 1"),
        (8, 0, 1, "p is 0; the degree must be an integer of at least 1"),
        (12, 2, 5, "d_tile is 5; for head dimension 12 it must be one of 1, 2, 3, 4, 6, 12"),
        (12, 2, 0, "d_tile is 0; for head dimension 12 it must be one of 1, 2, 3, 4, 6, 12"),
    ],
)
@pytest.mark.parametrize("function", [feature_map, tspow_dim])
def test_wrong_sizes_say_what_is_allowed(function, d, p, d_tile, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        function(d, p, d_tile)
