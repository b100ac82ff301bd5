"""The ledger of power attention in Triton: useful FLOPs, executed FLOPs and bytes of every launch, from sizes alone.

Notation as in docs/mathematics.md and `triton_backend`. Of a sequence, `past` and `later` are the tokens with a chunk
after, and before, theirs, and pairs the causal pairs inside chunks; D_s = spow_dim(d, p). Launches that only move data
have no FLOPs. With one chunk there is no state: attend, query_gradient, key_value_gradient and those of gates remain.

Useful FLOPs. Forward, each product once. Backward, two gradients for each, and the scores q k^T once more (as
FlashAttention counts: for the attention 2.5 x the forward call where d = e):

    update_state         past Hk 2 D_s e
    attend               pairs H 2 (d + e)     + later H 2 D_s e
    query_gradient       pairs H 2 (2 d + e)   + later H 2 D_s e         scores, ds, dq; dphi(q)
    state_gradient                               later H 2 D_s e         phi(q) dy^T
    key_value_gradient   pairs H 2 (d + e)     + past Hk 2 (2 D_s e)     dv, dk; phi(k)^T dR, dphi(k)

At p = 1 dq needs no scores, and key_value_gradient has them.

Executed FLOPs. What the kernels multiply: `covered` pairs, those of all tiles that hold a causal pair, and for each
token, rounded up to whole tiles in each chunk, the rows of the state in bricks (`tiling.executed_rows`) in place of
D_s; for dphi the rows of the multisets (prefix, b), n_pre d of them, n_pre = tspow_dim(d, p - 1, d_tile). Where y is
normalised there is z, the rows of degree p - 1 times d, for the denominator. key_value_gradient multiplies the scores
and ds again.

    update_state, state_gradient                              2 (rows(p) e + z)
    attend                            covered 2 (d + e)       2 (rows(p) e + z)
    query_gradient                    covered 2 (2 d + e)     2 (n_pre d e + z)              p = 1: covered 2 (d + e)
    key_value_gradient                covered 2 (2 d + 2 e)   2 (rows(p) e + n_pre d e + z)

tests/test_ledger_power.py counts every tl.dot of the portable kernels. The Hopper kernels take tiles of other sizes
where heads are wide or chunks short, which moves `covered` and the rounding of chunks, and little at long chunks.

Bytes. Each operand of a launch once, states as they are stored: 2 bytes an element for 16-bit inputs, else 4. Sums of
gates are pairs of float32, of which the Hopper kernels (bf16) read the first. Not counted: tables, what pads a, w and
z_w [.., N, C] past the end of the sequence, and one float32 for a thousand elements of states that scan_gradient hands
to gate_gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerbench.cost import Cost, Launch
from powerbench.kernels.ledger import Tile, covered_pairs, of_pass
from powerbench.kernels.power import tiling
from powerbench.kernels.power.cost import ChunkLengths, causal_pairs, chunk_lengths, resolved
from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.kernels.power.sizes import state_sizes
from powerbench.problem import Case, Problem


def launches(case: Case, normalize: bool) -> tuple[Launch, ...]:
    """The launches of a call in the order in which they run, names as in `triton_backend` and `triton_backward`."""
    work = _Work.of(case, normalize)
    return of_pass(case, _forward(work, save=case.pass_ != "fwd"), _backward(work))


@dataclass(frozen=True)
class _Work:
    """A case, and the sizes that its launches share."""

    problem: Problem
    p: int
    d_tile: int
    chunk: int  # tokens of a chunk, at most T
    chunks: ChunkLengths
    normalize: bool

    @classmethod
    def of(cls, case: Case, normalize: bool) -> _Work:
        p, d_tile, chunk_size = resolved(case)
        seqlen = case.problem.seqlen
        return cls(case.problem, p, d_tile, min(chunk_size, seqlen), chunk_lengths(seqlen, chunk_size), normalize)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """What the functions of `tiling` that cut a launch take."""
        return self.problem.head_dim, self.problem.value_dim, self.chunk, self.problem.itemsize

    @property
    def useful_product(self) -> int:
        """FLOPs of a token's phi times values, or a state, of width e."""
        return 2 * spow_dim(self.problem.head_dim, self.p) * self.problem.value_dim

    def product(self, rows: int) -> int:
        """The same as executed in bricks of `rows` state rows, without the denominator's share (`z_product`)."""
        return 2 * tiling.executed_rows(self.problem.head_dim, self.p, self.d_tile, rows) * self.problem.value_dim

    def z_product(self, rows: int) -> int:
        """FLOPs of a token for the state of degree p - 1 against x, in bricks of `rows` state rows."""
        d = self.problem.head_dim
        return 2 * tiling.executed_rows(d, self.p - 1, self.d_tile, rows) * d if self.normalize else 0

    @property
    def gradient_product(self) -> int:
        """FLOPs of a token's gradient of phi times a state: a product of d rows for each prefix of p - 1 indices."""
        d, e = self.problem.head_dim, self.problem.value_dim
        return 2 * (tspow_dim(d, self.p - 1, self.d_tile) if self.p > 1 else 1) * d * e

    @property
    def pairs(self) -> int:
        """Causal pairs inside chunks, over batch and query heads."""
        return self.problem.batch * self.problem.heads * self.chunks.total(causal_pairs)

    def covered(self, queries: int, keys: int) -> int:
        """Pairs of all tiles of `queries` by `keys` that hold a causal pair, over batch and query heads."""
        tile = Tile(queries, keys, padded=True)
        return self.problem.batch * self.problem.heads * self.chunks.total(lambda length: covered_pairs(length, tile))

    def past(self, tile: int = 1) -> int:
        """Tokens with a chunk after theirs, over batch and key/value heads, in whole tiles of `tile` a chunk."""
        return self.problem.batch * self.problem.kv_heads * self.chunks.full * _round_up(self.chunk, tile)

    def later(self, tile: int = 1) -> int:
        """Tokens with a chunk before theirs, over batch and query heads, in whole tiles of `tile` a chunk."""
        if not self.chunks.full:
            return 0
        tokens = (self.chunks.full - 1) * _round_up(self.chunk, tile) + _round_up(self.chunks.last, tile)
        return self.problem.batch * self.problem.heads * tokens

    def of_past(self, size: int) -> int:
        """The part of an array of `size` bytes over all tokens that stands for those with a chunk after theirs."""
        return size * self.chunks.past // self.problem.seqlen

    def of_later(self, size: int) -> int:
        """The same for the tokens with a chunk before theirs."""
        return size * self.chunks.later // self.problem.seqlen

    @property
    def states(self) -> int:
        """Bytes of the states between chunks."""
        problem = self.problem
        sizes = state_sizes(self.p, problem.head_dim, problem.value_dim, self.d_tile, with_z=self.normalize)
        storage = 4 if problem.dtype == "fp32" else 2
        return problem.batch * problem.kv_heads * self.chunks.full * sizes.elements * storage

    @property
    def sums(self) -> int:
        """Bytes of the gates' sums that a launch reads."""
        return self.problem.gate_bytes * (1 if self.problem.dtype == "bf16" else 2)

    @property
    def rows(self) -> int:
        """Bytes of one float32 a query row and head: den, delta, w, z_w, q . dq."""
        return self.problem.tokens * self.problem.heads * 4


