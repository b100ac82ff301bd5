"""The ledger of power attention: useful FLOPs, executed FLOPs and bytes of every launch, from the sizes alone.

Notation as in docs/mathematics.md: B, T, H, Hk, d, e, p, chunk size C, N = ceil(T / C) chunks, D rows of the state.

Useful FLOPs of a forward call (multiply-adds of the matrix products, two FLOPs each; D = D_spow(d, p)):

* attention:    2 (d + e) for each causal pair inside a chunk: H * B * sum over chunks of C_n (C_n + 1) / 2 pairs
* update_state: 2 D e for each token and key/value head whose chunk is followed by another
* query_state:  2 D e for each token and query head whose chunk follows another
* scan:         none: it decays and adds states, which is bound by memory

so with one chunk only attention remains, and useful work depends on C: a larger chunk does more attention. The
denominator's products (one more column beside the e of v) are executed, not useful. Executed FLOPs take the rows and
tiles that the backend really multiplies (`Execution`).

Backward, useful: two gradients for every product, and for the attention the scores once more, as FlashAttention counts
it: 2.5 x its forward where d = e; update_state and query_state 2 x theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerbench.cost import Cost, Launch
from powerbench.kernels.ledger import Tile, covered_pairs
from powerbench.kernels.power.feature_map import spow_dim
from powerbench.problem import Params, Problem

STATE_BYTES = 4  # chunk states are accumulated and scanned in float32


@dataclass(frozen=True)
class Execution:
    """How a backend runs the operator on a problem, where that is more than the mathematics asks for."""

    attention_tile: Tile
    attention_columns: int  # of v, and what rides beside it
    update_products: int  # multiply-adds a token of update_state, denominator and masked rows included
    query_products: int  # the same of query_state
    state_elements: int  # of one chunk's state, denominator included
    carried_bytes: int  # of one of these elements as query_state reads it
    update_tokens: int  # tokens of a chunk are rounded up to a multiple of these
    query_tokens: int


def chunk_lengths(seqlen: int, chunk_size: int) -> tuple[int, int, int]:
    """(number of chunks followed by another, their length, length of the last chunk)."""
    full = (seqlen - 1) // chunk_size
    return full, chunk_size, seqlen - full * chunk_size


def causal_pairs(length: int) -> int:
    """Query-key pairs with key <= query in a chunk."""
    return length * (length + 1) // 2


def forward_launches(problem: Problem, params: Params, execution: Execution) -> tuple[Launch, ...]:
    """The launches of one forward call; with one chunk only attention. `params` are resolved: p, d_tile, chunk_size."""
    assert params.p
    assert params.chunk_size
    d, e, B, H, Hk = problem.head_dim, problem.value_dim, problem.batch, problem.heads, problem.kv_heads
    full, length, last = chunk_lengths(problem.seqlen, params.chunk_size)
    inputs = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    tile = execution.attention_tile
    pairs = B * H * (full * causal_pairs(length) + causal_pairs(last))
    tiles = B * H * (full * covered_pairs(length, tile) + covered_pairs(last, tile))
    flops = pairs * 2 * (d + e), tiles * 2 * (d + execution.attention_columns)
    if not full:
        return (Launch("attention", Cost(*flops, inputs + problem.y_bytes)),)
    past, later = full * length, problem.seqlen - length  # tokens a sequence with a chunk after theirs, before theirs
    past_tiles = full * _ceil(length, execution.update_tokens)
    later_tiles = (full - 1) * _ceil(length, execution.query_tokens) + _ceil(last, execution.query_tokens)
    product = 2 * spow_dim(d, params.p) * e
    states = B * Hk * full * execution.state_elements
    partial = B * H * later * (e + 1) * STATE_BYTES  # numerators and denominators between two launches
    finished = problem.y_bytes * length // problem.seqlen  # the first chunk, which has no past
    update = Cost(
        B * Hk * past * product,
        B * Hk * past_tiles * 2 * execution.update_products,
        (inputs - problem.q_bytes) * past // problem.seqlen + states * STATE_BYTES,
    )
    query = Cost(
        B * H * later * product,
        B * H * later_tiles * 2 * execution.query_products,
        problem.q_bytes * later // problem.seqlen + states * execution.carried_bytes + partial
        + problem.y_bytes - finished,
    )  # fmt: skip
    return (
        Launch("update_state", update),
        Launch("scan", Cost(0, 0, states * (STATE_BYTES + execution.carried_bytes))),
        Launch("attention", Cost(*flops, inputs + partial + finished)),
        Launch("query_state", query),
    )


def _ceil(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def backward_launches(problem: Problem, params: Params, execution: Execution) -> tuple[Launch, ...]:
    """The launches of one backward call of the PyTorch backend: the gradients of each phase, from checkpoints.

    Executed: each product has two gradients. Computed again is what these need: the scores q k^T, and the weighted sums
    of values that are not the last step of a block's attention (`_summed_again`). Bytes: what the forward phase moves,
    for its inputs, for the gradients, and again.
    """
    assert params.chunk_size
    full, length, last = chunk_lengths(problem.seqlen, params.chunk_size)
    d, heads = problem.head_dim, problem.batch * problem.heads
    block = execution.attention_tile.queries
    sums = full * _summed_again(length, block, problem.gated) + _summed_again(last, block, problem.gated)

    def gradient(launch: Launch) -> Launch:
        cost, useful, again = launch.cost, 2 * launch.cost.useful_flops, 0
        if launch.name == "attention":
            useful += cost.useful_flops * d // (d + problem.value_dim)
            again = cost.executed_flops * d // (d + execution.attention_columns)
            again += heads * sums * 2 * execution.attention_columns
        return Launch(f"{launch.name}_backward", Cost(useful, 2 * cost.executed_flops + again, cost.bytes * 3))

    return tuple(gradient(launch) for launch in reversed(forward_launches(problem, params, execution)))


def _summed_again(length: int, block: int, gated: bool) -> int:
    """Pairs of a chunk whose weighted values the backward pass sums again.

    A block of queries after the first adds the keys before it to those in it; a checkpoint stops before its last step,
    so the sum over its own keys is repeated, and that over earlier keys only where a gate multiplies it.
    """
    starts = range(block, length, block)
    return sum((min(block, length - s)) * (min(block, length - s) + (s if gated else 0)) for s in starts)
