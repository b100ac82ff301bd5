"""Decoding in plain PyTorch: one step of the recurrent form, on a plain or a lazy state, for every device and dtype.

A step has three parts, whatever the state: the new tokens attend to the window (a plain state has none) and to each
other; phi(q) reads the state; and where the window is full, or there is none, its tokens move the state on. With a_i
the log gates summed from the window's start,

    y_i = (exp(a_i) phi(q_i)^T S + sum_{j <= i} exp(a_i - a_j) <q_i, k_j>^p v_j) / the same with 1 for v_j and z for S
    S <- exp(a_n) S + sum_j exp(a_n - a_j) phi(k_j) v_j^T      over the tokens 1 .. n of the window

Inside, batch and key/value heads lead: q [B, Hk, G, T, d], k [B, Hk, N, d] with N = window + T slots. All is in float32
(float64 for float64), except that gates are summed in float64 (`gate_sums.sum_dtype`), and that a state kept in
bfloat16 meets phi in bfloat16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from powerbench.kernels.power import tables
from powerbench.kernels.power.gate_sums import clamped, sum_dtype
from powerbench.kernels.power.scaling import split_scale
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.torch_backend import expand, multiplicity, normalized, power


@torch.no_grad()
def torch_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: PowerState | LazyState,
    *,
    p: int,
    d_tile: int,
    scale: float,
    normalize: bool,
) -> Tensor:
    """y [B, T, H, e] in q's dtype; `state` is moved on in place. Arguments as `power_attention_step` has checked them.

    With a lazy state it looks at the counts on the host, to touch only states that are due: on a GPU it waits. A tracer
    cannot look: what it makes of the step folds copies of all states, and keeps those that are due.
    """
    sums = state if isinstance(state, PowerState) else state.state
    slots = _slots(k, v, log_g, state)
    factor, rest = split_scale(scale, p)
    queries = factor * q.to(slots.k.dtype).transpose(1, 2).unflatten(1, (k.shape[2], -1))
    y = _read(queries, slots, sums, p=p, d_tile=d_tile, scale=rest, normalize=normalize)
    if isinstance(state, PowerState):
        _fold(sums.s.flatten(0, 1), sums.z.flatten(0, 1), slots.merged(), p=p, d_tile=d_tile)
    else:
        T = k.shape[1]
        due = state.count + T >= state.window
        if torch.compiler.is_compiling() or tables.traced():
            _fold_due(sums, slots, due, p=p, d_tile=d_tile)
        else:
            for b in due.nonzero().flatten().tolist():
                _fold(sums.s[b], sums.z[b], slots.of(b), p=p, d_tile=d_tile)
        _append(state, k, v, slots.a[:, :, -T:].transpose(1, 2), ~due)
        state.count.copy_(torch.where(due, 0, state.count + T))
    return y.to(q.dtype).flatten(1, 2).transpose(1, 2)


@torch.no_grad()
def fold(lazy: LazyState, *, p: int, d_tile: int) -> None:
    """Move what is in the windows into the state, in place, whether or not they are full."""
    slots = _window(lazy)
    for b in range(lazy.k.shape[0]):
        _fold(lazy.state.s[b], lazy.state.z[b], slots.of(b), p=p, d_tile=d_tile)
    lazy.count.zero_()


@torch.no_grad()
def sum_up(
    k: Tensor, v: Tensor, log_g: Tensor | None, s: Tensor, z: Tensor, *, p: int, d_tile: int, tokens: int
) -> None:
    """The state of one whole sequence, without its outputs, into s [Hk, D, e] and z [Hk, D]; `tokens` at once.

    k [n, Hk, d], v [n, Hk, e], log_g [n, Hk] or None; n may be 0.
    """
    s.zero_()
    z.zero_()
    for first in range(0, len(k), tokens):
        chunk = (None if x is None else x[None, first : first + tokens] for x in (k, v, log_g))
        _fold(s, z, _slots(*chunk, None).of(0), p=p, d_tile=d_tile)


@torch.no_grad()
def fill_window(lazy: LazyState, b: int, k: Tensor, v: Tensor, log_g: Tensor | None) -> None:
    """Put exactly these n tokens into the window of sequence b: k [n, Hk, d], v [n, Hk, e], log_g [n, Hk] or None."""
    n = len(k)
    lazy.count[b] = n
    if n:
        lazy.k[b, :n], lazy.v[b, :n] = k, v
        lazy.a[b, :n] = _slots(k[None], v[None], None if log_g is None else log_g[None], None).a[0].T


class _Slots(NamedTuple):
    """Keys, values and cumulated log gates of a window and of the tokens after it; `taken` where a slot holds one."""

    k: Tensor  # [B, Hk, N, d]
    v: Tensor  # [B, Hk, N, e]
    a: Tensor  # [B, Hk, N] in `sum_dtype`
    end: Tensor  # [B, Hk]: a of the last token
    taken: Tensor  # bool [B, 1, N]

    def of(self, b: int) -> _Slots:
        """One sequence, whose heads lead."""
        return _Slots(*(x[b] for x in self))

    def merged(self) -> _Slots:
        """Batch and heads as one dimension."""
        B, heads = self.end.shape
        return _Slots(*(x.expand(B, heads, *x.shape[2:]).flatten(0, 1) for x in self))


def _window(lazy: LazyState) -> _Slots:
    """The slots of the window alone."""
    dtype = lazy.state.z.dtype
    taken = torch.arange(lazy.window, device=lazy.k.device) < lazy.count[:, None]
    last = (lazy.count - 1).clamp(min=0).long()[:, None, None].expand(-1, 1, lazy.a.shape[2])
    end = torch.where(lazy.count[:, None] > 0, lazy.a.gather(1, last)[:, 0], 0.0)
    # what is in a slot that holds nothing may not even be a number
    k, v, a = (torch.where(taken.unflatten(1, (-1, *[1] * (x.ndim - 2))), x, 0.0).transpose(1, 2)
               for x in (lazy.k.to(dtype), lazy.v.to(dtype), lazy.a))  # fmt: skip
    return _Slots(k, v, a, end, taken[:, None])


def _slots(k: Tensor, v: Tensor, log_g: Tensor | None, state: PowerState | LazyState | None) -> _Slots:
    """The window's slots, then the new tokens."""
    wide = torch.promote_types(k.dtype, torch.float32)
    new_k, new_v = k.to(wide).transpose(1, 2), v.to(wide).transpose(1, 2)
    if log_g is None:
        a = new_k.new_zeros(new_k.shape[:3], dtype=sum_dtype(k.device))
    else:
        a = clamped(log_g, wide).transpose(1, 2).cumsum(-1, dtype=sum_dtype(k.device))
    taken = torch.ones(len(k), 1, k.shape[1], dtype=torch.bool, device=k.device)
    if not isinstance(state, LazyState):
        return _Slots(new_k, new_v, a, a[..., -1], taken)
    old = _window(state)
    a = old.end[..., None] + a
    new = (new_k, new_v, a)
    both = (torch.cat([x, y], dim=2) for x, y in zip(old[:3], new, strict=True))
    return _Slots(*both, a[..., -1], torch.cat([old.taken, taken], dim=2))


