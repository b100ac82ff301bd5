"""Power attention in plain PyTorch: chunked, differentiable any number of times; for every device, dtype and size.

Chunks are walked in order. In each, the queries attend to the keys of the chunk, block by block so that little of the
causal triangle is wasted (`_attention`); phi(q) reads the state that came in (`_read_state`); phi(k) moves the state on
(`_update_state`). phi is expanded for one chunk at a time and thrown away. Under autograd each of these phases is a
checkpoint: inputs, outputs and the state between chunks are kept, everything larger is computed again, up to the last
product of the phase, which nothing needs. Memory is thus O(T) plus one state a chunk when gradients are wanted, and
one state in all when they are not.

Inside, batch and key/value heads lead: q is [B, Hk, G, C, d] with G = H / Hk, k [B, Hk, C, d], v [B, Hk, C, e]. phi is
[B, Hk, D, C], tokens last: a block of phi is then an outer product of long contiguous rows. Where the denominator or
the state is wanted, v carries a column of ones, so that one product gives numerator and denominator, and s and z are
the columns of one matrix [B, Hk, D, e + 1].

Precision: bfloat16 inputs are multiplied in bfloat16 (phi, the values, each chunk's addition to the state), except the
scores q k^T, which p-th powers would amplify, in float32; weights, sums over chunks and the division are in float32,
sums of gates in float64 (`gate_sums`). float16 has too little range for products of p factors and is computed in
float32; float64 stays float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from powerbench.kernels.power import tables
from powerbench.kernels.power.feature_map import feature_map, tspow_dim
from powerbench.kernels.power.gate_sums import GateSums, gate_sums
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.state import PowerState

# Queries of one block of the attention inside a chunk: they meet the keys from the chunk's start to the block's end. No
# more than the tiles of the Triton kernels: a nan in k or v reaches the rows of its own block, and later ones.
ATTENTION_BLOCK = 128
ROW_BLOCK = 512  # rows of a state that one float32 sum runs over, where the state has more than LONG_STATE
LONG_STATE = 2560  # shorter ones keep their digits in one sum, which is up to a tenth faster with a backward pass


def torch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    p: int,
    chunk_size: int,
    d_tile: int,
    scale: float,
    normalize: bool,
    initial_state: PowerState | None,
    return_state: bool,
) -> tuple[Tensor, PowerState | None]:
    """Output [B, T, H, e] in q's dtype, and the state after the last token if asked for.

    Arguments as in `power_attention`, which checks them. With T <= chunk_size, no state in and none out, this is the
    attention form alone. In normalised outputs `scale` cancels but for
    the range of what is divided.
    """
    e, ones = v.shape[-1], normalize or return_state
    factor, rest = split_scale(scale, p)
    # torch.func allows no hooks on what is saved, of which checkpoints are made
    checkpoints = needs_grad(q, k, v, log_g, initial_state) and not tables.transformed()
    run = _checkpointed if checkpoints else _called
    state = None if initial_state is None else _matrix(initial_state, ones)
    tokens_left = q.shape[1]
    outputs = []
    for chunk in _chunks(q, k, v, log_g, chunk_size=chunk_size, ones=ones):
        blocks = range(0, chunk.k.shape[-2], ATTENTION_BLOCK)
        out = torch.cat([run(_attention, *_block(chunk, first), p=p, factor=factor) for first in blocks], dim=-2)
        if state is not None:
            past = run(_read_state, chunk.q, state, p=p, d_tile=d_tile, factor=factor)
            # decayed here, outside the checkpoint: inside, its gradient would need the product computed again
            out = out + (past if chunk.a is None else past * chunk.a.decay(out.dtype)[:, :, None, :, None])
        tokens_left -= chunk.k.shape[-2]
        if tokens_left or return_state:
            state = run(_update_state, chunk.k, chunk.v, chunk.a, state, p=p, d_tile=d_tile)
        out = normalized(out[..., :e], out[..., e:]) if normalize else out[..., :e] * rest**p
        outputs.append(out.to(q.dtype).flatten(1, 2).transpose(1, 2))
    y = torch.cat(outputs, dim=1)
    if not return_state:
        return y, None
    assert state is not None  # T is at least 1
    return y, PowerState(state[..., :e].contiguous(), state[..., e].contiguous())


def needs_grad(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, initial_state: PowerState | None) -> bool:
    """Whether autograd must be able to differentiate the call."""
    tensors = (q, k, v, log_g, *(initial_state or ()))
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _Chunk(NamedTuple):
    """Inputs of one chunk in the layout and dtype of the phases; a [B, Hk, C] is its cumulated log gates."""

    q: Tensor
    k: Tensor
    v: Tensor
    a: GateSums | None


def _chunks(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, *, chunk_size: int, ones: bool) -> Iterator[_Chunk]:
    """The chunks in order; split rather than sliced, since the gradient of every slice would be as long as T."""
    dtype = torch.float32 if q.dtype == torch.float16 else q.dtype
    wide = torch.promote_types(dtype, torch.float32)
    queries = q.transpose(1, 2).unflatten(1, (k.shape[2], -1)).split(chunk_size, dim=-2)
    keys = k.transpose(1, 2).split(chunk_size, dim=-2)
    values = v.transpose(1, 2).split(chunk_size, dim=-2)
    gates = [None] * len(keys) if log_g is None else log_g.transpose(1, 2).split(chunk_size, dim=-1)
    for queries_n, keys_n, values_n, gates_n in zip(queries, keys, values, gates, strict=True):
        v_n = values_n.to(dtype)
        a = None if gates_n is None else gate_sums(gates_n, wide)
        yield _Chunk(queries_n.to(dtype), keys_n.to(dtype), pad(v_n, (0, 1), value=1.0) if ones else v_n, a)


def _block(chunk: _Chunk, first: int) -> _Chunk:
    """The block of queries that starts at `first`, with the keys it may see."""
    end = min(first + ATTENTION_BLOCK, chunk.k.shape[-2])
    a = None if chunk.a is None else chunk.a.at(..., slice(end))
    return _Chunk(chunk.q[..., first:end, :], chunk.k[..., :end, :], chunk.v[..., :end, :], a)


def expand(x: Tensor, p: int, d_tile: int) -> Tensor:
    """Unweighted phi of x [..., d, C], one token a column: [..., D, C], rows in the order of `feature_map`.

    phi of degree n is built tile by tile from degree n - 1: a tile of x times all rows of degree n - 1 whose first
    index lies in that tile or a later one. These rows are the tail of phi, because the order is lexicographic.
    """
    d = x.shape[-2]
    phi = x
    for degree in range(2, p + 1):
        dim = tspow_dim(d, degree - 1, d_tile)
        pairs = []
        for first in range(0, d, d_tile):
            tail = tspow_dim(d - first, degree - 1, d_tile)
            pairs.append((x[..., first : first + d_tile, None, :], phi[..., None, dim - tail :, :]))
        if _recorded(x):
            phi = torch.cat([(tile * tail).flatten(-3, -2) for tile, tail in pairs], dim=-2)
        else:
            phi = x.new_empty(*x.shape[:-2], tspow_dim(d, degree, d_tile), x.shape[-1])
            sizes = [d_tile * tail.shape[-2] for _, tail in pairs]
            for (tile, tail), rows in zip(pairs, phi.split(sizes, dim=-2), strict=True):
                torch.mul(tile, tail, out=rows.unflatten(-2, (d_tile, -1)))
    return phi


def _recorded(x: Tensor) -> bool:
    """Whether somebody follows what is made of x, so that results cannot be written into a part of a tensor."""
    backward = x.requires_grad and torch.is_grad_enabled()
    forward = tables.differentiated_forward() or tables.transformed()
    return backward or forward or torch.compiler.is_compiling()


def _attention(q: Tensor, k: Tensor, v: Tensor, a: GateSums | None, *, p: int, factor: float) -> Tensor:
    """Causal attention of q [B, Hk, G, c, d] to k [B, Hk, n, d], v [B, Hk, n, e]; the queries are the last c of n.

    a [B, Hk, n]: cumulated log gates. Returns [B, Hk, G, c, e] in float32 (float64 for float64).

    Keys of the block itself are masked, and decayed pair by pair. All queries see all earlier keys, and decay splits at
    the block's start s: exp(a_i - a_j) = exp(a_i - a_s) exp(a_s - a_j), two factors of at most 1 that go to y and to v.
    """
    c, n = q.shape[3], k.shape[2]
    start = n - c
    weights = _weights(q, k[:, :, start:], p, factor)
    if a is None:
        weights = weights.tril()
    else:
        future = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
        here = slice(start, None)
        between = a.at(..., here, None).since(a.at(..., None, here), weights.dtype)
        # masked before the exponential, which would overflow for keys after the query
        weights = weights * between.masked_fill(future, -torch.inf).exp()[:, :, None]
    out = _sum_values(weights, v[:, :, start:])
    if start == 0:
        return out
    values = v[:, :, :start]
    if a is not None:
        first = a.at(..., slice(start, start + 1))
        values = (values * first.since(a.at(..., slice(start)), out.dtype).exp()[..., None]).to(v.dtype)
    earlier = _sum_values(_weights(q, k[:, :, :start], p, factor), values)
    return out + (
        earlier if a is None else earlier * a.at(..., here).since(first, out.dtype).exp()[:, :, None, :, None]
    )


def _weights(q: Tensor, k: Tensor, p: int, factor: float) -> Tensor:
    """(factor <q, k>)^p [B, Hk, G, c, n] of q [B, Hk, G, c, d] and k [B, Hk, n, d], in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.flatten(2, 3).to(wide).mul(factor) @ k.to(wide).mT
    return power(scores, p).unflatten(2, q.shape[2:4])


