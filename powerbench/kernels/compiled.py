"""Power attention as one would write it in plain PyTorch, through torch.compile: what a compiler makes of it.

Both forms of docs/mathematics.md, with whole arrays and no loops: the attention form, whose T x T weights go through
memory, and the chunked form, whose phi of every token does. powerbench's own kernels are the same mathematics with
neither; the distance between the rows is what writing kernels buys.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, reduce
from importlib.util import find_spec
from math import inf
from operator import mul
from shutil import which

import torch
from torch import Tensor
from torch.nn.functional import pad

from powerbench.cost import Cost, Launch, total
from powerbench.kernels.kernel import Forward, Kernel, Support
from powerbench.kernels.ledger import of_pass
from powerbench.kernels.packages import NEEDS_CUDA, compiled
from powerbench.kernels.power import contestants, cost
from powerbench.kernels.power.feature_map import feature_map, tspow_dim
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.problem import Case, Params, Pass, Problem

INSTALL = "with torch; it compiles with triton on a GPU, with a C++ compiler on a CPU"


def attention(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, p: int) -> Tensor:
    """y [B, T, H, e] from all T x T weights at once. Weights and gates in float32 (float64 for float64)."""
    queries = q.unflatten(2, (k.shape[2], -1)) * q.shape[-1] ** -0.5
    weights = _weights(torch.einsum("bikgd,bjkd->bkgij", queries, k), _gate_sums(log_g, k), p)
    if normalized_by_default(p):
        weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bkgij,bjke->bikge", weights.to(v.dtype), v).flatten(2, 3)


def chunked(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, indices: Tensor, multiplicity: Tensor, p: int, chunk: int
) -> Tensor:
    """y [B, T, H, e] from chunks of `chunk` tokens and the states between them, all chunks at once.

    `indices` [D, p] and `multiplicity` [D] are those of `feature_map`. The decay from each chunk to each later one is a
    matrix, so that the scan over chunks is a product too. States in the inputs' dtype.
    """
    T, normalize, wide = q.shape[1], normalized_by_default(p), _wide(k.dtype)
    q, k, v = (_in_chunks(t, chunk) for t in (q, k, v))
    gates = k.new_zeros(k.shape[:-1], dtype=wide) if log_g is None else _in_chunks(log_g.to(wide), chunk)
    queries = q.unflatten(3, (k.shape[3], -1)) * q.shape[-1] ** -0.5  # [B, N, C, Hk, G, d]
    a = gates.cumsum(2)  # within the chunk
    whole = a[:, :, -1]  # [B, N, Hk]
    values = torch.cat((v, torch.ones_like(v[..., :1])), -1) if normalize else v

    to_end = (whole[:, :, None] - a).exp()[..., None]
    sums = torch.einsum("bnckr,bncke->bnkre", (_phi(k, indices) * to_end).to(k.dtype), values)
    after = whole.cumsum(1).transpose(1, 2)  # [B, Hk, N]
    before = after - whole.transpose(1, 2)
    later = torch.ones(after.shape[-1], after.shape[-1], dtype=torch.bool, device=q.device).tril(-1)
    decay = (before[..., :, None] - after[..., None, :]).masked_fill(~later, -inf).exp()  # from chunk m into chunk n
    states = torch.einsum("bknm,bmkre->bnkre", decay.to(k.dtype), sums)

    phi = _phi(queries, indices) * multiplicity * a.exp()[..., None, None]
    y = torch.einsum("bnckgr,bnkre->bnckge", phi.to(q.dtype), states).to(wide)
    scores = torch.einsum("bnikgd,bnjkd->bnkgij", queries, k).flatten(0, 1)
    weights = _weights(scores, a.flatten(0, 1).transpose(1, 2), p).unflatten(0, q.shape[:2])
    y = y + torch.einsum("bnkgij,bnjke->bnikge", weights.to(v.dtype), values).to(wide)
    y = y.flatten(3, 4).flatten(1, 2)[:, :T]  # before dividing: what fills the last chunk up has no weights
    return (y[..., :-1] / y[..., -1:] if normalize else y).to(v.dtype)


def _phi(x: Tensor, indices: Tensor) -> Tensor:
    """[..., D]: the products of the coordinates of x [..., d] that `indices` [D, p] name, in float32 or wider.

    There their gradients are added up too: in bfloat16, what torch 2.13 compiles for CPUs corrupts its heap.
    """
    return reduce(mul, x.to(_wide(x.dtype))[..., indices].unbind(-1))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _gate_sums(log_g: Tensor | None, k: Tensor) -> Tensor | None:
    """G [B, Hk, T]."""
    return None if log_g is None else log_g.to(_wide(k.dtype)).cumsum(1).transpose(1, 2)


def _weights(scores: Tensor, G: Tensor | None, p: int) -> Tensor:
    """A = exp(G_i - G_j) s^p for j <= i, else 0, of scores [B, Hk, G, T, T] in float32 or wider."""
    length = scores.shape[-1]
    past = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    powers = scores.to(_wide(scores.dtype)) ** p
    if G is None:
        return powers.masked_fill(~past, 0.0)
    decay = (G[..., :, None] - G[..., None, :]).masked_fill(~past, -inf).exp()
    return powers * decay[:, :, None]


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """[B, T, ...] as [B, N, C, ...], filled up with zeros: tokens without weight, and gates that let all through."""
    rest = -x.shape[1] % chunk
    return pad(x, (0, 0) * (x.ndim - 2) + (0, rest)).unflatten(1, (-1, chunk))


def _resolve(takes: frozenset[str], problem: Problem, params: Params, pass_: Pass, device_type: str) -> Params:
    """As power attention's own rows, less what this form has not."""
    chosen = contestants.resolve(None, problem, params, pass_, device_type)
    return Params(
        chosen.p,
        chosen.d_tile if "d_tile" in takes else None,
        chosen.chunk_size if "chunk_size" in takes else None,
    )