def _read(q: Tensor, slots: _Slots, sums: PowerState, *, p: int, d_tile: int, scale: float, normalize: bool) -> Tensor:
    """y [B, Hk, G, T, e]: the queries are the last T slots."""
    T, N = q.shape[3], slots.k.shape[2]
    visible = slots.taken[:, :, None] & torch.ones(T, N, dtype=torch.bool, device=q.device).tril(N - T)
    a = slots.a[:, :, N - T :]
    # masked before the exponential, which would overflow for keys after the query
    decay = (a[..., None] - slots.a[:, :, None]).to(q.dtype).masked_fill(~visible, -math.inf).exp()
    weights = power(q.flatten(2, 3) @ slots.k.mT, p).unflatten(2, q.shape[2:4]) * decay[:, :, None]
    phi = expand(q.flatten(2, 3).mT.contiguous(), p, d_tile)
    phi = phi * multiplicity(q.shape[-1], p, d_tile, phi)
    past = (sums.s.mT @ phi.to(sums.s.dtype)).mT.to(q.dtype).unflatten(2, q.shape[2:4])
    since = a.exp().to(q.dtype)[:, :, None, :, None]
    out = (weights.flatten(2, 3) @ slots.v).unflatten(2, q.shape[2:4]) + since * past
    if not normalize:
        return out * scale**p
    mass = (sums.z[:, :, None] @ phi).unflatten(-1, q.shape[2:4])[:, :, 0, ..., None]
    return normalized(out, weights.sum(-1, keepdim=True) + since * mass)


def _fold(s: Tensor, z: Tensor, slots: _Slots, *, p: int, d_tile: int) -> None:
    """Move all taken slots into s [n, D, e] and z [n, D], in place; the slots' batch and heads are one dimension n."""
    decay = (slots.end[:, None] - slots.a).to(slots.k.dtype).masked_fill(~slots.taken, -math.inf).exp()
    phi = expand(slots.k.mT.contiguous(), p, d_tile)
    whole = slots.end.exp().to(slots.k.dtype)
    values = slots.v * decay[..., None]
    if s.dtype == phi.dtype:
        s.mul_(whole[:, None, None]).baddbmm_(phi, values)
    else:  # summed in float32, rounded once
        s.copy_((s.to(phi.dtype) * whole[:, None, None]).baddbmm_(phi, values))
    z.mul_(whole[:, None]).add_((phi @ decay[..., None])[..., 0])


def _fold_due(sums: PowerState, slots: _Slots, due: Tensor, *, p: int, d_tile: int) -> None:
    """`_fold` of the sequences in `due`, bool [B], without a look at it."""
    s, z = sums.s.clone(), sums.z.clone()
    _fold(s.flatten(0, 1), z.flatten(0, 1), slots.merged(), p=p, d_tile=d_tile)
    sums.s.copy_(torch.where(due[:, None, None, None], s, sums.s))
    sums.z.copy_(torch.where(due[:, None, None], z, sums.z))


def _append(lazy: LazyState, k: Tensor, v: Tensor, a: Tensor, stays: Tensor) -> None:
    """Put the new tokens into the windows of the sequences that are not folded; others get back what they have."""
    slots = lazy.count[:, None].long() + torch.arange(k.shape[1], device=k.device)
    slots = slots.clamp(max=lazy.window - 1)  # of a sequence that is folded, these may lie behind the window
    for window, new in zip((lazy.k, lazy.v, lazy.a), (k, v, a), strict=True):
        beyond = (1,) * (window.ndim - 2)
        at = slots.unflatten(1, (-1, *beyond)).expand_as(new)
        there = window.gather(1, at)
        window.scatter_(1, at, torch.where(stays.unflatten(0, (-1, 1, *beyond)), new.to(window.dtype), there))
