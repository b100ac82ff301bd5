"""Softmax attention in the pass `decode`: one query a sequence over a KV cache, by torch and by FlashAttention.

The cache is the problem's own k and v, [B, T, Hk, d] and [B, T, Hk, e]. Of a sliding window it is a copy of their last
slots, side by side in memory: a model with windows keeps no more, and windows that lie a context apart are slower to
read. The last slot is the new token's: every step writes it there, as decoding has to, and then attends to all. Which
of a package's kernels runs for one query (flash decoding, split over the keys, or not) is the package's own choice.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Decoder, Decoding, Inputs
from powerbench.problem import Case

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # q of one token, cached k, v -> y


def sdpa_decoding(backend: SDPBackend | None) -> Decoding:
    """torch's attention by one backend; None: by the one that torch chooses."""
    workspace = _workspace_bytes if backend not in (None, SDPBackend.MATH) else _math_workspace_bytes
    return Decoding(partial(_prepare_sdpa, backend), launches, cache_bytes, workspace)


def flash_decoding(module: Callable[[], str]) -> Decoding:
    """A FlashAttention package, whose module `module` names: its call for a KV cache, else its usual one."""
    return Decoding(partial(_prepare_flash, module), launches, cache_bytes, _workspace_bytes)


def _slots(case: Case) -> int:
    """Tokens that the cache holds, the new one included."""
    return case.params.window or case.problem.seqlen


@dataclass(frozen=True)
class _Cache:
    """k [B, slots, Hk, d] and v [B, slots, Hk, e], the inputs' own or copies; new_k and new_v are the new token's."""

    inputs: Inputs
    k: torch.Tensor
    v: torch.Tensor
    new_k: torch.Tensor
    new_v: torch.Tensor

    @classmethod
    def of(cls, case: Case, inputs: Inputs) -> _Cache:
        both = inputs.k, inputs.v
        kept = (_memory(x, _slots(case)) for x in both) if _is_copied(case) else both
        cache = cls(inputs, *kept, *(_memory(x, 1) for x in both))
        cache.reset()
        return cache

    def reset(self) -> None:
        """From the inputs as they are now. The last slot of a copy waits for the token."""
        for kept, x, new in ((self.k, self.inputs.k, self.new_k), (self.v, self.inputs.v, self.new_v)):
            new.copy_(x[:, -1:])
            if kept is not x:
                kept.copy_(x[:, -kept.shape[1] :])
                kept[:, -1] = math.nan


def _memory(x: torch.Tensor, slots: int) -> torch.Tensor:
    """For the last slots of x, side by side; not filled."""
    return torch.empty_like(x[:, -slots:], memory_format=torch.contiguous_format)


def _is_copied(case: Case) -> bool:
    return _slots(case) < case.problem.seqlen


def _prepare_sdpa(backend: SDPBackend | None, case: Case, inputs: Inputs) -> Decoder:
    gqa = case.problem.heads != case.problem.kv_heads

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with nullcontext() if backend is None else sdpa_kernel(backend):  # one query sees every key: no mask
            y = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=gqa)
        return y.transpose(1, 2)

    return _appending(inputs.q, _Cache.of(case, inputs), attend)


def _prepare_flash(module: Callable[[], str], case: Case, inputs: Inputs) -> Decoder:
    """Raises ImportError where the package is not installed."""
    package = importlib.import_module(module())
    q, cache = inputs.q, _Cache.of(case, inputs)
    cached = getattr(package, "flash_attn_with_kvcache", None)
    if cached is None:  # flash-attn-4: causal masks are aligned with the last key
        return _appending(q, cache, lambda q, k, v: _first(package.flash_attn_func(q, k, v, causal=True)))
    B, slots = cache.k.shape[:2]
    lengths = torch.full((B,), slots - 1, dtype=torch.int32, device=q.device)

    def step() -> torch.Tensor:
        return _first(cached(q, cache.k, cache.v, k=cache.new_k, v=cache.new_v, cache_seqlens=lengths, causal=True))

    return Decoder(step, cache.reset)


def _appending(q: torch.Tensor, cache: _Cache, attend: Attend) -> Decoder:
    """Write the token into the cache, then attend."""

    def step() -> torch.Tensor:
        cache.k[:, -1:].copy_(cache.new_k)
        cache.v[:, -1:].copy_(cache.new_v)
        return attend(q, cache.k, cache.v)

    return Decoder(step, cache.reset)


def _first(result: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Some versions return (y, log-sum-exp)."""
    return result[0] if isinstance(result, tuple) else result


def launches(case: Case) -> tuple[Launch, ...]:
    """`append` and `attend`: the cache is read once, 2 (d + e) FLOPs for each key and query head.

    Useful and executed alike: kernels that fill a tile of queries with one of them multiply more, on tensor cores that
    have nothing else to do.
    """
    problem, slots = case.problem, _slots(case)
    flops = 2 * (problem.head_dim + problem.value_dim) * problem.batch * problem.heads * slots
    token = (problem.k_bytes + problem.v_bytes) // problem.seqlen
    queries = (problem.q_bytes + problem.y_bytes) // problem.seqlen
    return (
        Launch("append", Cost(0, 0, 2 * token)),
        Launch("attend", Cost(flops, flops, slots * token + queries)),
    )


def cache_bytes(case: Case) -> int:
    """k and v of a whole context, or of the window."""
    return (case.problem.k_bytes + case.problem.v_bytes) // case.problem.tokens * _slots(case)


def _workspace_bytes(case: Case) -> int:
    """Rough: partial sums of keys that were split; and a window's cache, the others being the inputs."""
    copied = case.problem.batch * cache_bytes(case) if _is_copied(case) else 0
    return copied + 64 * (case.problem.q_bytes + case.problem.y_bytes) // case.problem.seqlen


def _math_workspace_bytes(case: Case) -> int:
    """Scores, softmax and a copy in the inputs' dtype; with GQA k and v for each query head; a window's cache."""
    problem = case.problem
    scores = 10 * problem.batch * problem.heads * _slots(case)
    groups = problem.heads // problem.kv_heads
    caches = (groups if groups > 1 else 0) + _is_copied(case)
    return scores + caches * problem.batch * cache_bytes(case)
