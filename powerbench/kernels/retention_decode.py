"""The authors' decoding: `power_retention_inference` of retention, one token on a state and a cache of the newest ones.

Its caller appends the token to that cache; the call attends to the cache, reads the state and adds both up. When the
cache holds `switch_over_seq_len` tokens it returns a state with these in it, in new memory, and the caller begins a new
cache. Read off retention 1.0.7 (`power_retention_maker.py`).
"""

from __future__ import annotations

import importlib

import torch

from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Decoder, Decoding, Inputs
from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.problem import Case

DECODE_CHUNK = 512  # the call's own default
MIN_CHUNK = 16  # a state in bfloat16 that each token rounded anew would be off by 2 %
D_TILE = 16  # as many rows as its Triton kernels have (compute_expanded_dim in retention/_utils.py)


def retention_decoding() -> Decoding:
    """Of the Triton path, the one that has z beside S."""
    return Decoding(_prepare, _launches, _sequence_bytes, _workspace_bytes)


def decoding_refusal(case: Case) -> str | None:
    """Why a decode case cannot run, beside what the package refuses in every pass; None: it can."""
    if _chunk(case) < MIN_CHUNK:
        return f"its state moves on by chunks: chunk size {_chunk(case)} is below {MIN_CHUNK}"
    return None


def _chunk(case: Case) -> int:
    return case.params.chunk_size or DECODE_CHUNK


def _waiting(case: Case) -> int:
    """Tokens in the cache before a step: as many as in the mean of steps."""
    return min((_chunk(case) - 1) // 2, case.problem.seqlen - 1)


def _prepare(case: Case, inputs: Inputs) -> Decoder:
    """Every step finds as many tokens in the cache. The one in chunk_size that moves the state on is left out. Raises
    ImportError where retention is not installed."""
    inference = importlib.import_module("retention").power_retention_inference
    p, chunk, T = case.params.p, _chunk(case), case.problem.seqlen
    first = T - 1 - _waiting(case)  # the first token in the cache

    def tokens(begin: int, end: int) -> list[torch.Tensor | None]:
        return [None if x is None else x[:, begin:end] for x in (inputs.k, inputs.v, inputs.log_g)]

    def summed() -> list[torch.Tensor]:
        """S and z of the tokens before the cache; empty where there are none."""
        sums: list[torch.Tensor] = []
        for begin in range(0, first, chunk):
            end = min(begin + chunk, first)
            _, *sums = inference(
                inputs.q, *tokens(begin, end), *(sums or (None, None)), deg=p, switch_over_seq_len=end - begin
            )
        return sums

    new_k, new_v = inputs.k[:, -1:].clone(), inputs.v[:, -1:].clone()
    k, v, log_g = (None if x is None else x.clone() for x in tokens(first, T))
    state = summed()
    assert k is not None
    assert v is not None

    def reset() -> None:
        v.copy_(inputs.v[:, first:])
        new_v.copy_(inputs.v[:, -1:])
        for old, new in zip(state, summed(), strict=True):
            old.copy_(new)

    def step() -> torch.Tensor:
        k[:, -1:].copy_(new_k)
        v[:, -1:].copy_(new_v)
        y: torch.Tensor = inference(inputs.q, k, v, log_g, *(state or (None, None)), deg=p, switch_over_seq_len=chunk)[
            0
        ]
        return y

    return Decoder(step, reset)


def _state_bytes(case: Case) -> int:
    """S in the inputs' dtype and z in float32, of one sequence."""
    problem = case.problem
    rows = tspow_dim(problem.head_dim, case.params.degree, D_TILE)
    return problem.kv_heads * rows * (problem.value_dim * problem.itemsize + 4)


def _token_bytes(case: Case) -> int:
    """k, v and log_g of one token of one sequence."""
    problem = case.problem
    return (problem.k_bytes + problem.v_bytes + problem.gate_bytes) // problem.tokens


def _sequence_bytes(case: Case) -> int:
    """The state and a full cache."""
    return _state_bytes(case) + _chunk(case) * _token_bytes(case)


def _launches(case: Case) -> tuple[Launch, ...]:
    """One row. Useful: 2 D e a query head for the state, 2 (d + e) a pair with the cache; executed with the D of their
    tiles. Bytes: the state, the cache, the token appended, q and y."""
    problem, p = case.problem, case.params.degree
    d, e = problem.head_dim, problem.value_dim
    pairs = 2 * (d + e) * problem.batch * problem.heads * (_waiting(case) + 1)
    reads = _waiting(case) + 1 < problem.seqlen  # else the cache holds the whole context
    reading = 2 * e * problem.batch * problem.heads * reads
    useful, executed = (reading * rows + pairs for rows in (spow_dim(d, p), tspow_dim(d, p, D_TILE)))
    queries = (problem.q_bytes + problem.y_bytes) // problem.seqlen
    kept = reads * _state_bytes(case) + (_waiting(case) + 3) * _token_bytes(case)
    return (Launch("step", Cost(useful, executed, problem.batch * kept + queries)),)


def _workspace_bytes(case: Case) -> int:
    """Rough: what is kept, and the next state twice while a chunk is moved into it."""
    return case.problem.batch * (_sequence_bytes(case) + 2 * _state_bytes(case))
