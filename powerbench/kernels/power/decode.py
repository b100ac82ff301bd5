"""Decoding: `power_attention_step`, the recurrent form of the operator, a few tokens at a time."""

from __future__ import annotations

import operator
from contextlib import nullcontext

import torch
from torch import Tensor

from powerbench.kernels.power import tables
from powerbench.kernels.power.arguments import (
    as_autocast,
    check_kind,
    check_options,
    check_state,
    check_tensors,
    refuse,
)
from powerbench.kernels.power.choose import choose_d_tile
from powerbench.kernels.power.feature_map import tspow_dim
from powerbench.kernels.power.gate_sums import sum_dtype
from powerbench.kernels.power.op import Backend, use_triton
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.kernels.power.torch_decode import fold, torch_step

__all__ = ["MAX_STEP_TOKENS", "LazyState", "PowerState", "fold_lazy_state", "power_attention_step"]

MAX_STEP_TOKENS = 16  # a few: for more, `power_attention` with an initial state is the faster


def power_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    state: PowerState | LazyState | None = None,
    *,
    p: int = 2,
    d_tile: int | None = None,
    scale: float | None = None,
    normalize: bool | None = None,
    in_place: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, PowerState | LazyState]:
    """The next token of each sequence, or the next few: what `power_attention` computes, in time that does not grow.

        S_i = g_i S_{i-1} + phi(k_i) v_i^T,    z_i = g_i z_{i-1} + phi(k_i),    y_i = phi(q_i)^T S_i / phi(q_i)^T z_i

    `power_attention(..., return_state=True)` and then steps give what one call over the whole sequence gives, to the
    rounding of the dtype, wherever the sequence is split. Sequences of a batch may be of any age: each has its state.

    Args:
        q: [B, T, H, d], T from 1 to 16, in bfloat16, float16, float32 or float64.
        k, v, log_g: [B, T, Hk, d], [B, T, Hk, e] and [B, T, Hk] or None, as `power_attention` takes them.
        state: what came before. A PowerState, as `power_attention` and this function return it, is read and written for
            every call; its s may also be bfloat16 where q is bfloat16 or float16, for half of the bytes. A LazyState is
            read for every call and written only when its window is full. None: nothing came before, and the answer is
            a PowerState in float32 (float64 for float64).
        p, d_tile, scale, normalize: as in `power_attention`; p and d_tile have to be those that the state was made with
            (d_tile None is the same choice there and here).
        in_place: move `state` itself on, and return it. It must not share memory between sequences or heads, and the
            last two dimensions of its s must be contiguous. Else the state is copied first, and stays as it was.
        backend: as in `power_attention`. The Triton backend never waits for the device, allocates by sizes alone, gives
            the same bits every time, and can be captured by a CUDA graph with `in_place` after one call outside.

    Returns:
        y [B, T, H, e] in q's dtype, and the state after the last token, of the kind that came in.

    Not differentiable: training is `power_attention`'s.

    Accuracy. With a float32 state all sums are float32. A bfloat16 state is rounded whenever it is written, so that a
    plain one loses of each token what is below 2^-9 of the sum it is added to; a lazy one is rounded once a window.
    Relative error of y over 1000 steps in bfloat16, slow gates, p = 2, d = 16, against float64: with a float32 state
    1.7e-3, with a bfloat16 state 1.7e-2 plain and 2.7e-3 with a window of 64.

    Raises:
        ValueError: names the argument that is wrong, what it was and what is allowed.
    """
    q, k, v, log_g, cast = as_autocast(q, k, v, log_g)
    check_tensors(q, k, v, log_g)
    d = q.shape[-1]
    check_options(p, d, chunk_size=None, d_tile=d_tile, scale=scale, normalize=normalize)
    p, d_tile = operator.index(p), None if d_tile is None else operator.index(d_tile)
    q.shape[1] <= MAX_STEP_TOKENS or refuse(
        f"q has {q.shape[1]} tokens; a step takes 1 to {MAX_STEP_TOKENS}: "
        "for more, call power_attention with initial_state"
    )
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, log_g)):
        refuse("an input requires grad, and a step is not differentiable; call it under torch.no_grad()")
    not tables.transformed() or refuse(
        "a step was called under a transform of torch.func (vmap, grad, jvp), and can be neither mapped nor "
        "differentiated; its batch takes many sequences, and power_attention with initial_state takes transforms"
    )
    d_tile = d_tile or choose_d_tile(p, d, q.device.type)
    dim = tspow_dim(d, p, d_tile)
    if state is None:
        state = _zero_state(q, v, dim)
    else:
        _check(state, q, v, dim)
        _check_constant(state)
        state = _in_place(state) if in_place else _copied(state)
    step = torch_step
    if use_triton(backend, q, v):
        from powerbench.kernels.power.triton_step_op import triton_step  # noqa: PLC0415  triton is optional

        step = triton_step
    with torch.autocast(q.device.type, enabled=False) if cast else nullcontext(), tables.mode_of(q):
        y = step(
            q, k, v, log_g, state,
            p=p,
            d_tile=d_tile,
            scale=d**-0.5 if scale is None else float(scale),
            normalize=normalized_by_default(p) if normalize is None else bool(normalize),
        )  # fmt: skip
    return y, state


