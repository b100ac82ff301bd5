"""Linear attention by FLA in the pass `decode`: fused_recurrent_simple_gla, one token on a float32 state [d, e] a head.

Every step begins from the same state and returns the next one in new memory, as FLA's own models take it.
"""

from __future__ import annotations

from functools import partial

import torch

from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Decoder, Decoding, Inputs
from powerbench.kernels.packages import load
from powerbench.kernels.power.torch_decode import sum_up
from powerbench.kernels.tuning import tuned_for
from powerbench.problem import Case

MODULES = "fla"  # the package that FLA is imported as
FILL_TOKENS = 4096  # of a sequence that are summed up at once, when its state is made ready


def fla_decoding(gated: bool) -> Decoding:
    """For a row of FLA's; without gates where it has none."""
    return Decoding(partial(_prepare, gated), partial(_launches, gated), sequence_bytes, _workspace_bytes)


def _prepare(gated: bool, case: Case, inputs: Inputs) -> Decoder:
    """Raises ImportError where FLA is not installed."""
    recurrent = load("fla.ops.simple_gla").fused_recurrent_simple_gla
    B, _, heads, d = inputs.k.shape
    e = inputs.v.shape[3]
    log_g = inputs.log_g if gated else None
    dtype = torch.promote_types(inputs.k.dtype, torch.float32)
    state = inputs.v.new_empty(B, heads, d, e, dtype=dtype)
    unused = state.new_empty(B, heads, d)  # the denominator's share
    k, v, g = (None if x is None else x[:, -1:].clone() for x in (inputs.k, inputs.v, log_g))

    def reset() -> None:
        for b in range(B):
            past = (None if x is None else x[b, :-1] for x in (inputs.k, inputs.v, log_g))
            sum_up(*past, state[b], unused[b], p=1, d_tile=d, tokens=FILL_TOKENS)
        v.copy_(inputs.v[:, -1:])

    def step() -> torch.Tensor:
        tuned_for(MODULES, case.problem)
        y: torch.Tensor = recurrent(inputs.q, k, v, g=g, scale=d**-0.5, initial_state=state, output_final_state=True)[0]
        return y

    reset()
    return Decoder(step, reset)


def sequence_bytes(case: Case) -> int:
    """The float32 states."""
    problem = case.problem
    return problem.heads * problem.head_dim * problem.value_dim * 4


def _launches(gated: bool, case: Case) -> tuple[Launch, ...]:
    """2 d e FLOPs a head to move the state on and as many to read it; it is read and written once."""
    problem = case.problem
    flops = 4 * problem.head_dim * problem.value_dim * problem.batch * problem.heads
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.y_bytes + gated * problem.gate_bytes
    moved = 2 * problem.batch * sequence_bytes(case) + operands // problem.seqlen
    return (Launch("step", Cost(flops, flops, moved)),)


def _workspace_bytes(case: Case) -> int:
    """The state before a step and after it."""
    return 2 * case.problem.batch * sequence_bytes(case)
