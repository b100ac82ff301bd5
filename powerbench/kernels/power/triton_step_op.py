"""The decoding step in Triton as PyTorch sees it: one operator, which writes to the state that it gets.

As `triton_op`: tracers and modes see `torch.ops.powerbench.power_attention_step` where there are launches that they
could not look into, and calls that nobody watches go to the launches at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerbench.kernels.power import triton_decode
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.triton_op import watched


def triton_step(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState | LazyState, *,
    p: int, d_tile: int, scale: float, normalize: bool,
) -> Tensor:  # fmt: skip
    """`triton_decode.triton_step`, as an operator where somebody watches."""
    if not watched(q, k, v):
        return triton_decode.triton_step(
            q, k, v, log_g, state, p=p, d_tile=d_tile, scale=scale, normalize=normalize
        )  # fmt: skip
    sums, window = (state, (None,) * 4) if isinstance(state, PowerState) else (state.state, state[1:])
    return _step_op(q, k, v, log_g, *sums, *window, p, d_tile, scale, normalize)


@torch.library.custom_op(
    "powerbench::power_attention_step",
    mutates_args=("s", "z", "window_k", "window_v", "window_a", "count"),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? log_g, Tensor(a!) s, Tensor(b!) z, Tensor(c!)? window_k,"
    " Tensor(d!)? window_v, Tensor(e!)? window_a, Tensor(f!)? count, int p, int d_tile, float scale, bool normalize)"
    " -> Tensor",
)
def _step_op(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor, window_k: Tensor | None,
    window_v: Tensor | None, window_a: Tensor | None, count: Tensor | None,
    p: int, d_tile: int, scale: float, normalize: bool,
) -> Tensor:  # fmt: skip
    state: PowerState | LazyState = PowerState(s, z)
    if window_k is not None and window_v is not None and window_a is not None and count is not None:
        state = LazyState(PowerState(s, z), window_k, window_v, window_a, count)
    return triton_decode.triton_step(q, k, v, log_g, state, p=p, d_tile=d_tile, scale=scale, normalize=normalize)


@_step_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[3])