def _forward(work: _Work, *, save: bool) -> tuple[Launch, ...]:
    """`save`: the denominators are written for a backward call."""
    problem, states, gate = work.problem, work.states, work.problem.gate_bytes
    d, e = problem.head_dim, problem.value_dim
    update, tiles = tiling.update_tiles(*work.sizes), tiling.attend_tiles(*work.sizes)
    rows = tiling.state_rows(problem.itemsize)
    gates = Cost(0, 0, gate * (4 if states else 3))
    update_state = Cost(
        work.past() * work.useful_product,
        work.past(update.tokens) * (work.product(update.rows) + work.z_product(update.rows)),
        work.of_past(problem.k_bytes + problem.v_bytes + gate) + states,
    )
    products_of_v = 2 if problem.dtype == "fp16" else 1  # two bf16 parts of v
    attend = Cost(
        work.pairs * 2 * (d + e) + work.later() * work.useful_product,
        work.covered(tiles.tokens, tiles.rows) * 2 * (d + products_of_v * e)
        + work.later(tiles.tokens) * (work.product(rows) + work.z_product(rows)),
        problem.q_bytes + problem.k_bytes + problem.v_bytes + work.sums + states + problem.y_bytes
        + (work.rows if save and work.normalize else 0),
    )  # fmt: skip
    return (
        *((Launch("gates", gates),) if problem.gated else ()),
        *((Launch("update_state", update_state), Launch("scan", Cost(0, 0, 2 * states))) if states else ()),
        Launch("attend", attend),
    )


