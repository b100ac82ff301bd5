"""The ledger of decoding with power attention: FLOPs and bytes of one step, and what is kept of a sequence. No torch.

Notation as in docs/mathematics.md; C is the case's chunk_size: how many tokens a state takes in at once (1: a plain
state). A step of a lazy state (C > 1) is counted as the mean of C steps: (C - 1) / 2 tokens are in the window, and one
step in C moves the state on.

Useful FLOPs, D = D_spow(d, p): 2 D e a query head to read the state, 2 D e a key/value head to move a token into it,
2 (d + e) for each pair of a query with a token of the window or with its own. Executed: the D of d_tile; and where the
Triton kernel multiplies a group's queries as a matrix, that matrix in full (`triton_decode`).

Bytes: S and z, read every step (z where the output is normalised) and written every C steps (z then also read); the
window; the token's q, k, v, gate and y; and what a backend passes from one part of a step to the next. A state is
float32 (float64 for float64) in every case, so that no step of a case walks over it (`decode_tiling.walks`).
"""

from __future__ import annotations

import math

from powerbench.cost import Cost, Launch
from powerbench.kernels.power.cost import resolved
from powerbench.kernels.power.decode_tiling import split
from powerbench.kernels.power.feature_map import spow_dim, tspow_dim
from powerbench.problem import Case, Problem

FILL_ELEMENTS = 1 << 26  # of phi that are held at once, about, when a state is made ready
FILL_TOKENS = 4096  # of a sequence that are summed up at once then, at most
SUMMED_GATE = 8  # bytes, in a window
MAX_WINDOW = 128  # beyond, moving a window into the state would be felt in the step that does it


def best_window(p: int, d_tile: int, problem: Problem) -> int:
    """The power of two that moves the fewest bytes a token: 1 / C of a state written, C / 2 tokens of a window read."""
    state = tspow_dim(problem.head_dim, p, d_tile) * (problem.value_dim + 1) * _sum_size(problem)
    token = (problem.head_dim + problem.value_dim) * problem.itemsize  # the gate, a few per cent of it, decides nothing
    best = math.sqrt(2 * state / token)
    windows = [1 << i for i in range(1, MAX_WINDOW.bit_length())]
    return min(windows, key=lambda window: max(window / best, best / window))


def sequence_bytes(case: Case) -> int:
    """What is kept of one sequence: its states, and of lazy ones the windows."""
    problem, (p, d_tile, C) = case.problem, resolved(case)
    state = tspow_dim(problem.head_dim, p, d_tile) * (problem.value_dim + 1) * _sum_size(problem)
    window = C * _token_size(problem) if C > 1 else 0
    return problem.kv_heads * (state + window) + (4 if C > 1 else 0)


def fill_tokens(case: Case) -> int:
    """Tokens of a sequence that are summed up at once when its states are made ready."""
    problem, (p, d_tile, _) = case.problem, resolved(case)
    rows = problem.kv_heads * tspow_dim(problem.head_dim, p, d_tile)
    return max(1, min(problem.seqlen, FILL_TOKENS, FILL_ELEMENTS // rows))


def _sum_size(problem: Problem) -> int:
    """Bytes of an element of a state."""
    return 8 if problem.dtype == "fp64" else 4


def _token_size(problem: Problem) -> int:
    """Bytes of a token and key/value head in a window: k, v and the summed gate."""
    return (problem.head_dim + problem.value_dim) * problem.itemsize + SUMMED_GATE


class _Step:
    """The sizes that both backends share, over batch and heads."""

    def __init__(self, case: Case, normalize: bool) -> None:
        self.problem = problem = case.problem
        self.p, self.d_tile, self.C = resolved(case)
        self.normalize = normalize
        self.groups = problem.batch * problem.kv_heads  # states
        self.queries = problem.batch * problem.heads
        self.dim = tspow_dim(problem.head_dim, self.p, self.d_tile)
        self.s_bytes = self.groups * self.dim * problem.value_dim * _sum_size(problem)
        self.z_bytes = self.groups * self.dim * _sum_size(problem)
        gate = 4 if problem.gated else 0
        one = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.y_bytes
        self.token_bytes = one // problem.seqlen + self.groups * gate
        window = self.groups * _token_size(problem)
        # read by the queries; one slot written, and read again when it is moved into the state
        self.window_bytes = window * (self.C - 1) // 2 + 2 * window if self.C > 1 else 0

    def read_flops(self, dim: int) -> int:
        """Of the queries with a state of so many rows."""
        return 2 * dim * self.problem.value_dim * self.queries

    def move_flops(self, dim: int) -> int:
        """Of a token with the state, which takes every token once."""
        return 2 * dim * self.problem.value_dim * self.groups

    @property
    def pair_flops(self) -> int:
        """Of the queries with the tokens that are not in the state yet, the mean of C steps."""
        return (self.problem.head_dim + self.problem.value_dim) * (self.C + 1) * self.queries

    @property
    def useful(self) -> int:
        """Of the whole step."""
        dim = spow_dim(self.problem.head_dim, self.p)
        return self.read_flops(dim) + self.move_flops(dim) + self.pair_flops

    def state_bytes(self, passes: int) -> int:
        """Read every step; every C steps moved on, in `passes` reads and writes beside that."""
        moved = passes * (self.s_bytes + self.z_bytes) + (0 if self.normalize else self.z_bytes)
        return self.s_bytes + (self.z_bytes if self.normalize else 0) + moved // self.C


def triton_launches(case: Case, normalize: bool) -> tuple[Launch, ...]:
    """`step` and `combine`."""
    step = _Step(case, normalize)
    e, group = step.problem.value_dim, step.problem.heads // step.problem.kv_heads
    programs = split(step.dim, e, step.groups, group, step.C > 1, _sum_size(step.problem)).programs
    sums = step.groups * group * ((programs + 1) * (e + normalize) + 1) * 4
    rows = step.groups * (1 if group == 1 else max(16, 1 << (group - 1).bit_length()))
    executed = 2 * step.dim * e * rows + step.move_flops(step.dim) + step.pair_flops
    y = step.problem.y_bytes // step.problem.seqlen
    moved = step.state_bytes(1) + step.window_bytes + step.token_bytes - y + sums
    return Launch("step", Cost(step.useful, executed, moved)), Launch("combine", Cost(0, 0, sums + y))


def torch_launches(case: Case, normalize: bool) -> tuple[Launch, ...]:
    """One row: its many small steps keep little. A state that moves on is decayed first, and then added to."""
    step = _Step(case, normalize)
    executed = step.read_flops(step.dim) + step.move_flops(step.dim) + step.pair_flops
    moved = step.state_bytes(4) + step.window_bytes + step.token_bytes
    return (Launch("step", Cost(step.useful, executed, moved)),)


def workspace_bytes(case: Case) -> int:
    """Rough: what is kept, and phi of the tokens that are summed up at once while it is made ready."""
    problem, (p, d_tile, _) = case.problem, resolved(case)
    phi = problem.kv_heads * tspow_dim(problem.head_dim, p, d_tile) * fill_tokens(case) * _sum_size(problem)
    return problem.batch * sequence_bytes(case) + 2 * phi
