"""Power attention's forward pass in Triton: four kinds of launch, composed.

With B, T, H, Hk, d, e, p as everywhere, C = min(chunk_size, T), N = ceil(T / C) chunks, D = tspow_dim(d, p, d_tile)
and D' = tspow_dim(d, p - 1, d_tile) rows of the denominator's state; `in` is the inputs' dtype and `op` the operand
dtype: bf16 for bf16 and fp16 inputs, fp32 for fp32. `first` is the first chunk with a past: 0 with an initial state,
else 1. n = N - first states come into chunks; m = N with return_state, else N - 1, states are made.

    gates              gated: a few small torch launches
        reads   log_g fp32 [B, T, Hk]
        writes  a fp32 [B, Hk, N, C]
    attention          always
        reads   q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in `in`; a
        writes  y [B, T, H, e] in `in` of chunks < first; num fp32 [B, T, H, e] and, normalised, den fp32 [B, T, H] of
                the others
    update_state       m > 0
        reads   k, v of m chunks; a
        writes  S fp32 [B, Hk, m, D, e]
    update_state (z)   m > 0, and z wanted
        reads   k of m chunks; a
        writes  Z fp32 [B, Hk, m, D', d]
    scan               m > 0 or an initial state
        reads   S; the last a of each chunk; initial s fp32 [B, Hk, D, e]; weight fp32 [D]
        writes  R op [B, Hk, n, D, e]; final s fp32 [B, Hk, D, e]
    scan (z)           as scan, and z wanted
        reads   Z; the last a of each chunk; initial Z fp32 [B, Hk, D', d]; weight fp32 [D' d]
        writes  Rz op [B, Hk, n, D', d]; final Z fp32 [B, Hk, D', d]
    query_state        n > 0
        reads   q, num, den of chunks >= first; a; R; Rz
        writes  y of chunks >= first

The denominator needs no product of its own width: phi_p(q) . z = q . (phi_{p-1}(q)^T Z), where Z [D', d] is a state of
degree p - 1 with k in the place of v; it costs about p / e of the numerator. z is wanted when the output is normalised
or the state is returned; the rows of PowerState.z are the entries of Z that the feature map keeps. Odd p is never
normalised, so there Z has no Rz; p = 1, which has no degree below it, sums k against ones [.., 16] instead.

Numerics. Products accumulate in fp32; states are summed and returned in fp32; the state that comes into a chunk is
rounded to `op` once, after its weight, for the tensor cores. phi in bf16 is rounded twice for bf16 inputs: the factor
of a fibre (p - 1 columns and the decay, multiplied in fp32), then its product with the columns (at p = 2 without gates
the factor is a column, and exact). Emulated at p = 2 and 3 that costs nothing measurable: 0.19 % and 0.17 % against
float64, before y itself is rounded, as with one rounding. fp16 inputs take bf16 operands too, because powers of fp16
leave its range at p >= 2 and sums over a long past do at p = 1: their range is then that of fp32, their accuracy that
of bf16 (relative 2^-9 an operand); q k^T keeps fp16. Under Triton's interpreter every product is in fp32. Gates below
LOG_GATE_MIN count as LOG_GATE_MIN.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.attention import attention
from powerbench.kernels.power.feature_map import feature_map, tspow_dim
from powerbench.kernels.power.query_state import query_state
from powerbench.kernels.power.scan import scan
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.tiling import check_sizes, chunks
from powerbench.kernels.power.update_state import update_state

LOG_GATE_MIN = -100.0  # exp of it is 0 beside 1 in fp32; -inf, a hard reset, would turn differences of sums into nan
ONES_WIDTH = 16  # the narrowest value a product takes

_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class _Tables(NamedTuple):
    """Constants of one feature map on one device (see `_tables`)."""

    weight: Tensor  # fp32 [D]: multiplicity of the rows of S
    z_weight: Tensor | None  # fp32 [D' * d]: multiplicity of the entries of Z, 0 where z has none; p = 1 needs none
    z_index: Tensor  # int64 [D]: where the rows of z stand among the entries of Z


@lru_cache(maxsize=32)
def _tables(d: int, p: int, d_tile: int, device: torch.device) -> _Tables:
    """Copied to the device once; a CUDA graph must not be captured before its first call."""
    fm = feature_map(d, p, d_tile)
    multiplicity = torch.from_numpy(fm.multiplicity).float().to(device)
    if p == 1:
        return _Tables(multiplicity, None, torch.arange(d, device=device) * ONES_WIDTH)
    prefixes = fm.indices[:, :-1]
    fibre = np.concatenate([[0], np.cumsum((prefixes[1:] != prefixes[:-1]).any(1))])
    index = torch.from_numpy(fibre * d + fm.indices[:, -1]).to(device)
    z_weight = torch.zeros(tspow_dim(d, p - 1, d_tile) * d, device=device).index_copy_(0, index, multiplicity)
    return _Tables(multiplicity, z_weight, index)


def operand_dtypes(dtype: torch.dtype) -> tuple[tl.dtype, tl.dtype, torch.dtype]:
    """Dtype of q k^T's operands, of all other products' operands, and the latter as torch names it."""
    if dtype is torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32, tl.float32, torch.float32
    return _DTYPES[dtype], tl.bfloat16, torch.bfloat16


def local_gates(log_g: Tensor, chunk: int, count: int) -> Tensor:
    """a fp32 [B, Hk, N, C]: cumulative log gates from each chunk's start; past the end they stay what they were."""
    gates = log_g.float().clamp(min=LOG_GATE_MIN).transpose(1, 2).contiguous()
    gates = torch.nn.functional.pad(gates, (0, count * chunk - gates.shape[-1]))
    return gates.view(*gates.shape[:2], count, chunk).cumsum(-1)


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.no_grad()
def triton_forward(
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
    """y [B, T, H, e] in q's dtype, and the state at the end of the sequence (float32) if asked.

    q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in one of bf16, fp16, fp32, any strides (copied unless the last
    dimension is contiguous); log_g [B, T, Hk] or None; chunk_size at least 1, above T meaning T. Not differentiable.
    Deterministic: no atomics. Never waits for the device. Raises ValueError for sizes, degrees and dtypes that the
    kernels lack, and for a normalised odd degree.
    """
    d, e, T = q.shape[-1], v.shape[-1], q.shape[1]
    check_sizes(p, d, e)
    if q.dtype not in _DTYPES:
        raise ValueError(f"q is {q.dtype}; the Triton backend has {', '.join(map(str, _DTYPES))}")
    if normalize and p % 2:
        raise ValueError(f"normalize is True with p = {p}; the sum of odd powers may vanish: only even p is normalised")
    feature_map(d, p, d_tile)  # raises for a d_tile that does not divide d
    C, N = chunks(T, chunk_size)
    first = 1 if initial_state is None else 0  # the first chunk with a past
    scores, operand, storage = operand_dtypes(q.dtype)
    q, k, v = (_contiguous_rows(x) for x in (q, k, v))
    with torch.cuda.device_of(q):
        a = None if log_g is None else local_gates(log_g, C, N)
        y = q.new_empty(*q.shape[:-1], e)
        num, den = attention(
            q, k, v, a, y,
            p=p, chunk_size=C, scale=scale, normalize=normalize, first=first, scores=scores, operand=operand,
        )  # fmt: skip
        if first == N and not return_state:
            return y, None
        tables = _tables(d, p, d_tile, q.device)
        carry = partial(
            _carry, k, a, count=N, d_tile=d_tile, weight_by=scale**p, operand=operand, final=return_state, chunk_size=C
        )
        incoming = storage if first < N else None
        s0 = None if initial_state is None else initial_state.s
        r, s = carry(v, s0, tables.weight, degree=p, incoming=incoming)
        rz = z = None
        if normalize or return_state:
            values, degree = (k, p - 1) if p > 1 else (k.new_ones(ONES_WIDTH).expand(*k.shape[:-1], ONES_WIDTH), 1)
            z0 = None if initial_state is None else _entries_of(initial_state.z, tables, tspow_dim(d, degree, d_tile))
            rz, z = carry(values, z0, tables.z_weight, degree=degree, incoming=incoming if normalize else None)
        if first < N:
            query_state(
                q, a, r, rz, num=num, den=den, y=y, p=p, chunk_size=C, d_tile=d_tile, first=first, operand=operand
            )
    if not return_state:
        return y, None
    return y, PowerState(s, z.flatten(-2).index_select(-1, tables.z_index))


def _carry(
    k: Tensor,
    a: Tensor | None,
    values: Tensor,
    initial: Tensor | None,
    weight: Tensor | None,
    *,
    count: int,
    chunk_size: int,
    degree: int,
    d_tile: int,
    weight_by: float,
    operand: tl.dtype,
    incoming: torch.dtype | None,
    final: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """update_state, then scan, of the state of `degree` of k against values: what comes into chunks, and the end."""
    n_states = count if final else count - 1
    made = None
    if n_states:
        made = update_state(
            k, values, a, p=degree, chunk_size=chunk_size, n_states=n_states, d_tile=d_tile, operand=operand
        )
    return scan(made, a, initial, weight, weight_by=weight_by, n_chunks=count, incoming=incoming, final=final)


def _entries_of(z: Tensor, tables: _Tables, rows: int) -> Tensor:
    """Z fp32 [B, Hk, rows, width] whose kept entries are the rows of z [B, Hk, D]."""
    width = ONES_WIDTH if tables.z_weight is None else tables.z_weight.numel() // rows
    entries = z.new_zeros(*z.shape[:2], rows * width, dtype=torch.float32)
    return entries.index_copy_(-1, tables.z_index, z.float()).view(*z.shape[:2], rows, width)
