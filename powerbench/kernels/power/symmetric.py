"""States as symmetric tensors: between the rows of a `PowerState` and the flat states S, Z of the Triton kernels.

A class is a multiset of p indices. All rows of one class carry the same value in a state that the operator made, and
the kernels count on it (a gradient reads a row under any order of its indices). The sum of `multiplicity` over a class
is its multinomial coefficient, whatever the tiling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from powerbench.kernels.power import tables
from powerbench.kernels.power.feature_map import feature_map
from powerbench.kernels.power.sizes import ONES_WIDTH, StateSizes
from powerbench.kernels.power.state import PowerState


class _Tables(NamedTuple):
    """One feature map's classes: numpy arrays, and on a device tensors."""

    row_class: Any  # int64 [D]: class of each row
    class_rows: Any  # fp32 [classes]: rows of each class
    multiplicity: Any  # fp32 [D]
    entry_class: Any  # int64 [D' * z_width]: class of each entry of Z
    row_entry: Any  # int64 [D]: the entry of Z that is row r of z
    rounds: Any  # for n = 0, 1, ...: int64 [2, k_n], the n-th row of each class that has one, and the class


def _tables(d: int, p: int, d_tile: int, device: torch.device) -> _Tables:
    """Copied to the device once; a CUDA graph must not be captured before its first call."""
    return tables.on_device(device, _arrays, d, p, d_tile)


def _arrays(d: int, p: int, d_tile: int) -> _Tables:
    fm = feature_map(d, p, d_tile)
    powers = d ** np.arange(p, dtype=np.int64)
    keys, row_class, class_rows = np.unique(
        np.sort(fm.indices.astype(np.int64), axis=1) @ powers, return_inverse=True, return_counts=True
    )
    if p == 1:
        entry_class = np.repeat(np.arange(d), ONES_WIDTH)
        row_entry = np.arange(d) * ONES_WIDTH
    else:
        prefixes = feature_map(d, p - 1, d_tile).indices.astype(np.int64)
        entries = np.concatenate(
            [np.repeat(prefixes, d, axis=0), np.tile(np.arange(d), len(prefixes))[:, None]], axis=1
        )
        entry_class = np.searchsorted(keys, np.sort(entries, axis=1) @ powers)
        heads = fm.indices[:, :-1]
        fibre = np.concatenate([[0], np.cumsum((heads[1:] != heads[:-1]).any(1))])
        row_entry = fibre * d + fm.indices[:, -1]
    row_class = row_class.reshape(-1)
    rows = np.argsort(row_class, kind="stable")
    within = np.arange(len(rows)) - np.repeat(np.cumsum(class_rows) - class_rows, class_rows)
    rounds = tuple(np.stack([rows[within == n], row_class[rows[within == n]]]) for n in range(class_rows.max()))
    return _Tables(
        row_class, class_rows.astype(np.float32), fm.multiplicity.astype(np.float32), entry_class,
        row_entry.astype(np.int64), rounds,
    )  # fmt: skip


def flatten_state(state: PowerState, d: int, p: int, d_tile: int, sizes: StateSizes) -> Tensor:
    """The flat state float32 [B, Hk, elements]; what is not symmetric in `state` is averaged over each class."""
    t = _tables(d, p, d_tile, state.s.device)
    s = (_class_sums(state.s, t) / t.class_rows[:, None]).index_select(2, t.row_class)
    return _joined(s, _class_sums(state.z[..., None], t) / t.class_rows[:, None], t, sizes)


def unflatten_state(flat: Tensor, d: int, p: int, d_tile: int, sizes: StateSizes) -> PowerState:
    """The `PowerState` of a flat state that has Z: views where possible."""
    t = _tables(d, p, d_tile, flat.device)
    s = flat[..., : sizes.z_start].unflatten(-1, (sizes.rows, sizes.width))
    return PowerState(s, flat[..., sizes.z_start :].index_select(-1, t.row_entry))


def flatten_gradient(gradient: PowerState, d: int, p: int, d_tile: int, sizes: StateSizes) -> Tensor:
    """The gradient of a flat state, per entry of the symmetric tensor, from that of a `PowerState`: like flatten_state.

    dS = sum of ds over the class / its multinomial coefficient, so that sum_r m_r phi_r dS_r counts every ds once.
    """
    t = _tables(d, p, d_tile, gradient.s.device)
    weight = 1 / t.multiplicity[:, None]
    s = (_class_sums(gradient.s * weight, t) / t.class_rows[:, None]).index_select(2, t.row_class)
    return _joined(s, _class_sums(gradient.z[..., None] * weight, t) / t.class_rows[:, None], t, sizes)


def unflatten_gradient(flat: Tensor, d: int, p: int, d_tile: int, sizes: StateSizes) -> PowerState:
    """The gradient of a `PowerState` from that of its flat state: every row takes its multiplicity's share."""
    t = _tables(d, p, d_tile, flat.device)
    ds = flat[..., : sizes.z_start].unflatten(-1, (sizes.rows, sizes.width)) * t.multiplicity[:, None]
    if not sizes.z_rows:
        return PowerState(ds, ds.new_zeros(ds.shape[:-1]))
    return PowerState(ds, flat[..., sizes.z_start :].index_select(-1, t.row_entry) * t.multiplicity)


def inner_weights(d: int, p: int, d_tile: int, sizes: StateSizes, device: torch.device) -> Tensor:
    """float32 [elements]: how often each element of a flat state stands in the full tensors of an inner product.

    Rows of S by their multiplicity, those of Z by that of degree p - 1. On the device: copied once.
    """
    return tables.on_device(device, _inner_weights, d, p, d_tile, sizes)


def _inner_weights(d: int, p: int, d_tile: int, sizes: StateSizes) -> np.ndarray:
    fm = feature_map(d, p, d_tile)
    parts = [np.repeat(fm.multiplicity, sizes.width)]
    if sizes.z_rows and p == 1:  # its columns are copies of one
        parts.append(np.tile(np.eye(1, sizes.z_width)[0], sizes.z_rows))
    elif sizes.z_rows:
        parts.append(np.repeat(feature_map(d, p - 1, d_tile).multiplicity, sizes.z_width))
    return np.concatenate(parts).astype(np.float32)


def _class_sums(rows: Tensor, t: _Tables) -> Tensor:
    """Sums over the rows of each class: float32 [B, Hk, classes, width] of [B, Hk, D, width].

    Row by row of the classes: one index_add_ over all rows would add those of a class in any order on a GPU.
    """
    sums = rows.index_select(2, t.rounds[0][0]).float()  # each class has a row, and they stand in order
    for members, classes in t.rounds[1:]:
        sums.index_add_(2, classes, rows.index_select(2, members).float())
    return sums


def _joined(s: Tensor, z: Tensor, t: _Tables, sizes: StateSizes) -> Tensor:
    """S [B, Hk, D, e] and the classes' z [B, Hk, classes, 1] as a flat state."""
    if not sizes.z_rows:
        return s.flatten(2).contiguous()
    return torch.cat([s.flatten(2), z[..., 0].index_select(2, t.entry_class)], dim=2)
