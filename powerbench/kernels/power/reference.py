"""Power attention written down as the mathematics says, in plain PyTorch: what every kernel is checked against.

Three forms of one operator, with the same signature and no tricks, and `attention_rows`, which gives single rows of
the output at any length. They compute in the dtype of their inputs: pass float64 to get a reference.

    y_i = sum_{j <= i} A_ij v_j / sum_{j <= i} A_ij,   A_ij = exp(G_i - G_j) (scale <q_i, k_j>)^p,   G = cumsum(log_g)

with the denominator only where `normalize`. q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e], log_g [B, T, Hk] or None;
query head h belongs to key/value head h // (H / Hk). A row whose weights are all zero is 0 when
normalised, and has no gradient. See docs/mathematics.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from powerbench.kernels.power.feature_map import feature_map
from powerbench.kernels.power.state import PowerState

ZERO_GATE = -1000.0  # exp of it is 0 in float64 too; a gate of -inf counts as this, or G_i - G_j would be nan


def features(x: Tensor, p: int, d_tile: int) -> Tensor:
    """Unweighted phi of x [..., d]: [..., D], one product of p coordinates a row of `feature_map`."""
    indices = torch.from_numpy(feature_map(x.shape[-1], p, d_tile).indices).to(x.device, torch.int64)
    return x[..., indices].prod(dim=-1)


def attention_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    p: int,
    scale: float | None = None,
    normalize: bool = False,
    d_tile: int = 1,
    initial_state: PowerState | None = None,
    return_state: bool = False,
) -> tuple[Tensor, PowerState | None]:
    """All pairs at once, O(T^2). The state is read and made in one piece: this is one chunk as long as the sequence."""
    groups, scale = q.shape[2] // k.shape[2], _scale(scale, q)
    G = _cumulative(log_g, k)
    queries = q.unflatten(2, (-1, groups))
    scores = scale * torch.einsum("bikgd,bjkd->bkgij", queries, k)
    A = scores**p * _decay(G)[:, :, None]
    numerator = torch.einsum("bkgij,bjke->bikge", A, v)
    denominator = A.sum(dim=-1).permute(0, 3, 1, 2)
    if initial_state is not None:
        phi = scale**p * _weighted(q, p, d_tile).unflatten(2, (-1, groups)) * G.exp()[..., None, None]
        numerator = numerator + torch.einsum("bikgr,bkre->bikge", phi, initial_state.s)
        denominator = denominator + torch.einsum("bikgr,bkr->bikg", phi, initial_state.z)
    y = _normalized(numerator, denominator[..., None]) if normalize else numerator
    return y.flatten(2, 3), _final_state(k, v, G, initial_state, p=p, d_tile=d_tile) if return_state else None


def recurrent_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    p: int,
    scale: float | None = None,
    normalize: bool = False,
    d_tile: int = 1,
    initial_state: PowerState | None = None,
    return_state: bool = False,
) -> tuple[Tensor, PowerState | None]:
    """One token at a time, O(1) memory a step: decoding."""
    groups, scale = q.shape[2] // k.shape[2], _scale(scale, q)
    phi_q = scale**p * _weighted(q, p, d_tile).unflatten(2, (-1, groups))
    phi_k = features(k, p, d_tile)
    g = torch.ones_like(k[..., 0]) if log_g is None else log_g.to(k.dtype).exp()
    s, z = _zero_state(k, v, p, d_tile) if initial_state is None else initial_state
    outputs = []
    for i in range(q.shape[1]):
        s = g[:, i, :, None, None] * s + phi_k[:, i, :, :, None] * v[:, i, :, None, :]
        z = g[:, i, :, None] * z + phi_k[:, i]
        y = torch.einsum("bkgr,bkre->bkge", phi_q[:, i], s)
        if normalize:
            y = _normalized(y, torch.einsum("bkgr,bkr->bkg", phi_q[:, i], z)[..., None])
        outputs.append(y.flatten(1, 2))
    return torch.stack(outputs, dim=1), PowerState(s, z) if return_state else None


def chunked_form(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    p: int,
    chunk_size: int,
    scale: float | None = None,
    normalize: bool = False,
    d_tile: int = 1,
    initial_state: PowerState | None = None,
    return_state: bool = False,
) -> tuple[Tensor, PowerState | None]:
    """The attention form chunk by chunk, the state carried from one to the next: O(T), training and prefill."""
    state = _zero_state(k, v, p, d_tile) if initial_state is None else initial_state
    outputs = []
    for start in range(0, q.shape[1], chunk_size):
        chunk = slice(start, start + chunk_size)
        gates = None if log_g is None else log_g[:, chunk]
        y, after = attention_form(
            q[:, chunk], k[:, chunk], v[:, chunk], gates,
            p=p, scale=scale, normalize=normalize, d_tile=d_tile, initial_state=state, return_state=True,
        )  # fmt: skip
        assert after is not None
        state = after
        outputs.append(y)
    return torch.cat(outputs, dim=1), state if return_state else None


def attention_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    rows: Tensor,
    *,
    p: int,
    scale: float | None = None,
    normalize: bool = False,
) -> Tensor:
    """y at the query rows `rows` (int64 [R]) only: float64 [B, R, H, e], whatever the dtype of the inputs.

    Differentiable. Casts and scores are made for one key/value head at a time: about 3 * 8 * R * (H / Hk) * T bytes at
    once without gradients, B * Hk times that with them.
    """
    B, heads, groups, scale = k.shape[0], k.shape[2], q.shape[2] // k.shape[2], _scale(scale, q)
    rows = rows.to(q.device)
    future = torch.arange(k.shape[1], device=q.device) > rows[:, None]
    outputs = []
    for b in range(B):
        for h in range(heads):
            queries = scale * q[b, rows, h * groups : (h + 1) * groups].double()
            A = torch.einsum("rgd,jd->grj", queries, k[b, :, h].double()) ** p
            if log_g is None:
                A = A.masked_fill(future, 0.0)
            else:
                G = log_g[b, :, h].double().clamp(min=ZERO_GATE).cumsum(0)
                A = A * (G[rows, None] - G).masked_fill(future, -math.inf).exp()
            y = torch.einsum("grj,je->rge", A, v[b, :, h].double())
            outputs.append(_normalized(y, A.sum(dim=-1).T[..., None]) if normalize else y)
    return torch.stack(outputs).unflatten(0, (B, heads)).transpose(1, 2).flatten(2, 3)


def _normalized(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient; 0 where the denominator is, with no gradient: that of a quotient 0 / 0 would be nan."""
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


