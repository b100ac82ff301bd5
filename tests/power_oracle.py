"""Power attention by its definition in float64: what the Triton kernels are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from powerbench.kernels.power.feature_map import feature_map


def inputs(B, T, H, Hk, d, e, dtype=torch.float32, gated=True, device="cpu", seed=0):
    """q, k, v and slow gates (half-life about 700 tokens: with fast ones a wrong state would be forgotten unseen)."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, g = (torch.randn(B, T, *rest, generator=generator) for rest in ((H, d), (Hk, d), (Hk, e), (Hk,)))
    log_g = torch.nn.functional.logsigmoid(g + 6.9).to(device) if gated else None
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), log_g


def attention_oracle(q, k, v, log_g, p, scale, normalize) -> Tensor:
    """y float64 [B, T, H, e]."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    weights = (scale * torch.einsum("bihd,bjhd->bhij", q, k)) ** p
    if log_g is not None:
        G = log_g.double().cumsum(1).repeat_interleave(q.shape[2] // log_g.shape[2], 2).transpose(1, 2)
        weights = weights * (G[..., :, None] - G[..., None, :]).tril().exp()
    weights = weights.tril()
    y = torch.einsum("bhij,bjhe->bihe", weights, v)
    if not normalize:
        return y
    total = weights.sum(-1).transpose(1, 2)[..., None]
    return torch.where(total == 0, 0.0, y / torch.where(total == 0, 1.0, total))  # no weights at all: 0


def state_oracle(k, v, log_g, p, d_tile) -> tuple[Tensor, Tensor]:
    """s float64 [B, Hk, D, e] and z [B, Hk, D] at the end of the sequence."""
    indices = torch.from_numpy(feature_map(k.shape[-1], p, d_tile).indices).to(k.device, torch.int64)
    phi = k.double()[..., indices].prod(-1)  # [B, T, Hk, D]
    if log_g is not None:
        G = log_g.double().cumsum(1)
        phi = phi * (G[:, -1:] - G).exp()[..., None]
    return torch.einsum("bthr,bthe->bhre", phi, v.double()), phi.sum(1)


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in the Frobenius norm; nan where anything is not a number."""
    return float((got.double() - want).norm() / want.norm())