def fold_lazy_state(state: LazyState, *, p: int = 2, d_tile: int | None = None) -> PowerState:
    """The PowerState of a lazy one, for `power_attention` or to be kept: the windows' tokens are moved into a copy.

    p and d_tile as in `power_attention_step`. Raises ValueError as that does.
    """
    isinstance(state, LazyState) or refuse(f"state is {type(state).__name__}; it must be a LazyState")
    _check_window(state)
    d = state.k.shape[-1]
    check_options(p, d, chunk_size=None, d_tile=d_tile, scale=None, normalize=None)
    p = operator.index(p)
    d_tile = choose_d_tile(p, d, state.k.device.type) if d_tile is None else operator.index(d_tile)
    _check(state, state.k, state.v, tspow_dim(d, p, d_tile))
    _check_constant(state)
    copy = _copied(state)
    fold(copy, p=p, d_tile=d_tile)
    return copy.state


def _zero_state(q: Tensor, v: Tensor, dim: int) -> PowerState:
    B, _, heads, e = v.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    return PowerState(v.new_zeros(B, heads, dim, e, dtype=dtype), v.new_zeros(B, heads, dim, dtype=dtype))


def _check_window(state: LazyState) -> None:
    """That its fields are what can be asked for shapes."""
    check_kind(state.state, "state.state")
    for name in ("k", "v", "a", "count"):
        x = getattr(state, name)
        isinstance(x, Tensor) or refuse(f"state.{name} is {type(x).__name__}; it must be a tensor")
    for name in ("k", "v"):
        x = getattr(state, name)
        x.ndim == 4 or refuse(f"state.{name} is {list(x.shape)}; it must be [batch, window, kv_heads, dim]")


def _check_constant(state: PowerState | LazyState) -> None:
    """That no gradient is asked for through the state."""
    fields = [*state.state, *state[1:]] if isinstance(state, LazyState) else state
    if torch.is_grad_enabled() and any(x.requires_grad for x in fields):
        refuse("the state requires grad, and a step is not differentiable; detach it, or call under torch.no_grad()")


def _check(state: PowerState | LazyState, q: Tensor, v: Tensor, dim: int) -> None:
    if not isinstance(state, LazyState):
        check_state(state, q, v, dim, "state", low=True)
        return
    _check_window(state)
    check_state(state.state, q, v, dim, "state.state", low=True)
    B, _, heads, e = v.shape
    for name, shape, dtype in (
        ("k", (B, state.window, heads, q.shape[-1]), q.dtype),
        ("v", (B, state.window, heads, e), q.dtype),
        ("a", (B, state.window, heads), sum_dtype(q.device)),
        ("count", (B,), torch.int32),
    ):
        x = getattr(state, name)
        fits = x.shape == shape and x.dtype == dtype and x.device == q.device and x.is_contiguous()
        fits or refuse(
            f"state.{name} is {list(x.shape)} in {x.dtype} on {x.device}; it must be {list(shape)} in {dtype} on "
            f"{q.device}, contiguous, as LazyState.begin makes it"
        )


def _copied(state: PowerState | LazyState) -> PowerState | LazyState:
    if isinstance(state, PowerState):
        return PowerState(*(x.clone(memory_format=torch.contiguous_format) for x in state))
    return LazyState(_copied(state.state), *(x.clone(memory_format=torch.contiguous_format) for x in state[1:]))


def _in_place(state: PowerState | LazyState) -> PowerState | LazyState:
    """The state, if what is written to it as one batch of heads reaches its memory."""
    for name, x in zip("sz", state if isinstance(state, PowerState) else state.state, strict=True):
        B, heads = x.shape[:2]
        apart = x.stride(1) if heads > 1 else x.stride(0)
        even = B == 1 or heads == 1 or x.stride(0) == heads * apart  # flatten(0, 1) is a view, not a copy
        distinct = B * heads == 1 or apart >= x[0, 0].numel()
        (even and distinct and x[0, 0].is_contiguous()) or refuse(
            f"{name} of the state has strides {x.stride()}; in_place needs heads that are contiguous, evenly spaced"
        )
    return state
