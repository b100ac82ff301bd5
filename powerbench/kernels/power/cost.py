"""The ledger of power attention in PyTorch: useful FLOPs, executed FLOPs and bytes of every phase, from sizes alone.

Notation as in docs/mathematics.md: B, T, H, Hk, d, e, p, chunk size C, N = ceil(T / C) chunks, D rows of the state.

Useful FLOPs of a forward call (multiply-adds of the matrix products, two FLOPs each; D = D_spow(d, p)):

* attention:    2 (d + e) for each causal pair inside a chunk: H * B * sum over chunks of C_n (C_n + 1) / 2 pairs
* update_state: 2 D e for each token and key/value head whose chunk is followed by another
* query_state:  2 D e for each token and query head whose chunk follows another
* scan:         none: it decays and adds states, which is bound by memory

so with one chunk only attention remains, and useful work depends on C: a larger chunk does more attention. The
denominator's products (one more column beside the e of v) are executed, not useful. Executed FLOPs take the D of the
chosen d_tile, and the pairs of the blocks that are really multiplied.

Backward, useful: two gradients for every product, and for the attention the scores once more, as FlashAttention counts
it: 2.5 x its forward where d = e; update_state and query_state 2 x theirs. The Triton backend (`triton_cost`) has the
same useful work in other launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from powerbench.cost import Cost, Launch
from powerbench.kernels.ledger import Tile, covered_pairs, of_pass
from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.kernels.power.state_size import state_itemsize
from powerbench.problem import Case


class ChunkLengths(NamedTuple):
    """The chunks of a sequence: `full` of them with `length` tokens, each followed by another; then one of `last`."""

    full: int
    length: int
    last: int

    @property
    def past(self) -> int:
        """Tokens with a chunk after theirs."""
        return self.full * self.length

    @property
    def later(self) -> int:
        """Tokens with a chunk before theirs."""
        return self.past - self.length + self.last if self.full else 0

    def total(self, of_chunk: Callable[[int], int]) -> int:
        """The sum over all chunks of a function of their length."""
        return self.full * of_chunk(self.length) + of_chunk(self.last)


def chunk_lengths(seqlen: int, chunk_size: int) -> ChunkLengths:
    """How `seqlen` tokens fall into chunks of `chunk_size`."""
    full = (seqlen - 1) // chunk_size
    return ChunkLengths(full, chunk_size, seqlen - full * chunk_size)


def causal_pairs(length: int) -> int:
    """Query-key pairs with key <= query in a chunk."""
    return length * (length + 1) // 2


class Resolved(NamedTuple):
    """A case's parameters, none left open."""

    p: int
    d_tile: int
    chunk_size: int


def resolved(case: Case) -> Resolved:
    """The parameters of a case that `Kernel.resolve` has filled in."""
    params = case.params
    assert params.p
    assert params.d_tile
    assert params.chunk_size
    return Resolved(params.p, params.d_tile, params.chunk_size)


def launches(case: Case, block: int, normalize: bool) -> tuple[Launch, ...]:
    """The phases of a call of the PyTorch backend, whose attention takes `block` queries at once."""
    return of_pass(case, _forward(case, block, normalize), _backward(case, block, normalize))


def _state_bytes(case: Case, normalize: bool) -> int:
    """Of the states of one chunk, over batch and heads: a column of ones beside v gives the denominator's."""
    problem, (p, d_tile, _) = case.problem, resolved(case)
    rows = tspow_dim(problem.head_dim, p, d_tile)
    elements = problem.batch * problem.kv_heads * rows * (problem.value_dim + normalize)
    return elements * state_itemsize(problem.dtype)


