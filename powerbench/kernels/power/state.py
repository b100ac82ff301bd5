"""The state of power attention: everything that the past contributes to the future, in O(1) memory."""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch.serialization import add_safe_globals

from powerbench.kernels.power.gate_sums import sum_dtype


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


class LazyState(NamedTuple):
    """A state that is read for every token and written only once in `window` tokens; they wait in a short KV window.

        state   the sums over all tokens before the window, decayed to the last of them
        k       [B, window, Hk, d], v [B, window, Hk, e]: the newest tokens, in the dtype of the model
        a       [B, window, Hk] float64 (float32 on devices without it): their log gates, summed from the window's start
        count   int32 [B]: how many slots are taken; each sequence may have its own number

    Slots from `count` on hold nothing. `power_attention_step` adds tokens, and where a sequence's window is full moves
    all of it into its state.
    """

    state: PowerState
    k: torch.Tensor
    v: torch.Tensor
    a: torch.Tensor
    count: torch.Tensor

    @classmethod
    def begin(cls, state: PowerState, head_dim: int, dtype: torch.dtype, window: int = 64) -> LazyState:
        """An empty window on `state`, which it shares; head_dim is that of q and k, dtype that of q, k and v.

        Raises ValueError for a window below 1.
        """
        if not isinstance(window, Integral) or isinstance(window, bool) or window < 1:
            raise ValueError(f"window is {window!r}; it must be an integer of at least 1")
        window, head_dim = int(window), int(head_dim)
        B, heads, _, e = state.s.shape
        return cls(
            state,
            state.s.new_zeros(B, window, heads, head_dim, dtype=dtype),
            state.s.new_zeros(B, window, heads, e, dtype=dtype),
            state.z.new_zeros(B, window, heads, dtype=sum_dtype(state.z.device)),
            torch.zeros(B, dtype=torch.int32, device=state.s.device),
        )

    @property
    def window(self) -> int:
        """Tokens that the window holds."""
        return self.k.shape[1]


add_safe_globals([PowerState, LazyState])  # torch.load makes them with weights_only too
