"""Softmax attention in the pass `decode`: one query a sequence over a KV cache, by torch and by FlashAttention.

The cache is the problem's own k and v, [B, T, Hk, d] and [B, T, Hk, e], or of a sliding window the last slots of them.
The last slot is the new token's: every step writes it there, as decoding has to, and then attends to all. Which of a
package's kernels runs for one query (flash decoding, split over the keys, or not) is the package's own choice.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
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


def _cached(case: Case, inputs: Inputs) -> Inputs:
    """The inputs with the tokens that the cache holds, as views."""
    slots = _slots(case)
    return replace(inputs, k=inputs.k[:, -slots:], v=inputs.v[:, -slots:])


def _token(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v of the last token, in memory of their own."""
    return inputs.k[:, -1:].clone(), inputs.v[:, -1:].clone()


def _prepare_sdpa(backend: SDPBackend | None, case: Case, inputs: Inputs) -> Decoder:
    gqa = case.problem.heads != case.problem.kv_heads

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with nullcontext() if backend is None else sdpa_kernel(backend):  # one query sees every key: no mask
            y = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=gqa)
        return y.transpose(1, 2)

    return _appending(_cached(case, inputs), attend)


def _prepare_flash(module: Callable[[], str], case: Case, inputs: Inputs) -> Decoder:
    """Raises ImportError where the package is not installed."""
    package, inputs = importlib.import_module(module()), _cached(case, inputs)
    cached = getattr(package, "flash_attn_with_kvcache", None)
    if cached is None:  # flash-attn-4: causal masks are aligned with the last key
        return _appending(inputs, lambda q, k, v: _first(package.flash_attn_func(q, k, v, causal=True)))
    B, slots = inputs.k.shape[:2]
    new_k, new_v = _token(inputs)
    lengths = torch.full((B,), slots - 1, dtype=torch.int32, device=inputs.k.device)

    def step() -> torch.Tensor:
        return _first(cached(inputs.q, inputs.k, inputs.v, k=new_k, v=new_v, cache_seqlens=lengths, causal=True))

    return Decoder(step, lambda: _refresh(inputs, new_v))


def _appending(inputs: Inputs, attend: Attend) -> Decoder:
    """Write the token into the cache, then attend."""
    new_k, new_v = _token(inputs)

    def step() -> torch.Tensor:
        inputs.k[:, -1:].copy_(new_k)
        inputs.v[:, -1:].copy_(new_v)
        return attend(inputs.q, inputs.k, inputs.v)

    return Decoder(step, lambda: _refresh(inputs, new_v))


def _refresh(inputs: Inputs, new_v: torch.Tensor) -> None:
    """The cache is the inputs themselves; only the token is a copy."""
    new_v.copy_(inputs.v[:, -1:])


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
    """Rough: partial sums of keys that were split. The cache is the inputs."""
    return 64 * (case.problem.q_bytes + case.problem.y_bytes) // case.problem.seqlen


def _math_workspace_bytes(case: Case) -> int:
    """Scores, their softmax and a copy in the inputs' dtype; with GQA, k and v for each query head."""
    problem = case.problem
    scores = 10 * problem.batch * problem.heads * _slots(case)
    groups = problem.heads // problem.kv_heads
    return scores + (groups * problem.batch * cache_bytes(case) if groups > 1 else 0)
