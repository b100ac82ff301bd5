"""Power attention in Triton: the launches of a forward and of a backward call, composed.

With B, T, H, Hk, d, e, p as everywhere, C = min(chunk_size, T), N = ceil(T / C) chunks; `in` is the inputs' dtype and
`op` the operand dtype: bf16 for bf16 and fp16 inputs, fp32 for fp32. A state is flat: S [D, e], then where it is wanted
Z [D', d] (`StateSizes`). `first` is the first chunk with a past: 0 with an initial state, else 1. n = N - first states
come into chunks; m = N with return_state, else N - 1, states are made. `st` is op, but fp32 with return_state.

    gates              gated
        reads   log_g fp32 [B, T, Hk]
        writes  a fp32 [2, B, Hk, N, C], pairs that sum to a; if m > 0, w fp32 [B, Hk, N, C]
    update_state       m > 0
        reads   k, v of m chunks; w
        writes  S, Z st [B, Hk, m, elements]
    scan               m > 0 or an initial state
        reads   S, Z; the last a of each chunk; initial state fp32
        writes  R op [B, Hk, n, elements]; final state fp32 [B, Hk, elements]
    attend             always
        reads   q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in `in`; a; R
        writes  y [B, T, H, e] in `in`; for a backward pass den fp32 [B, T, H]

The denominator needs no product of its own width: phi_p(q) . z = q . (phi_{p-1}(q)^T Z), where Z [D', d] is a state of
degree p - 1 with k in the place of v; it costs about p / e of the numerator. Z is wanted when the output is normalised
or the state is returned. Odd p is never normalised; p = 1, which has no degree below it, sums k against ones [.., 16].

States are symmetric: rows that stand for the same multiset of indices are equal. States from outside are made so on
entry (`symmetric.py`), which changes no y.

Numerics. Products accumulate in fp32; the sums of chunks are rounded to `st`, the state that comes into a chunk to
`op`; scans and returned states are fp32. phi in bf16 is rounded twice for bf16 inputs: the factor of a fibre (p - 1
columns and the decay, multiplied in fp32), then its product with the columns. fp16 inputs take bf16 operands too,
because powers of fp16 leave its range at p >= 2 and sums over a long past do at p = 1: their range is then that of
fp32, their accuracy that of bf16 (relative 2^-9 an operand). But q k^T and dy v^T keep fp16, and v meets the weights of
the keys in two parts, so that dy . v_j - dy . y_i vanishes where y_i is v_j. No logarithms are needed: with |q|, |k|
up to 16 an element, d = 128 and p = 4, a weight is at most 2^60, and 2^20 of them leave half of the range of fp32 and
bf16. Under Triton's interpreter every product is in fp32. Sums of gates are fp64, kept as pairs of fp32 (`gates`).
Gates below LOG_GATE_MIN count as LOG_GATE_MIN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from powerbench.kernels.power.attend import attend
from powerbench.kernels.power.feature_map import feature_map
from powerbench.kernels.power.gates import chunk_gates
from powerbench.kernels.power.scan import scan
from powerbench.kernels.power.sizes import state_sizes
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.symmetric import flatten_state, unflatten_state
from powerbench.kernels.power.tiling import check_sizes, chunks
from powerbench.kernels.power.update_state import update_state

Launcher = Callable[..., Any]  # as `call`: name of the launch in the ledger, its function, that function's arguments

_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def call(name: str, function: Callable[..., Any], *args: object, **options: object) -> Any:
    """The launch called `name` in the ledger."""
    return function(*args, **options)


def operand_dtypes(dtype: torch.dtype) -> tuple[tl.dtype, tl.dtype, torch.dtype]:
    """Dtype of q k^T's operands, of all other products' operands, and the latter as torch names it."""
    if dtype is torch.float32 or triton.knobs.runtime.interpret:
        return tl.float32, tl.float32, torch.float32
    return _DTYPES[dtype], tl.bfloat16, torch.bfloat16


def contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class Forward(NamedTuple):
    """What a forward call returns, and what its backward pass reads."""

    y: Tensor  # [B, T, H, e] in q's dtype
    state: PowerState | None  # float32
    den: Tensor | None  # float32 [B, T, H], without scale; only where it is saved and the output normalised
    r: Tensor | None  # op [B, Hk, N - first, elements]: the states that come into the chunks from `first` on
    a: Tensor | None  # float32 [2, B, Hk, N, C]


@torch.no_grad()
def forward_launches(
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
    save: bool,
    launch: Launcher = call,
) -> Forward:
    """One forward call: y, the state at the end of the sequence if asked, and what a backward pass reads.

    q [B, T, H, d], k [B, T, Hk, d], v [B, T, Hk, e] in one of bf16, fp16, fp32, any strides (copied unless the last
    dimension is contiguous); log_g [B, T, Hk] or None; chunk_size at least 1, above T meaning T. den only if `save`.
    Deterministic: no atomics. Never waits for the device. `launch` makes each launch; it gets the name in the ledger
    first. Raises ValueError for sizes, degrees and dtypes that the kernels lack, and for a normalised odd degree.
    """
    d, e, T, Hk = q.shape[-1], v.shape[-1], q.shape[1], k.shape[2]
    check_sizes(p, d, e)
    if q.dtype not in _DTYPES:
        raise ValueError(f"q is {q.dtype}; the Triton backend has {', '.join(map(str, _DTYPES))}")
    if normalize and p % 2:
        raise ValueError(f"normalize is True with p = {p}; the sum of odd powers may vanish: only even p is normalised")
    feature_map(d, p, d_tile)  # raises for a d_tile that does not divide d
    C, N = chunks(T, chunk_size)
    first = 1 if initial_state is None else 0  # the first chunk with a past
    scores, operand, storage = operand_dtypes(q.dtype)
    sizes = state_sizes(p, d, e, d_tile, with_z=normalize or return_state)
    n_states = N if return_state else N - 1
    q, k, v = (contiguous_rows(x) for x in (q, k, v))
    with torch.cuda.device_of(q):
        a = w = None
        if log_g is not None:
            a, w = launch("gates", chunk_gates, log_g, C, weights=n_states > 0)
        made = r = last = None
        if n_states:
            made = launch(
                "update_state", update_state, k, v, w, w,
                p=p, chunk_size=C, kv_heads=Hk, first=0, n_states=n_states, d_tile=d_tile, with_z=sizes.z_rows > 0,
                operand=operand, storage=torch.float32 if return_state else storage,
            )  # fmt: skip
        initial = None if initial_state is None else flatten_state(initial_state, d, p, d_tile, sizes)
        if n_states or first == 0:
            incoming = storage if first < N else None
            r, last, _ = launch("scan", scan, made, a, initial, n_chunks=N, incoming=incoming, final=return_state)
        y, den = launch(
            "attend", attend, q, k, v, a, r, sizes,
            p=p, chunk_size=C, d_tile=d_tile, scale=scale, normalize=normalize, first=first, save_den=save,
            scores=scores, operand=operand,
        )  # fmt: skip
    return Forward(y, None if last is None else unflatten_state(last, d, p, d_tile, sizes), den, r, a)
