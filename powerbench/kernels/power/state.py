"""The state of power attention: everything that the past contributes to the future, in O(1) memory."""

from __future__ import annotations

from typing import NamedTuple

import torch


class PowerState(NamedTuple):
    """Sums over the past, decayed by the gates to the end of the sequence: the summary a later call continues from.

    With phi the UNWEIGHTED feature map of `feature_map(d, p, d_tile)`, rows in its order:

        s  [B, Hk, D, e]   sum_j exp(G_T - G_j) phi(k_j) v_j^T
        z  [B, Hk, D]      sum_j exp(G_T - G_j) phi(k_j)

    Both in float32, or in float64 for float64 inputs. The multiplicity of the rows and scale^p are applied by whoever
    reads the state, on the query's side, so that a state does not depend on `scale` or `normalize`. It does depend on
    p and d_tile, which the call that continues from it must repeat. z is there also when the output is not normalised
    (it costs one more column next to the e columns of v, and only calls that return a state pay for it).
    """

    s: torch.Tensor
    z: torch.Tensor