def _sum_values(weights: Tensor, v: Tensor) -> Tensor:
    """weights [B, Hk, G, c, n] times v [B, Hk, n, e]: [B, Hk, G, c, e] in the dtype of the weights."""
    return (weights.flatten(2, 3).to(v.dtype) @ v).unflatten(2, weights.shape[2:4]).to(weights.dtype)


def _read_state(q: Tensor, state: Tensor, *, p: int, d_tile: int, factor: float) -> Tensor:
    """What q [B, Hk, G, C, d] finds in the state [B, Hk, D, e]: phi(factor q)^T (multiplicity * state).

    [B, Hk, G, C, e].
    """
    phi = expand(q.flatten(2, 3).mT.contiguous() * factor, p, d_tile)
    weighted = state * multiplicity(q.shape[-1], p, d_tile, state)
    # state^T phi rather than phi^T state: CPU matrix products in bfloat16 are up to eight times faster this way round
    past = _contract_rows(weighted.to(q.dtype), phi).mT
    return past.unflatten(2, q.shape[2:4]).to(state.dtype)


def _contract_rows(x: Tensor, phi: Tensor) -> Tensor:
    """x^T phi for x [..., D, e] and phi [..., D, C]: [..., e, C], float32 sums over D in blocks of ROW_BLOCK.

    One running sum over thousands of rows, as a library may take it, would lose digits that float32 has.
    """
    if x.dtype != torch.float32 or x.shape[-2] <= LONG_STATE:
        return x.mT @ phi
    parts = zip(x.split(ROW_BLOCK, dim=-2), phi.split(ROW_BLOCK, dim=-2), strict=True)
    first, *others = (x_rows.mT @ phi_rows for x_rows, phi_rows in parts)
    for part in others:
        first = first + part
    return first


