"""How large the terms are of which results are sums: where these cancel, an error has nothing else to be held against.

If each term of a sum is rounded once, by itself, the error is about the unit roundoff times the root of the sum of the
terms' squares. For a result of ordinary size that is less than the roundoff of the result itself times a small number;
for one that is little but the rest of large terms it is more. Terms of gradients count dy . v_j and dy . y_i apart,
whose difference vanishes where a query sees one key.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerbench.fuzz.exact import BLOCK_ELEMENTS, weights
from powerbench.fuzz.inputs import Values
from powerbench.fuzz.problem import FuzzProblem
from powerbench.kernels.power.reference import ZERO_GATE


@torch.no_grad()
def term_norms(problem: FuzzProblem, values: Values) -> dict[str, Tensor]:
    """For y, dq, dk, dv a norm a row [B, T, heads], for dlog_g [B, T, Hk]: of terms between tokens of the sequence.

    What comes from a state, or goes out through one, is left out: there results are judged as if it did not cancel.
    """
    q, k, v, dy = (x.double() for x in (values.q, values.k, values.v, values.dy))
    B, T, H, _ = q.shape
    Hk = k.shape[2]
    G = k.new_zeros(B, T, Hk)
    if values.log_g is not None:
        G = values.log_g.double().clamp(min=ZERO_GATE).cumsum(1)
    if problem.loss not in ("y", "both"):
        dy = torch.zeros_like(dy)
    rows = max(1, min(T, BLOCK_ELEMENTS // (B * H * T)))
    squares = {"y": [], "dq": []}
    of_k, of_v, columns = (k.new_zeros(B, Hk, T) for _ in range(3))
    across = []
    for start in range(0, T, rows):
        part = slice(start, start + rows)
        end = min(start + rows, T)
        scale = problem.scale * problem.d**-0.5
        scores, P = weights(q[:, part], k[:, :end], G[:, :end], p=problem.p, scale=scale)
        if problem.normalize:
            den = P.sum(-1, keepdim=True)
            P = P / torch.where(den == 0, 1.0, den)
        dy_i = dy[:, part].unflatten(2, (Hk, -1))  # [B, R, Hk, G, e]
        dyv = torch.einsum("bikge,bjke->bkgij", dy_i, v[:, :end])
        both = dyv.square()
        if problem.normalize:
            both = both + (P * dyv).sum(-1, keepdim=True).square()
        moved = P.square() * both  # of d loss / d log of the weight
        ds = problem.p**2 * torch.where(scores == 0, 0.0, moved / scores.square())
        norms = (x[:, :end].square().sum(-1).transpose(1, 2) for x in (k, v))
        k_norm, v_norm = norms
        squares["y"].append(torch.einsum("bkgij,bkj->bikg", P.square(), v_norm))
        squares["dq"].append(scale**2 * torch.einsum("bkgij,bkj->bikg", ds, k_norm))
        q_norm, dy_norm = (
            x.square().sum(-1).unflatten(2, (Hk, -1)) for x in (q[:, part], dy[:, part])
        )  # [B, R, Hk, G]
        of_k[..., :end] += scale**2 * torch.einsum("bkgij,bikg->bkj", ds, q_norm)
        of_v[..., :end] += torch.einsum("bkgij,bikg->bkj", P.square(), dy_norm)
        columns[..., :end] += moved.sum((2, 3))
        across.append(moved.sum((2, 4)))
    found = {name: torch.cat(parts, 1).flatten(2).sqrt() for name, parts in squares.items()}
    # pairs i >= t > j of a gate t: those of t - 1, and what token t - 1 is as a key, less what t - 1 was as a query
    before = (columns - torch.cat(across, 2)).cumsum(-1)
    gates = torch.cat([torch.zeros_like(before[..., :1]), before[..., :-1]], -1).clamp(min=0)
    return found | {"dk": of_k.transpose(1, 2).sqrt(), "dv": of_v.transpose(1, 2).sqrt(),
                    "dlog_g": gates.transpose(1, 2).sqrt()}  # fmt: skip
