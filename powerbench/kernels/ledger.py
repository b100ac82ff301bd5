"""The ledger of other people's kernels: causal softmax attention in tiles, and linear attention in chunks. No torch.

Counted from the formulas and the kernels' published structure (files named below), never from hardware counters.
Matrix products only, a multiply-add is two FLOPs. B, T, H, Hk, d, e as in `Problem`.
"""

from __future__ import annotations

from typing import NamedTuple

from powerbench.cost import Cost, Launch
from powerbench.problem import Case, Problem

LSE_BYTES = 4  # one float32 a query row and head: log-sum-exp, and likewise the row sums of dy * y


class Tile(NamedTuple):
    """The block of queries by keys that a softmax kernel multiplies at once.

    `padded`: a tile over the end of the sequence is multiplied in full (tensor cores), not cut to size.
    """

    queries: int
    keys: int
    padded: bool


# Assumed for every fused GPU kernel: what FlashAttention takes on Hopper, give or take (flash-attn-4 4.0.0b36,
# interface.py: forward 192x128 at d = 64, 128x128 at d = 128, 128x80 at d = 256; backward 128x128 and 64x128).
GPU_TILE = Tile(128, 128, padded=True)


def cpu_tile(seqlen: int) -> Tile:
    """What torch's CPU kernel takes (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp, forward and backward)."""
    return Tile(256 if seqlen >= 768 else 64 if seqlen >= 192 else 32, 512, padded=False)


