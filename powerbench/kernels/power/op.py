"""The operator `power_attention`: checks its arguments, fills in what is left open, and hands over to a backend."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from powerbench.kernels.power import tables, tiling
from powerbench.kernels.power.arguments import (
    MAX_DEGREE,
    as_autocast,
    check_kind,
    check_options,
    check_state,
    check_tensors,
)
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.dynamo import constant_result
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.kernels.power.torch_backend import needs_grad, torch_forward

__all__ = ["MAX_DEGREE", "Backend", "PowerState", "normalized_by_default", "power_attention", "use_triton"]

Backend = Literal["auto", "triton", "torch"]


def power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    p: int = 2,
    chunk_size: int | None = None,
    d_tile: int | None = None,
    scale: float | None = None,
    normalize: bool | None = None,
    initial_state: PowerState | None = None,
    return_state: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, PowerState]:
    """Causal power attention (arXiv 2507.04239), in time and memory linear in the length of the context.

        y_i = sum_{j <= i} A_ij v_j / sum_{j <= i} A_ij,    A_ij = exp(G_i - G_j) (scale <q_i, k_j>)^p

    with G = cumsum over time of log_g, and the denominator only when `normalize`.

    Args:
        q: [B, T, H, d], any strides, in bfloat16, float16, float32 or float64.
        k: [B, T, Hk, d] in q's dtype; H is a multiple of Hk, and query head h reads key/value head h // (H / Hk).
        v: [B, T, Hk, e] in q's dtype; e need not be d.
        log_g: [B, T, Hk] in float32 (float64 allowed with float64 q): log of the gates, at most 0 (not checked, it
            would wait for the device); -inf is a hard reset. None: no gates.
        p: degree, 1 to 4. p = 1 without normalisation is (gated) linear attention.
        chunk_size: tokens that attend to each other directly; those before them are met through the state. It changes
            the speed, and nothing else but rounding. None: chosen for the problem (`choose`), and on a GPU for whether
            gradients are wanted: where an input requires grad and grad mode is on, there are several chunks from a
            shorter context on. So y may differ by its rounding from that of a call under torch.no_grad, the first
            run of a reentrant checkpoint among them.
        d_tile: divisor of d that sets the tiling of the state, hence its dimension D = tspow_dim(d, p, d_tile) and the
            order of its rows. None: chosen; a call that continues from a state must use that state's d_tile.
        scale: of <q, k>, taken before the power p also where it cancels. None: 1 / sqrt(d). q and k may be large as
            long as (scale <q, k>)^p is in the range of float32 (of float64 for float64), and, with more than one chunk
            or a state, |q|^p, |k|^p and the state, which hold no scale. Gradients of normalised outputs through states
            of the Triton backend also need 1 / sum_j <q, k_j>^p: <q, k> up to 1e18 at p = 2, 1e9 at p = 4.
        normalize: None: on for even p, off for odd p; odd p cannot be normalised, as its weights can sum to zero. A row
            whose weights sum to zero (padding with zeros, a query orthogonal to every key, powers that underflow) is
            0 and has no gradient. Zero is what lies below 2^-126 (in float64 2^-1022), after `scale`.
        initial_state: what came before, as returned by an earlier call with the same p and d_tile.
        return_state: also return the state after the last token.
        backend: "torch" (any device), "triton" (CUDA), or "auto": Triton where it can serve the call (CUDA, head
            dimensions it has kernels for, not float64), else PyTorch. Both are differentiable.

    Returns:
        y [B, T, H, e] in q's dtype; with `return_state`, (y, PowerState). Differentiable in q, k, v, log_g and
        initial_state, through y and through the state; by the Triton backend once, by PyTorch's any number of times.

    Memory. Where an input requires grad, inputs, outputs and the state that comes into each chunk are kept for the
    backward pass: a state is about D (e + p) elements a key/value head, in bfloat16 (float32 for float32 inputs, and
    always in the torch backend). At p = 2, d = e = 64, d_tile = 16 and chunks of 2048 that is 164 bytes a token and
    head in bfloat16, where q, k, v and y have 512. The Triton backend also keeps the denominators, 4 bytes a row.
    torch.utils.checkpoint keeps the inputs alone. Without gradients nothing is kept.

    Autocast. Under torch.autocast q, k, v are cast to its dtype, and log_g to float32; float64 is left alone, as
    autocast does everywhere. The operator itself runs with autocast off.

    The Triton backend never waits for the device, gives the same bits every time, and is one operator to torch.compile.
    CUDA graphs can capture it, forward and backward, after one call of the same sizes outside: that call compiles the
    kernels and copies small tables to the device.

    Accuracy of the torch backend: relative error (Frobenius norm) against float64, standard normal inputs, T = 4096,
    p = 1 to 4, at most 3.6e-3 for bfloat16, 2.1e-4 for float16 (the rounding of y), 4e-7 for float32. In float32 that
    is measured at d = 64, 64, 16 and 32, 16, chunks left open, under slow gates, log_g = logsigmoid(randn) (worst row
    2.6e-6), and slow gates with resets of -20 or -inf at a tenth of the tokens; dv 5e-7, dlog_g 1.1e-6. Gates are
    summed in float64, so that the error does not grow with the sum. Where a normalised row sees little but its own
    value, as after a reset, its dq and dk are differences of nearly equal numbers: 6e-6. States are summed in float32;
    for bfloat16 what a chunk adds to the state, and the state as queries read it, are rounded to bfloat16: without a
    state the error is 2.3e-3 to 3.2e-3.

    Accuracy of the Triton backend, on an H200, against float64: in bfloat16 y 2.2e-3 to 2.8e-3 over p = 1 to 4, dq, dk
    and dv 2.5e-3 to 5.6e-3, dlog_g 4e-3 to 1.4e-2 with slow gates and chunks up to 4096; in float32 about 1e-7 to 1e-6.
    Gates are summed in float64; the Hopper kernels (bfloat16) read the sums in float32, whose rounding is that of a
    weight: 2e-3 where a chunk's gates sum to -50,000, 0.1 at -3,000,000 (30,000 resets of -inf in one chunk). dlog_g
    of 16-bit inputs sums over a chunk differences of terms that are rounded apart; known at both ends of the chunk, it
    is within `accuracy.dlog_g_bound`: 0.03 + 2.5 2^-9 sqrt(C (1 - g)), C tokens of a chunk, g the mean gate. States
    between the launches are bfloat16 for bfloat16 and float16 inputs, those that go out to the caller float32.

    Raises:
        ValueError: names the argument that is wrong, what it was and what is allowed.
    """
    q, k, v, log_g, cast = as_autocast(q, k, v, log_g)
    check_tensors(q, k, v, log_g)
    # Numbers to torch.compile, which leaves B, T and H open: these choose the kernels.
    d, e = operator.index(q.shape[-1]), operator.index(v.shape[-1])
    check_options(p, d, chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize)
    p, d_tile = operator.index(p), None if d_tile is None else operator.index(d_tile)
    chunk_size = int(chunk_size) if isinstance(chunk_size, np.integer) else chunk_size  # torch.compile leaves it open
    if initial_state is not None:
        check_kind(initial_state, "initial_state")
    chunk_size, d_tile = choose(
        p, d, e, q.shape[1], q.device.type, chunk_size, d_tile,
        gradients=needs_grad(q, k, v, log_g, initial_state),
        streaming=initial_state is not None or return_state,
    )  # fmt: skip
    if initial_state is not None:
        check_state(initial_state, q, v, tspow_dim(d, p, d_tile), "initial_state")
    forward = _triton_attention() if use_triton(backend, q, v, k, log_g, *(initial_state or ())) else torch_forward
    with torch.autocast(q.device.type, enabled=False) if cast else nullcontext(), tables.mode_of(q):
        y, state = forward(
            q, k, v, log_g,
            p=p,
            chunk_size=chunk_size,
            d_tile=d_tile,
            scale=d**-0.5 if scale is None else float(scale),
            normalize=normalized_by_default(p) if normalize is None else bool(normalize),
            initial_state=initial_state,
            return_state=return_state,
        )  # fmt: skip
    return y if state is None else (y, state)


def use_triton(backend: str, q: Tensor, v: Tensor, *others: Tensor | None) -> bool:
    """Which backend runs; ValueError when the one that was asked for cannot. `others`: what else is differentiable."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(get_args(Backend))}")
    if backend == "auto":
        sizes = q.shape[-1] in tiling.HEAD_DIMS and v.shape[-1] in tiling.HEAD_DIMS and q.dtype != torch.float64
        return q.is_cuda and sizes and _has_triton() and not (tables.transformed() or _has_tangents(q, v, *others))
    if backend == "triton" and not _has_triton():
        raise ValueError('backend is "triton", and triton is not installed (pip install powerbench[gpu])')
    if backend == "triton" and not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'backend is "triton" with tensors on {q.device}; it needs CUDA tensors, or TRITON_INTERPRET=1 set before '
            "triton is imported, to interpret its kernels"
        )
    if backend == "triton" and tables.transformed():
        raise ValueError(
            'backend is "triton" under a transform of torch.func; its kernels have no vmap, grad or jvp there: use '
            'backend="torch"'
        )
    if backend == "triton" and _has_tangents(q, v, *others):
        raise NotImplementedError(
            'backend is "triton" with tangents of forward mode; its kernels have no jvp: use backend="torch"'
        )
    return backend == "triton"


def _has_tangents(*tensors: Tensor | None) -> bool:
    if not tables.differentiated_forward():
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


@constant_result  # torch.compile cannot trace the search for a package, and need not
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton_attention() -> Callable[..., tuple[Tensor, PowerState | None]]:
    from powerbench.kernels.power.triton_op import triton_attention  # noqa: PLC0415  triton is optional

    return triton_attention
