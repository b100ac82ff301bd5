"""Softmax attention in the pass `decode`: one query a sequence over a KV cache, by torch and by FlashAttention.

The cache is the problem's own k and v, [B, T, Hk, d] and [B, T, Hk, e], of which the last slot is the new token's:
every step writes it there, as decoding has to, and then attends to all T. Which of a package's kernels runs for one
query (flash decoding, split over the keys, or not) is the package's own choice.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from powerbench.cost import Cost, Launch
from powerbench.kernels.kernel import Decoder, Decoding, Inputs
from powerbench.problem import Case, Params, Problem

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # q of one token, cached k, v -> y


def sdpa_decoding(backend: SDPBackend, unsupported: Callable[[Case, str], str | None]) -> Decoding:
    """torch's attention by one backend."""
    workspace = _math_workspace_bytes if backend == SDPBackend.MATH else _workspace_bytes
    return Decoding(_no_params, unsupported, partial(_prepare_sdpa, backend), launches, cache_bytes, workspace)


def flash_decoding(module: Callable[[], str], unsupported: Callable[[Case, str], str | None]) -> Decoding:
    """A FlashAttention package, whose module `module` names: its call for a KV cache, else its usual one."""
    return Decoding(_no_params, unsupported, partial(_prepare_flash, module), launches, cache_bytes, _workspace_bytes)


def _no_params(problem: Problem, params: Params, device_type: str) -> Params:
    return Params()


def _token(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """k and v of the last token, in memory of their own."""
    return inputs.k[:, -1:].clone(), inputs.v[:, -1:].clone()


def _prepare_sdpa(backend: SDPBackend, case: Case, inputs: Inputs) -> Decoder:
    gqa = case.problem.heads != case.problem.kv_heads

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(backend):  # one query sees every key: no mask
            y = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=gqa)
        return y.transpose(1, 2)

    return _appending(inputs, attend)


def _prepare_flash(module: Callable[[], str], case: Case, inputs: Inputs) -> Decoder:
    """Raises ImportError where the package is not installed."""
    package = importlib.import_module(module())
    cached = getattr(package, "flash_attn_with_kvcache", None)
    if cached is None:  # flash-attn-4: causal masks are aligned with the last key
        return _appending(inputs, lambda q, k, v: _first(package.flash_attn_func(q, k, v, causal=True)))
    B, T = inputs.k.shape[:2]
    new_k, new_v = _token(inputs)
    lengths = torch.full((B,), T - 1, dtype=torch.int32, device=inputs.k.device)

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
    problem = case.problem
    flops = 2 * (problem.head_dim + problem.value_dim) * problem.batch * problem.heads * problem.seqlen
    cache = problem.k_bytes + problem.v_bytes
    queries = (problem.q_bytes + problem.y_bytes) // problem.seqlen
    return (
        Launch("append", Cost(0, 0, 2 * cache // problem.seqlen)),
        Launch("attend", Cost(flops, flops, cache + queries)),
    )


def cache_bytes(case: Case) -> int:
    """k and v of a whole context."""
    return (case.problem.k_bytes + case.problem.v_bytes) // case.problem.batch


def _workspace_bytes(case: Case) -> int:
    """Rough: partial sums of keys that were split. The cache is the inputs."""
    return 64 * (case.problem.q_bytes + case.problem.y_bytes) // case.problem.seqlen


def _math_workspace_bytes(case: Case) -> int:
    """Scores, their softmax and a copy in the inputs' dtype; with GQA, k and v for each query head."""
    problem = case.problem
    scores = 10 * problem.batch * problem.heads * problem.seqlen
    groups = problem.heads // problem.kv_heads
    return scores + (groups * (problem.k_bytes + problem.v_bytes) if groups > 1 else 0)