def covered_pairs(seqlen: int, tile: Tile, window: int | None = None) -> int:
    """Query-key pairs of one head that are multiplied: the tiles that hold a visible pair, masked parts included."""
    pairs = 0
    for start in range(0, seqlen, tile.queries):
        rows = tile.queries if tile.padded else min(tile.queries, seqlen - start)
        visible = min(start + tile.queries, seqlen)
        keys = -(-visible // tile.keys) * tile.keys
        unseen = max(0, start + 1 - window) // tile.keys * tile.keys if window else 0
        pairs += rows * ((keys if tile.padded else min(keys, seqlen)) - unseen)
    return pairs


def visible_pairs(seqlen: int, window: int | None = None) -> int:
    """Query-key pairs of one head with key <= query, and of those the last `window` keys of each query."""
    seen = min(seqlen, window or seqlen)
    return seen * (seen + 1) // 2 + (seqlen - seen) * seen


def softmax_launches(case: Case, tile: Tile = GPU_TILE) -> tuple[Launch, ...]:
    """One 'forward' and one 'backward' launch, as the case's pass asks.

    Forward: q k^T and p v are 2 (d + e) FLOPs a pair. Useful counts the B H T (T + 1) / 2 causal pairs, of a sliding
    window (`Params.window`) those it holds; executed the pairs of all tiles that hold one. Bytes: q, k, v in, y and the
    float32 log-sum-exp out.

    Backward: 2.5 times the forward, useful and executed: five products (q k^T again, dy v^T, p^T dy, ds k, ds^T q)
    for two, exact where d = e (FlashAttention, arXiv 2205.14135, appendix B; the convention of power-attention's
    ledger too). Bytes: q, k, v, y, dy and the log-sum-exp in, dq, dk, dv out.
    """
    problem = case.problem
    window, heads = case.params.window, problem.batch * problem.heads
    useful = heads * visible_pairs(problem.seqlen, window) * 2 * (problem.head_dim + problem.value_dim)
    covered = heads * covered_pairs(problem.seqlen, tile, window)
    executed = covered * 2 * (problem.head_dim + problem.value_dim)
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes
    lse = problem.tokens * problem.heads * LSE_BYTES
    forward = Launch("forward", Cost(useful, executed, operands + problem.y_bytes + lse))
    # 5 / 2 of an even number, in integers.
    backward = Cost(useful * 5 // 2, executed * 5 // 2, 2 * operands + 2 * problem.y_bytes + lse)
    return of_pass(case, (forward,), (Launch("backward", backward),))


def flash_workspace_bytes(case: Case) -> int:
    """Rough: the log-sum-exp; with a backward also the row sums of dy * y, dq in float32 (summed by atomics), and for
    GQA dk and dv of each query head before they are added up (flash_api.cpp's dq_accum and dk_expanded)."""
    problem = case.problem
    rows = problem.tokens * problem.heads
    if case.pass_ == "fwd":
        return rows * LSE_BYTES
    expanded = 0
    if problem.heads != problem.kv_heads:
        expanded = rows * (problem.head_dim + problem.value_dim) * problem.itemsize
    return rows * (2 * LSE_BYTES + problem.head_dim * 4) + expanded


def cpu_workspace_bytes(case: Case) -> int:
    """Rough: the log-sum-exp; with a backward also a contiguous copy of dy. The threads' tiles are small beside it."""
    lse = case.problem.tokens * case.problem.heads * LSE_BYTES
    return lse if case.pass_ == "fwd" else lse + case.problem.y_bytes


class _Chunks(NamedTuple):
    """Sizes of a chunked problem, over batch and heads."""

    tokens: int
    padded_tokens: int
    pairs: int  # causal pairs inside chunks
    padded_pairs: int
    state_elements: int  # one d x e state a chunk


def _chunks(problem: Problem, chunk: int) -> _Chunks:
    whole, rest = divmod(problem.seqlen, chunk)
    number = whole + (rest > 0)
    heads = problem.batch * problem.heads
    return _Chunks(
        tokens=heads * problem.seqlen,
        padded_tokens=heads * number * chunk,
        pairs=heads * (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2,
        padded_pairs=heads * number * chunk * chunk,
        state_elements=heads * number * problem.head_dim * problem.value_dim,
    )


def linear_launches(case: Case, chunk: int, gated: bool) -> tuple[Launch, ...]:
    """Linear attention (p = 1, no normaliser, H = Hk) in chunks of C tokens, in the launches of FLA 0.6.0
    (fla/ops/common/chunk_h.py and chunk_o.py); `gated`: with log_g.

    Forward, useful: each token adds k v^T to the state and reads it with q, 2 d e + 2 d e FLOPs, and each of the
    C (C + 1) / 2 causal pairs of a chunk costs 2 (d + e): 4 d e + (C + 1)(d + e) FLOPs a token in all.
    Backward, useful: every product has two gradients, so twice the forward. Executed on top of that: chunks filled up
    to C, the masked half of each chunk's pairs, and in the backward the states and q k^T once more. That is what the
    kernels' `tl.dot`s add up to (counted under Triton's interpreter) where d and e fill one block each. FLA tunes its
    blocks, 32 to 128 wide: narrower ones multiply q k^T again for each block of e, wider ones pad; neither is counted.
    Bytes: each launch's operands once; the states in the inputs' dtype forward, in float32 backward.
    """
    problem, n = case.problem, _chunks(case.problem, chunk)
    d, e = problem.head_dim, problem.value_dim
    q, k, v, y = problem.q_bytes, problem.k_bytes, problem.v_bytes, problem.y_bytes
    gate = problem.gate_bytes if gated else 0
    state = n.state_elements * problem.itemsize
    state32 = n.state_elements * 4

    def launch(name: str, products: int, widths: int, moved: int, again: tuple[int, int] = (0, 0)) -> Launch:
        """`products` d x e ones a token and `widths` a pair are useful; `again` are those that only repeat."""
        useful = 2 * d * e * products * n.tokens + 2 * widths * n.pairs
        executed = 2 * d * e * (products + again[0]) * n.padded_tokens + 2 * (widths + again[1]) * n.padded_pairs
        return Launch(name, Cost(useful, executed, moved))

    cumsum = (launch("gate sums", 0, 0, 2 * gate),) if gate else ()
    gate_gradient = (launch("gate gradient sums", 0, 0, 2 * gate),) if gate else ()
    forward = (
        *cumsum,
        launch("states", 1, 0, k + v + gate + state),
        launch("output", 1, d + e, q + k + v + gate + state + y),
    )
    backward = (
        launch("states again", 0, 0, k + v + gate + state32, again=(1, 0)),
        launch("state gradients", 1, 0, q + y + gate + state32),
        launch("dq and dk", 2, 2 * d + e, q + k + v + y + 2 * gate + 2 * state32 + q + k),
        launch("dv", 1, e, q + k + y + gate + state32 + v, again=(0, d)),
        *gate_gradient,
    )
    return of_pass(case, forward, backward)


BASED_TOKENS, BASED_WIDTH, BASED_VALUES = 16, 16, 32  # blocks of FLA's fused_chunk_based


def based_launches(case: Case) -> tuple[Launch, ...]:
    """Based, 1 + s + s^2 / 2 (H = Hk), in the two launches of FLA 0.6.0 (fla/ops/based/fused_chunk.py): chunks of 16
    tokens walked in order by one program a head and 32 columns of v, forward and backward.

    Forward, useful: the state has one row for each product of up to two coordinates, d + d (d + 1) / 2 of them (that of
    degree 0 is a sum, not a product); each token adds to it and reads it, 4 e FLOPs a row, and each causal pair of a
    chunk costs 2 (d + e). Backward, useful: every product has two gradients, and the scores once more.
    Executed: 16 + 16^2 rows (d is padded to 16), whole chunks, the scores again for each 32 columns of v. Backward: the
    states once more, for dq; the scores in both directions, dy v^T too. That is what the kernels' `tl.dot`s add up to.
    Bytes: operands once, y and the denominators in float32.
    """
    problem, n = case.problem, _chunks(case.problem, BASED_TOKENS)
    d, e = problem.head_dim, problem.value_dim
    rows = d + d * (d + 1) // 2
    blocks = -(-e // BASED_VALUES)
    padded_rows, columns = BASED_WIDTH + BASED_WIDTH**2, blocks * (BASED_VALUES if e > BASED_WIDTH else BASED_WIDTH)
    useful = 4 * rows * e * n.tokens + 2 * (d + e) * n.pairs
    of_state = 2 * padded_rows * columns * n.padded_tokens  # one product of phi or a state with values
    scores, values = 2 * BASED_WIDTH * blocks * n.padded_pairs, 2 * columns * n.padded_pairs
    denominators = problem.tokens * problem.heads * 4
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes
    out = problem.y_bytes // problem.itemsize * 4 + denominators
    forward = Cost(useful, 2 * of_state + scores + values, operands + out)
    # dq: dy by the states, which are made again; dk and dv: the gradients of the states, made, and read for each.
    executed = 5 * of_state + 4 * scores + 3 * values
    backward = Cost(2 * useful + 2 * d * n.pairs, executed, 2 * operands + problem.y_bytes + denominators)
    return of_pass(case, (Launch("forward", forward),), (Launch("backward", backward),))


def linear_workspace_bytes(case: Case, chunk: int, gated: bool) -> int:
    """Rough: the chunks' states, in the inputs' dtype forward, in float32 with their gradients backward; and the
    chunks' gate sums with, backward, two arrays of gate gradients."""
    n = _chunks(case.problem, chunk)
    gate = case.problem.gate_bytes if gated else 0
    if case.pass_ == "fwd":
        return n.state_elements * case.problem.itemsize + gate
    return 2 * n.state_elements * 4 + 3 * gate


def of_pass(case: Case, forward: tuple[Launch, ...], backward: tuple[Launch, ...]) -> tuple[Launch, ...]:
    """The launches that the case's pass makes."""
    return {"fwd": forward, "bwd": backward, "fwd+bwd": forward + backward}[case.pass_]