def _scale(scale: float | None, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if scale is None else scale


def _cumulative(log_g: Tensor | None, k: Tensor) -> Tensor:
    """G [B, T, Hk], zeros without gates."""
    return torch.zeros_like(k[..., 0]) if log_g is None else log_g.to(k.dtype).clamp(min=ZERO_GATE).cumsum(dim=1)


def _decay(G: Tensor) -> Tensor:
    """exp(G_i - G_j) for j <= i, else 0: [B, Hk, T, T]. Masked before exp, which would overflow for j > i."""
    T, G = G.shape[1], G.transpose(1, 2)
    future = torch.ones(T, T, dtype=torch.bool, device=G.device).triu(1)
    return (G[..., :, None] - G[..., None, :]).masked_fill(future, -math.inf).exp()


def _weighted(q: Tensor, p: int, d_tile: int) -> Tensor:
    """phi of the queries with the multiplicity of each row: _weighted(q) . features(k) = <q, k>^p."""
    multiplicity = torch.from_numpy(feature_map(q.shape[-1], p, d_tile).multiplicity)
    return features(q, p, d_tile) * multiplicity.to(q.device, q.dtype)


def _zero_state(k: Tensor, v: Tensor, p: int, d_tile: int) -> PowerState:
    dim = feature_map(k.shape[-1], p, d_tile).dim
    B, _, heads, e = v.shape
    return PowerState(k.new_zeros(B, heads, dim, e), k.new_zeros(B, heads, dim))


def _final_state(
    k: Tensor, v: Tensor, G: Tensor, initial_state: PowerState | None, *, p: int, d_tile: int
) -> PowerState:
    phi = features(k, p, d_tile) * (G[:, -1:] - G).exp()[..., None]
    s, z = torch.einsum("bjkr,bjke->bkre", phi, v), phi.sum(dim=1)
    if initial_state is None:
        return PowerState(s, z)
    whole = G[:, -1].exp()
    return PowerState(s + whole[..., None, None] * initial_state.s, z + whole[..., None] * initial_state.z)
