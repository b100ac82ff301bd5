"""The launches of a backward call, composed. Names as in `triton_backend`, whose forward call saves y, den, R and a.

With G_n the gradient of the state that comes into chunk n through the queries of that chunk alone, and E_n the gradient
of the state that leaves chunk n, everything after it included; n = N - first, m = N with a gradient of the final state,
else N - 1. Here Z is wanted when the output is normalised or the final state has a gradient.

    query_gradient     always
        reads   dy, y, q, k, v, den, a, R
        writes  dq; if normalised, delta fp32 [B, T, H]; if n > 0, w and z_w fp32 [B, H, N, C]; if gated, q . dq fp32
                [B, T, H]
    state_gradient     n > 0: update_state with q and dy
        reads   q, dy of n chunks; w, z_w
        writes  the gradients G of S, Z: st [B, Hk, n, elements], st = op, but fp32 with an initial state
    scan_gradient      m > 0 or an initial state: scan in reverse
        reads   G; the last a of each chunk; the final state's gradient fp32; gated, R for the inner products <E, R>
        writes  E op [B, Hk, m, elements]; the initial state's gradient fp32 [B, Hk, elements]
    key_value_gradient always
        reads   dy, q, k, v, den, delta, a, E
        writes  dk, dv; if gated, k . dk fp32 [B, T, Hk]
    gate_gradient      gated
        reads   q . dq, k . dk, log_g; the inner products <E, R>
        writes  dlog_g [B, T, Hk]

R is kept from the forward call instead of computed again. Gradients of states are symmetric tensors too
(`symmetric.py`): rows of one multiset are equal and without multiplicity, so that the products that read a state read
its gradient as well. Their numerics are those of the forward call: E and R are rounded to op, ds and the weights
r s^p exp(a_i - a_j) before their products; sums over rows (delta, q . dq, k . dk) and over chunks and tokens are fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from powerbench.kernels.power.gates import gate_gradient
from powerbench.kernels.power.key_value_gradient import key_value_gradient
from powerbench.kernels.power.query_gradient import query_gradient
from powerbench.kernels.power.scan import scan
from powerbench.kernels.power.sizes import state_sizes
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.symmetric import flatten_gradient, inner_weights, unflatten_gradient
from powerbench.kernels.power.tiling import chunks
from powerbench.kernels.power.triton_backend import Launcher, call, contiguous_rows, operand_dtypes
from powerbench.kernels.power.update_state import update_state


@torch.no_grad()
def triton_backward(
    dy: Tensor,
    dstate: PowerState | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    y: Tensor,
    den: Tensor | None,
    r: Tensor | None,
    a: Tensor | None,
    final: PowerState | None,
    *,
    p: int,
    chunk_size: int,
    d_tile: int,
    scale: float,
    normalize: bool,
    initial: bool,
    return_state: bool,
    launch: Launcher = call,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, PowerState | None]:
    """dq, dk, dv, dlog_g and the gradient of the initial state, from those of y and of the final state.

    The first three in q's dtype, dlog_g in its own (None without gates), the last in float32 (None unless `initial`).
    dy and y [B, T, H, e]; q, k, v, log_g and the options as in `forward_launches`; den, r, a and the state `final` as
    that call made them, with `save`. dstate None: no gradient comes through the final state.
    Deterministic: no atomics. Never waits for the device. `launch` as in `forward_launches`.
    """
    d, e, T, Hk = q.shape[-1], v.shape[-1], q.shape[1], k.shape[2]
    C, N = chunks(T, chunk_size)
    first = 0 if initial else 1  # the first chunk with a past
    n_states = N - first
    scores, operand, storage = operand_dtypes(q.dtype)
    sizes_r = state_sizes(p, d, e, d_tile, with_z=normalize or return_state)
    sizes = state_sizes(p, d, e, d_tile, with_z=normalize or dstate is not None)
    options = {"p": p, "chunk_size": C, "d_tile": d_tile, "operand": operand}
    readers = {"scale": scale, "normalize": normalize, "scores": scores}
    dy, q, k, v, y = (contiguous_rows(x) for x in (dy.to(q.dtype), q, k, v, y))
    with torch.cuda.device_of(q):
        of_q = launch(
            "query_gradient", query_gradient, dy, q, k, v, y, den, a, r, sizes_r,
            first=first, weights=n_states > 0, **readers, **options,
        )  # fmt: skip
        made = dr = d_initial = flux = None
        if n_states:
            made = launch(
                "state_gradient", update_state, q, dy, of_q.w, of_q.z_w,
                kv_heads=Hk, first=first, n_states=n_states, with_z=sizes.z_rows > 0,
                storage=torch.float32 if initial else storage, **options,
            )  # fmt: skip
        d_final = None if dstate is None else flatten_gradient(dstate, d, p, d_tile, sizes)
        if n_states or dstate is not None:
            incoming = storage if dstate is not None or N > 1 else None
            against = None
            if log_g is not None and (N > 1 or initial):
                against = r, inner_weights(d, p, d_tile, sizes, q.device)
            dr, d_initial, flux = launch(
                "scan_gradient", scan, made, a, d_final,
                n_chunks=N, incoming=incoming, final=initial, reverse=True, against=against,
            )  # fmt: skip
        dk, dv, kdk = launch(
            "key_value_gradient", key_value_gradient, dy, q, k, v, den, of_q.delta, a, dr, sizes, **readers, **options
        )
        dlog_g = None
        if log_g is not None:
            through_final = None
            if dstate is not None:  # all of the final state carries the last G
                through_final = (dstate.s * final.s).sum((2, 3)) + (dstate.z * final.z).sum(2)
            dlog_g = launch(
                "gate_gradient", gate_gradient, of_q.qdq, kdk, flux, through_final, log_g, p, C, initial=initial
            )  # fmt: skip
    state = None if d_initial is None else unflatten_gradient(d_initial, d, p, d_tile, sizes)
    return of_q.dq, dk, dv, dlog_g, state