def _unsupported(support: Support, case: Case, device_type: str) -> str | None:
    if device_type == "cuda" and not torch.cuda.is_available():
        return NEEDS_CUDA
    if device_type == "cuda" and find_spec("triton") is None:
        return "triton is not installed (pip install powerbench[gpu]); torch compiles with it"
    if device_type == "cpu" and which(os.environ.get("CXX", "g++")) is None:
        return "torch.compile needs a C++ compiler on a CPU: $CXX, or g++"
    return support.refusal(case) or contestants.refusal(case)


def _prepare_attention(case: Case) -> Forward:
    return partial(compiled(attention), p=case.params.degree)


def _prepare_chunked(case: Case) -> Forward:
    p, d_tile, chunk = cost.resolved(case)
    phi, function = feature_map(case.problem.head_dim, p, d_tile), compiled(chunked)
    indices, multiplicity = torch.from_numpy(phi.indices).long(), torch.from_numpy(phi.multiplicity).float()
    tables: list[Tensor] = []  # on the device of the first call, which is that of all

    def forward(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> Tensor:
        if not tables:
            tables.extend((indices.to(q.device), multiplicity.to(q.device)))
        y: Tensor = function(q, k, v, log_g, *tables, p=p, chunk=chunk)
        return y

    return forward


def _attention_launches(case: Case) -> tuple[Launch, ...]:
    """Useful: the causal pairs, 2 (d + e) FLOPs each, backward 2.5 times that (as softmax attention is counted).
    Executed: all T x T, forward 2 (d + e), backward 4 (d + e): two gradients for each product. Bytes: operands, and the
    weights in the inputs' dtype, written and read once, backward with their gradients."""
    problem = case.problem
    d, e, T = problem.head_dim, problem.value_dim, problem.seqlen
    heads = problem.batch * problem.heads
    useful, executed = heads * T * (T + 1) // 2 * 2 * (d + e), heads * T * T * 2 * (d + e)
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    through = 2 * heads * T * T * problem.itemsize
    forward = Launch("forward", Cost(useful, executed, operands + problem.y_bytes + through))
    moved = 2 * operands + problem.y_bytes + 2 * through
    return of_pass(case, (forward,), (Launch("backward", Cost(useful * 5 // 2, 2 * executed, moved)),))


def _chunked_launches(case: Case) -> tuple[Launch, ...]:
    """Useful: as power attention's other rows. Executed: whole chunks with all their pairs, states of every chunk, the
    product that scans them; backward two gradients for each product. Bytes: operands, and phi of q and k, weights and
    states, in the inputs' dtype, written and read once, backward with their gradients."""
    problem, (p, d_tile, chunk) = case.problem, cost.resolved(case)
    normalize = normalized_by_default(p)
    d, columns = problem.head_dim, problem.value_dim + normalize
    number = -(-problem.seqlen // chunk)
    tokens, rows = problem.batch * number * chunk, tspow_dim(d, p, d_tile)
    heads, kv_heads = problem.heads, problem.kv_heads
    states = problem.batch * number * kv_heads * rows * columns
    executed = 2 * (tokens * (heads + kv_heads) * rows * columns + states * number)
    executed += 2 * tokens * heads * chunk * (d + columns)
    operands = problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.gate_bytes
    through = 2 * problem.itemsize * (tokens * (heads + kv_heads) * rows + tokens * heads * chunk + 2 * states)
    useful = {
        pass_: total(cost.launches(Case(problem, case.kernel, case.params, pass_), 1, normalize)).useful_flops
        for pass_ in ("fwd", "bwd")
    }
    forward = Launch("forward", Cost(useful["fwd"], executed, operands + problem.y_bytes + through))
    moved = 2 * operands + problem.y_bytes + 2 * through
    return of_pass(case, (forward,), (Launch("backward", Cost(useful["bwd"], 2 * executed, moved)),))


def _workspace_bytes(launches: Callable[[Case], tuple[Launch, ...]], case: Case) -> int:
    """Rough: all that goes through memory stands there at once; backward with what it is the gradient of."""
    return sum(launch.cost.bytes for launch in launches(case))


def _kernel(name: str, summary: str, takes: frozenset[str], support: Support, **fields: object) -> Kernel:
    return Kernel(
        name=name,
        family="compile",
        summary=f"power attention in plain PyTorch, through torch.compile: {summary}",
        takes=takes,
        gated=True,
        version=lambda: str(torch.__version__),
        resolve=partial(_resolve, takes),
        unsupported=partial(_unsupported, support),
        reference=contestants.reference,
        support=support,
        **fields,  # type: ignore[arg-type]
    )


COMPILED_KERNELS = (
    _kernel(
        "compile-attention",
        "attention form, O(T^2) memory",
        frozenset({"p"}),
        Support(INSTALL),
        prepare=_prepare_attention,
        launches=_attention_launches,
        workspace_bytes=partial(_workspace_bytes, _attention_launches),
    ),
    _kernel(
        "compile-chunked",
        "chunked form",
        frozenset({"p", "d_tile", "chunk_size"}),
        Support(INSTALL, ("bf16", "fp32", "fp64")),  # a sum of p-th powers over a chunk exceeds what fp16 holds
        prepare=_prepare_chunked,
        launches=_chunked_launches,
        workspace_bytes=partial(_workspace_bytes, _chunked_launches),
    ),
)