def _update_state(k: Tensor, v: Tensor, a: GateSums | None, state: Tensor | None, *, p: int, d_tile: int) -> Tensor:
    """The state after a chunk: exp(a_C) state + sum_i exp(a_C - a_i) phi(k_i) v_i^T, [B, Hk, D, e]."""
    wide = torch.promote_types(k.dtype, torch.float32)
    if a is not None:
        end = a.at(..., slice(-1, None))
        v = (v * end.since(a, wide).exp()[..., None]).to(v.dtype)
        state = None if state is None else state * end.decay(wide)[..., None]
    phi = expand(k.mT.contiguous(), p, d_tile)
    if phi.dtype == torch.float32 and phi.shape[-2] > LONG_STATE:
        # in blocks, so that the gradient of v is a sum of sums, as in `_contract_rows`
        added = torch.cat([rows @ v for rows in phi.split(ROW_BLOCK, dim=-2)], dim=-2)
    else:
        added = (phi @ v).to(wide)
    return added if state is None else state + added


def power(x: Tensor, p: int) -> Tensor:
    """x^p by squaring: exact signs, and no logarithm."""
    if p == 1:
        return x
    return power(x * x, p // 2) if p % 2 == 0 else x * power(x, p - 1)


def normalized(out: Tensor, mass: Tensor) -> Tensor:
    """out [..., e] / mass [..., 1]; where the mass is zero, 0 and no gradient.

    Zero is also what is below the smallest normal number, whose inverse may be out of range. Divided by 1 there: the
    gradient of a quotient that is left out would be nan all the same.
    """
    zero = mass.abs() < torch.finfo(mass.dtype).tiny
    return torch.where(zero, 0.0, out / torch.where(zero, 1.0, mass))


def multiplicity(d: int, p: int, d_tile: int, like: Tensor) -> Tensor:
    """Multiplicities of the state's rows, [D, 1], kept on the device: copies would stall it, and break CUDA graphs."""
    if torch.compiler.is_dynamo_compiling():
        return _multiplicity_op(d, p, d_tile, like.device, like.dtype)
    return tables.on_device(like.device, _multiplicity, d, p, d_tile, dtype=like.dtype)


@torch.library.custom_op(
    "powerbench::multiplicity", mutates_args=(),
    schema="(int d, int p, int d_tile, Device device, ScalarType dtype) -> Tensor",
)  # fmt: skip
def _multiplicity_op(d: int, p: int, d_tile: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """For torch.compile, which cannot trace the feature map, and takes one constant a function, of one d, p and d_tile.

    A copy: a compiler may write to what an operator returns.
    """
    return tables.on_device(device, _multiplicity, d, p, d_tile, dtype=dtype).clone()


@_multiplicity_op.register_fake
def _(d: int, p: int, d_tile: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(tspow_dim(d, p, d_tile), 1, device=device, dtype=dtype)


def _multiplicity(d: int, p: int, d_tile: int) -> np.ndarray:
    return feature_map(d, p, d_tile).multiplicity[:, None]


def _matrix(state: PowerState, ones: bool) -> Tensor:
    """s, with z as one more column where the values carry ones."""
    return torch.cat([state.s, state.z[..., None]], dim=-1) if ones else state.s


def _called(phase: Callable[..., Tensor], *args: Tensor | GateSums | None, **sizes: int) -> Tensor:
    return phase(*args, **sizes)


def _checkpointed(phase: Callable[..., Tensor], *args: Tensor | GateSums | None, **sizes: int) -> Tensor:
    """Runs a phase and keeps only its inputs and output for the backward pass. There is no randomness to restore."""
    return checkpoint(phase, *args, **sizes, use_reentrant=False, preserve_rng_state=False)
