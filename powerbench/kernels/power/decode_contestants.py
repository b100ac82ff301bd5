"""Power attention in the pass `decode`: the state that a context leaves, made ready, and the step that is timed."""

from __future__ import annotations

from functools import partial
from math import gcd
from typing import Literal

import torch

from powerbench.cost import Launch
from powerbench.kernels.kernel import Decoder, Decoding, Inputs
from powerbench.kernels.power import decode_cost
from powerbench.kernels.power.decode import power_attention_step
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.op import power_attention
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.kernels.power.torch_decode import fill_window, sum_up
from powerbench.problem import Case

MAX_CYCLE = 8  # calls a sample: of a batch below an eighth of the window the median may leave out the step that folds


# Of a sequence at once where the operator makes its state: what it needs for them, 150 MB at d = e = 64 and p = 2, is
# little beside the memory that is kept free for making states ready.
PREFILL_TOKENS = 32768


def decoding(backend: Literal["torch", "triton"]) -> Decoding:
    """For a contestant of this backend."""
    return Decoding(
        prepare=partial(_prepare, backend),
        launches=partial(_launches, backend),
        sequence_bytes=decode_cost.sequence_bytes,
        workspace_bytes=decode_cost.workspace_bytes,
    )


def _launches(backend: str, case: Case) -> tuple[Launch, ...]:
    normalize = normalized_by_default(case.params.p or 1)
    count = decode_cost.triton_launches if backend == "triton" else decode_cost.torch_launches
    return count(case, normalize)


def _prepare(backend: Literal["torch", "triton"], case: Case, inputs: Inputs) -> Decoder:
    """The sequences' windows are as full as if they had begun at different times, so that not all fold at once."""
    p, d_tile, window = case.params.p or 1, case.params.d_tile or 1, case.params.chunk_size or 1
    B, T, heads, d = inputs.k.shape
    dim = tspow_dim(d, p, d_tile)
    dtype = torch.promote_types(inputs.k.dtype, torch.float32)
    s = inputs.v.new_empty(B, heads, dim, inputs.v.shape[3], dtype=dtype)
    sums = PowerState(s, s.new_empty(B, heads, dim))
    state = sums if window == 1 else LazyState.begin(sums, d, inputs.k.dtype, window)
    waiting = [0 if window == 1 else min(b * window // B, T - 1) for b in range(B)]
    last = [None if x is None else x[:, -1:].clone() for x in (inputs.k, inputs.v, inputs.log_g)]

    def reset() -> None:
        for b in range(B):
            past = [None if x is None else x[b, : T - 1 - waiting[b]] for x in (inputs.k, inputs.v, inputs.log_g)]
            if backend == "triton" and inputs.k.is_cuda:
                prefill(*past, sums.s[b], sums.z[b], p=p, d_tile=d_tile, tokens=PREFILL_TOKENS)
            else:
                sum_up(*past, sums.s[b], sums.z[b], p=p, d_tile=d_tile, tokens=decode_cost.fill_tokens(case))
            if isinstance(state, LazyState):
                fill_window(state, b, *(None if x is None else x[b, T - 1 - waiting[b] : T - 1]
                                        for x in (inputs.k, inputs.v, inputs.log_g)))  # fmt: skip
        last[1].copy_(inputs.v[:, -1:])

    def step() -> torch.Tensor:
        return power_attention_step(inputs.q, *last, state, p=p, d_tile=d_tile, in_place=True, backend=backend)[0]

    reset()
    return Decoder(step, reset, min(MAX_CYCLE, window // gcd(B, window)))


def prefill(
    k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None, s: torch.Tensor, z: torch.Tensor,
    *, p: int, d_tile: int, tokens: int,
) -> None:  # fmt: skip
    """The same as `sum_up`, by the operator, to the rounding of its operands: how a user's states come about."""
    state = PowerState(torch.zeros_like(s[None]), torch.zeros_like(z[None]))
    for first in range(0, len(k), tokens):
        q, values, gates = (None if x is None else x[None, first : first + tokens] for x in (k, v, log_g))
        _, state = power_attention(
            q, q, values, gates, p=p, d_tile=d_tile, initial_state=state, return_state=True, backend="triton"
        )  # fmt: skip
    s.copy_(state.s[0])
    z.copy_(state.z[0])