def _backward(work: _Work) -> tuple[Launch, ...]:
    problem, states, gate = work.problem, work.states, work.problem.gate_bytes
    d, e = problem.head_dim, problem.value_dim
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.y_bytes + work.sums  # q, k, v, dy, a
    per_row = work.rows if problem.gated else 0  # q . dq
    denominators = 2 * work.rows if work.normalize else 0  # den and delta
    weights = 2 * work.rows if states else 0  # w and z_w
    # dq needs the scores for s^{p-1} and dk, dv for s^{p-1} and s^p: useful once, where they are needed first. At p = 1
    # dq has them for the gates alone.
    scores_of_q = d if work.p > 1 else 0
    executed_scores = d if work.p > 1 or problem.gated else 0

    tiles, rows = tiling.query_gradient_tiles(*work.sizes), tiling.state_rows(problem.itemsize)
    query_gradient = Cost(
        work.pairs * 2 * (d + e + scores_of_q) + work.later() * work.useful_product,
        work.covered(tiles.tokens, tiles.rows) * 2 * (d + e + executed_scores)
        + work.later(tiles.tokens) * (work.gradient_product + work.z_product(rows)),
        operands + (problem.y_bytes if work.normalize else 0) + states + problem.q_bytes + denominators + weights
        + per_row,
    )  # fmt: skip

    update = tiling.update_tiles(*work.sizes)
    state_gradient = Cost(
        work.later() * work.useful_product,
        work.later(update.tokens) * (work.product(update.rows) + work.z_product(update.rows)),
        work.of_later(problem.q_bytes + problem.y_bytes + work.rows * (2 if work.normalize else 1)) + states,
    )

    tiles = tiling.key_value_gradient_tiles(*work.sizes)
    # On Hopper the state's share of dk and dv is a launch of its own (bf16, p > 1), whose result the other adds to.
    between = 2 * (problem.k_bytes + problem.v_bytes) if states and problem.dtype == "bf16" and work.p > 1 else 0
    key_value_gradient = Cost(
        work.pairs * 2 * (d + e + d - scores_of_q) + work.past() * 2 * work.useful_product,
        work.covered(tiles.tokens, tiles.rows) * 2 * (2 * d + 2 * e)
        + work.past(tiles.rows) * (work.product(rows) + work.gradient_product + work.z_product(rows)),
        operands + denominators + states + problem.k_bytes + problem.v_bytes + between + gate,  # the last is k . dk
    )  # fmt: skip

    scan_gradient = Cost(0, 0, states * (3 if problem.gated else 2))  # the gates' gradients are made of R, too
    gate_gradient = Cost(0, 0, per_row + 3 * gate)  # q . dq, k . dk and log_g in, dlog_g out
    of_states = (Launch("state_gradient", state_gradient), Launch("scan_gradient", scan_gradient))
    return (
        Launch("query_gradient", query_gradient),
        *(of_states if states else ()),
        Launch("key_value_gradient", key_value_gradient),
        *((Launch("gate_gradient", gate_gradient),) if problem.gated else ()),
    )


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def workspace_bytes(case: Case, normalize: bool) -> int:
    """Rough: what a call holds at once beyond inputs, output and gradients.

    Forward: two arrays of states, what chunks add and what comes into them; a (pairs) and w. Backward, which needs
    more: three, the kept states R, the gradients of R and of what chunks add; den, delta, w, z_w and q . dq for each
    query row; a and k . dk.
    """
    work = _Work.of(case, normalize)
    gate = work.problem.gate_bytes
    if case.pass_ == "fwd":
        return 2 * work.states + 3 * gate
    return 3 * work.states + 5 * work.rows + 3 * gate