def _forward(case: Case, block: int, normalize: bool) -> tuple[Launch, ...]:
    """The phases of one forward call; with one chunk only attention."""
    problem, (p, d_tile, chunk_size) = case.problem, resolved(case)
    d, e, heads, kv_heads = problem.head_dim, problem.value_dim, problem.heads, problem.kv_heads
    B, T, chunks = problem.batch, problem.seqlen, chunk_lengths(problem.seqlen, chunk_size)
    inputs = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    tile, columns = Tile(block, 1, padded=False), e + normalize
    pairs = B * heads * chunks.total(causal_pairs)
    covered = B * heads * chunks.total(lambda length: covered_pairs(length, tile))
    flops = pairs * 2 * (d + e), covered * 2 * (d + columns)
    if not chunks.full:
        return (Launch("attention", Cost(*flops, inputs + problem.y_bytes)),)
    useful, executed = 2 * spow_dim(d, p) * e, 2 * tspow_dim(d, p, d_tile) * columns  # of a token and head
    states = chunks.full * _state_bytes(case, normalize)
    # Numerators and denominators between two phases.
    partial = B * heads * chunks.later * (e + 1) * state_itemsize(problem.dtype)
    finished = problem.y_bytes * chunks.length // T  # the first chunk, which has no past
    moved = (inputs - problem.q_bytes) * chunks.past // T + states
    read = problem.q_bytes * chunks.later // T + states + partial + problem.y_bytes - finished
    past, later = B * kv_heads * chunks.past, B * heads * chunks.later
    return (
        Launch("update_state", Cost(past * useful, past * executed, moved)),
        Launch("scan", Cost(0, 0, 2 * states)),
        Launch("attention", Cost(*flops, inputs + partial + finished)),
        Launch("query_state", Cost(later * useful, later * executed, read)),
    )


def _backward(case: Case, block: int, normalize: bool) -> tuple[Launch, ...]:
    """The phases of one backward call: the gradients of each forward phase, from checkpoints.

    Executed: each product has two gradients. Computed again is what these need: the scores q k^T, and the weighted sums
    of values that are not the last step of a block's attention (`_summed_again`). Bytes: what the forward phase moves,
    for its inputs, for the gradients, and again.
    """
    problem, chunks = case.problem, chunk_lengths(case.problem.seqlen, resolved(case).chunk_size)
    d, e, columns = problem.head_dim, problem.value_dim, problem.value_dim + normalize
    sums = chunks.total(lambda length: _summed_again(length, block, problem.gated))

    def gradient(launch: Launch) -> Launch:
        cost, useful, again = launch.cost, 2 * launch.cost.useful_flops, 0
        if launch.name == "attention":
            useful += cost.useful_flops * d // (d + e)
            again = cost.executed_flops * d // (d + columns)
            again += problem.batch * problem.heads * sums * 2 * columns
        return Launch(f"{launch.name}_backward", Cost(useful, 2 * cost.executed_flops + again, cost.bytes * 3))

    return tuple(gradient(launch) for launch in reversed(_forward(case, block, normalize)))


def _summed_again(length: int, block: int, gated: bool) -> int:
    """Pairs of a chunk whose weighted values the backward pass sums again.

    A block of queries after the first adds the keys before it to those in it; a checkpoint stops before its last step,
    so the sum over its own keys is repeated, and that over earlier keys only where a gate multiplies it.
    """
    starts = range(block, length, block)
    return sum((min(block, length - s)) * (min(block, length - s) + (s if gated else 0)) for s in starts)


def workspace_bytes(case: Case, block: int, normalize: bool) -> int:
    """Rough: phi, weights and states of one chunk; for a backward pass those of gradients and the kept states, too."""
    problem, (p, d_tile, chunk_size) = case.problem, resolved(case)
    full = chunk_lengths(problem.seqlen, chunk_size).full
    heads, state = problem.batch * problem.heads, _state_bytes(case, normalize)
    rows = tspow_dim(problem.head_dim, p, d_tile) if full else 0
    phi = heads * chunk_size * rows * problem.itemsize
    weights = heads * block * chunk_size * 4
    one_chunk = 2 * phi + 3 * weights + 3 * state
    return one_chunk + (0 if case.pass_ == "fwd" else 3 * one_chunk + full * state)
