"""Inputs on which power attention is well conditioned, and the error that its tests bound."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

torch.set_num_threads(1)  # the tensors are small, and pytest's workers share the cores: their threads would only wait

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


def make_inputs(T, *, d, e, heads=1, kv_heads=1, batch=1, gates="slow", seed=0) -> Inputs:
    """float64 q, k, v and log_g.

    Slow gates keep the distant past alive, so that a wrong state shows. A query is never nearly orthogonal to its own
    key: where little else weighs (T = 1, fast gates), phi(q) . phi(k) would be a sum of large terms that cancel, and no
    form of the operator would have digits left to compare.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, T, *shape, dtype=torch.float64, generator=random)

    q, k, v, raw = normal(heads, d), normal(kv_heads, d), normal(kv_heads, e), normal(kv_heads)
    own = k.repeat_interleave(heads // kv_heads, dim=2)
    own = own / own.norm(dim=-1, keepdim=True)
    along = (q * own).sum(dim=-1, keepdim=True)
    q = q + own * (along.sign() * d**0.5 - along)
    log_g = {
        "none": None,
        "slow": logsigmoid(raw + 6.9),
        "fast": logsigmoid(raw),
        "zero": torch.zeros_like(raw),
        "-20": torch.full_like(raw, -20.0),
    }[gates]
    return q, k, v, log_g


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|, Frobenius norms in float64."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()
