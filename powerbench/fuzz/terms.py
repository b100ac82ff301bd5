"""How large the terms are of which results are sums: where these cancel, an error has nothing else to be held against.

If each term of a sum is rounded once, by itself, the error is about the unit roundoff times the root of the sum of the
terms' squares. For a result of ordinary size that is the roundoff of the result itself, times a small number; for one
that is little but the rest of large terms it is more.

With P_ij the weight of key j in row i, divided by the denominator where there is one, the terms are P_ij v_j of y_i,
P_ij dy_i of dv_j, and of dq_i, dk_j and dlog_g those of d loss / d log A_ij = P_ij dy_i . v_j - P_ij dy_i . y_i, whose
two parts count apart: their difference vanishes where a query sees one key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerbench.fuzz.exact import BLOCK_ELEMENTS, State, cumulative, exact, weights
from powerbench.fuzz.problem import FuzzProblem
from powerbench.kernels.power.reference import features


@torch.no_grad()
def term_norms(
    problem: FuzzProblem, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State | None, dy: Tensor,
    dstate: State | None, d_tile: int,
) -> dict[str, Tensor]:  # fmt: skip
    """The roots of the sums of squares: for y, dq, dk, dv one a row [B, T, heads], and for dlog_g [B, T, Hk].

    Inputs and incoming gradients in float64; dy zero where there is none. The share of a state in a row of y or of a
    gradient is one term, in dlog_g alone: there it is a sum over many rows, which hardly cancels.
    """
    B, T, H, _ = q.shape
    Hk = k.shape[2]
    G, scale = cumulative(log_g, k), problem.scale * problem.d**-0.5
    options = {"p": problem.p, "d_tile": d_tile, "scale": scale, "final": False}
    # as y of values 1, whose state is z
    ones = None if state is None else (state[1][..., None], state[1])
    den, _ = exact(q, k, torch.ones_like(v[..., :1]), log_g, ones, normalize=False, **options)
    y, _ = exact(q, k, v, log_g, state, normalize=problem.normalize, **options)
    y_terms, dq_terms, across, past = [], [], [], []
    dk_terms, dv_terms, down = (k.new_zeros(B, Hk, T) for _ in range(3))
    k_square, v_square = (x.square().sum(-1).transpose(1, 2) for x in (k, v))
    rows = max(1, min(T, BLOCK_ELEMENTS // (B * H * T)))
    for start in range(0, T, rows):
        end = min(start + rows, T)
        q_i, dy_i, y_i, den_i = (x[:, start:end].unflatten(2, (Hk, -1)) for x in (q, dy, y, den))  # [B, R, Hk, G, ..]
        scores, P = weights(q[:, start:end], k[:, :end], G[:, :end], p=problem.p, scale=scale)
        if problem.normalize:
            P = P / torch.where(den_i == 0, 1.0, den_i).permute(0, 2, 3, 1, 4)
        dyv = torch.einsum("bikge,bjke->bkgij", dy_i, v[:, :end])
        dyy = (dy_i * y_i).sum(-1).permute(0, 2, 3, 1)  # [B, Hk, G, R]
        left = dyy - (P * dyv).sum(-1)  # what comes from the state
        loss = dyv.square() + dyy.square()[..., None] if problem.normalize else dyv.square()
        if problem.normalize:
            left = (left.square() + ((1 - P.sum(-1)) * dyy).square()).sqrt()
        loss, P = loss * P.square(), P.square()
        ds = (scale * problem.p) ** 2 * torch.where(scores == 0, 0.0, loss / scores.square())
        y_terms.append(torch.einsum("bkgij,bkj->bikg", P, v_square[..., :end]))
        dq_terms.append(torch.einsum("bkgij,bkj->bikg", ds, k_square[..., :end]))
        dk_terms[..., :end] += torch.einsum("bkgij,bikg->bkj", ds, q_i.square().sum(-1))
        dv_terms[..., :end] += torch.einsum("bkgij,bikg->bkj", P, dy_i.square().sum(-1))
        down[..., :end] += loss.sum((2, 3))
        across.append(loss.sum((2, 4)))
        past.append(left.square().sum(2))
    future, through = _of_final(problem.p, d_tile, k, v, G, state, dstate)
    squares = {
        "y": torch.cat(y_terms, 1).flatten(2),
        "dq": torch.cat(dq_terms, 1).flatten(2),
        "dk": dk_terms.transpose(1, 2),
        "dv": dv_terms.transpose(1, 2),
        "dlog_g": _of_gates(torch.cat(across, 2), down + future, torch.cat(past, 2), through).transpose(1, 2),
    }
    return {name: x.sqrt() for name, x in squares.items()}


def _of_gates(across: Tensor, down: Tensor, past: Tensor, through: Tensor) -> Tensor:
    """Of dlog_g [B, Hk, T]: all pairs of a query i >= t and a key j < t, and all pairs of which token t is one.

    The latter cancel, but every form of the operator adds them up. across, down, past [B, Hk, T]: sums of squares over
    a token's pairs as a query, as a key (of the final state too), and with the state that comes in, which is a key
    before all others; through [B, Hk]: of the initial and the final state.
    """
    across = across + past
    first = past.sum(-1, keepdim=True) + through[..., None]
    later = (first + (down - across).cumsum(-1)).clamp(min=0)
    return torch.cat([first, later[..., :-1]], -1) + across + down


def _of_final(
    p: int, d_tile: int, k: Tensor, v: Tensor, G: Tensor, state: State | None, dstate: State | None
) -> tuple[Tensor, Tensor]:
    """Squares of the terms of keys in the final state [B, Hk, T], and of the initial state in it [B, Hk]."""
    B, T, Hk = G.shape
    future, through = G.new_zeros(B, Hk, T), G.new_zeros(B, Hk)
    if dstate is None:
        return future, through
    ds, dz = dstate
    if state is not None:
        through = ((ds * state[0]).square().sum((2, 3)) + (dz * state[1]).square().sum(2)) * (2 * G[:, -1]).exp()
    tokens = max(1, min(T, BLOCK_ELEMENTS // (B * Hk * ds.shape[2])))
    for start in range(0, T, tokens):
        part = slice(start, start + tokens)
        phi = features(k[:, part], p, d_tile)
        of_s = torch.einsum("bjke,bjke->bjk", torch.einsum("bjkr,bkre->bjke", phi, ds), v[:, part])
        of_z = torch.einsum("bjkr,bkr->bjk", phi, dz)
        decay = (2 * (G[:, -1:] - G[:, part])).exp()
        future[..., part] = ((of_s.square() + of_z.square()) * decay).transpose(1, 2)
    return future, through
