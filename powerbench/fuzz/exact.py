"""The reference of a random problem: power attention by its definition, in float64, over blocks of query rows.

Apart from the feature map, which is the meaning of a state's rows, nothing here is shared with what it judges: all
pairs of queries and keys are met, whatever the chunks. Blocks are recomputed in the backward pass, so that memory does
not grow with the square of T. A row whose denominator is zero is zero, and has no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from powerbench.kernels.power.feature_map import feature_map
from powerbench.kernels.power.reference import ZERO_GATE, features

BLOCK_ELEMENTS = 2**24  # of one float64 intermediate: 128 MiB

State = tuple[Tensor, Tensor]


def exact(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, state: State | None,
    *, p: int, d_tile: int, scale: float, normalize: bool, final: bool,
) -> tuple[Tensor, State | None]:  # fmt: skip
    """y [B, T, H, e] and, with `final`, the state (s, z) after the last token; all float64, differentiable."""
    B, T, H, _d = q.shape
    G = cumulative(log_g, k)
    rows = max(1, min(T, BLOCK_ELEMENTS // (B * H * max(T, 1 if state is None else state[0].shape[2]))))
    outputs = []
    for start in range(0, T, rows):
        end = min(start + rows, T)
        outputs.append(
            checkpoint(
                _rows,
                q[:, start:end],
                k[:, :end],
                v[:, :end],
                G[:, :end],
                *(state or (None, None)),
                p=p,
                d_tile=d_tile,
                scale=scale,
                normalize=normalize,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
    return torch.cat(outputs, 1), _end(k, v, G, state, p=p, d_tile=d_tile) if final else None


def cumulative(log_g: Tensor | None, k: Tensor) -> Tensor:
    """Log gates summed from the start of the sequence, float64 [B, T, Hk]; zeros without gates."""
    return torch.zeros_like(k[..., 0]) if log_g is None else log_g.double().clamp(min=ZERO_GATE).cumsum(1)


def weights(q: Tensor, k: Tensor, G: Tensor, *, p: int, scale: float) -> tuple[Tensor, Tensor]:
    """Scores and weights A [B, Hk, G, R, n] of the queries q [B, R, H, d], the last R of the n tokens of k and G."""
    queries = q.unflatten(2, (k.shape[2], -1))
    scores = scale * torch.einsum("bikgd,bjkd->bkgij", queries, k)
    R, n = q.shape[1], k.shape[1]
    future = torch.ones(R, n, dtype=torch.bool, device=q.device).triu(n - R + 1)
    sums = G.transpose(1, 2)
    between = sums[:, :, n - R :, None] - sums[:, :, None, :]
    return scores, scores**p * between.masked_fill(future, -math.inf).exp()[:, :, None]


def _rows(
    q: Tensor, k: Tensor, v: Tensor, G: Tensor, s: Tensor | None, z: Tensor | None,
    *, p: int, d_tile: int, scale: float, normalize: bool,
) -> Tensor:  # fmt: skip
    """y of the queries q, the last of the tokens k, v, G."""
    _, A = weights(q, k, G, p=p, scale=scale)
    num = torch.einsum("bkgij,bjke->bikge", A, v)
    den = A.sum(-1).permute(0, 3, 1, 2)
    if s is not None and z is not None:
        multiplicity = torch.from_numpy(feature_map(q.shape[-1], p, d_tile).multiplicity).to(q.device)
        phi = (scale**p * multiplicity * features(q, p, d_tile)).unflatten(2, (k.shape[2], -1))
        phi = phi * G[:, -q.shape[1] :].exp()[..., None, None]
        num = num + torch.einsum("bikgr,bkre->bikge", phi, s)
        den = den + torch.einsum("bikgr,bkr->bikg", phi, z)
    if normalize:
        num = num / torch.where(den == 0, 1.0, den)[..., None]
    return num.flatten(2, 3)


def _end(k: Tensor, v: Tensor, G: Tensor, state: State | None, *, p: int, d_tile: int) -> State:
    """The state after the last token."""
    dim = feature_map(k.shape[-1], p, d_tile).dim
    B, T, heads = G.shape
    tokens = max(1, min(T, BLOCK_ELEMENTS // (B * heads * dim)))
    s = z = None
    if state is not None:
        whole = G[:, -1].exp()
        s, z = state[0] * whole[..., None, None], state[1] * whole[..., None]
    for start in range(0, T, tokens):
        block = slice(start, start + tokens)
        ds, dz = checkpoint(
            _sums, k[:, block], v[:, block], G[:, -1:] - G[:, block], p, d_tile,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
        s, z = (ds, dz) if s is None else (s + ds, z + dz)
    assert s is not None
    return s, z


def _sums(k: Tensor, v: Tensor, since: Tensor, p: int, d_tile: int) -> State:
    phi = features(k, p, d_tile) * since.exp()[..., None]
    return torch.einsum("bjkr,bjke->bkre", phi, v), phi.sum(1)
