"""The operator `power_attention`: checks its arguments, fills in what is left open, and hands over to a backend."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from powerbench.kernels.power import tiling
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.feature_map import d_tiles, spow_dim, tspow_dim
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.torch_backend import needs_grad, torch_forward

__all__ = ["MAX_DEGREE", "PowerState", "normalized_by_default", "power_attention"]

Backend = Literal["auto", "triton", "torch"]

MAX_DEGREE = 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def normalized_by_default(p: int) -> bool:
    """Even powers are weights, which a sum can normalise; sums of odd powers can vanish."""
    return p % 2 == 0


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
            the speed, and nothing else but rounding. None: chosen for the problem (`choose`).
        d_tile: divisor of d that sets the tiling of the state, hence its dimension D = tspow_dim(d, p, d_tile) and the
            order of its rows. None: chosen; a call that continues from a state must use that state's d_tile.
        scale: of <q, k>. None: 1 / sqrt(d).
        normalize: None: on for even p, off for odd p; odd p cannot be normalised, as its weights can sum to zero. A row
            whose weights are all zero (a query orthogonal to every key) is 0 / 0 = nan.
        initial_state: what came before, as returned by an earlier call with the same p and d_tile.
        return_state: also return the state after the last token.
        backend: "torch" (any device, differentiable), "triton" (CUDA, no gradients yet), or "auto": Triton where
            it can serve the call (CUDA, no gradient wanted, head dimensions it has kernels for), else PyTorch.

    Returns:
        y [B, T, H, e] in q's dtype; with `return_state`, (y, PowerState). Differentiable in q, k, v, log_g and
        initial_state, through y and through the state.

    Accuracy of the torch backend: relative error (Frobenius norm) against float64, standard normal inputs, T = 4096,
    p = 1 to 4, at most 3.6e-3 for bfloat16, 2.1e-4 for float16 (the rounding of y), 3.1e-7 for float32. States are
    summed in float32; for bfloat16 what a chunk adds to the state, and the state as queries read it, are rounded to
    bfloat16: without a state the error is 2.3e-3 to 3.2e-3.

    Raises:
        ValueError: names the argument that is wrong, what it was and what is allowed.
    """
    _check_tensors(q, k, v, log_g)
    _check_options(p, q.shape[-1], chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize)
    streaming = initial_state is not None or return_state
    chunk_size, d_tile = choose(
        p, q.shape[-1], v.shape[-1], q.shape[1], q.device.type, chunk_size, d_tile, streaming=streaming
    )
    if initial_state is not None:
        _check_state(initial_state, q, k, v, tspow_dim(q.shape[-1], p, d_tile))
    gradients = needs_grad(q, k, v, log_g, initial_state)
    forward = _triton_forward() if _use_triton(backend, q, v, gradients) else torch_forward
    y, state = forward(
        q, k, v, log_g,
        p=p,
        chunk_size=chunk_size,
        d_tile=d_tile,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        normalize=normalized_by_default(p) if normalize is None else normalize,
        initial_state=initial_state,
        return_state=return_state,
    )  # fmt: skip
    return y if state is None else (y, state)


def _use_triton(backend: str, q: Tensor, v: Tensor, gradients: bool) -> bool:
    """Which backend runs; ValueError when the one that was asked for cannot."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(get_args(Backend))}")
    if backend == "auto":
        sizes = q.shape[-1] in tiling.HEAD_DIMS and v.shape[-1] in tiling.HEAD_DIMS and q.dtype != torch.float64
        return q.is_cuda and sizes and not gradients and _has_triton()
    if backend == "triton" and gradients:
        raise ValueError(
            'backend is "triton", which has no backward pass yet, and an input requires grad; use backend="torch", or '
            "call it under torch.no_grad()"
        )
    if backend == "triton" and not _has_triton():
        raise ValueError('backend is "triton", and triton is not installed (pip install powerbench[gpu])')
    if backend == "triton" and not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'backend is "triton" with tensors on {q.device}; it needs CUDA tensors, or TRITON_INTERPRET=1 set before '
            "triton is imported, to interpret its kernels"
        )
    return backend == "triton"


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton_forward() -> Callable[..., tuple[Tensor, PowerState | None]]:
    from powerbench.kernels.power.triton_backend import triton_forward  # noqa: PLC0415  triton is optional

    return triton_forward


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> None:
    """Shapes, dtypes and devices of the inputs."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _require(isinstance(tensor, Tensor), f"{name} is {type(tensor).__name__}; it must be a tensor")
        four = tensor.ndim == 4 and tensor.numel() > 0
        _require(four, f"{name} is {_shape(tensor)}; it must be [batch, time, heads, dim], with no size zero")
    B, T, H, d = q.shape
    Hk, e = k.shape[2], v.shape[3]
    _require(q.dtype in DTYPES, f"q is {q.dtype}; allowed are {', '.join(map(str, DTYPES))}")
    _require(k.shape == (B, T, Hk, d), f"k is {_shape(k)}; with q {_shape(q)} it must be [{B}, {T}, kv_heads, {d}]")
    _require(H % Hk == 0, f"k has {Hk} heads; the number must divide q's {H} heads")
    _require(v.shape == (B, T, Hk, e), f"v is {_shape(v)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}, value_dim]")
    for name, tensor in (("k", k), ("v", v)):
        _require(tensor.dtype == q.dtype, f"{name} is {tensor.dtype}; it must be q's dtype, {q.dtype}")
        _require(tensor.device == q.device, f"{name} is on {tensor.device}; it must be on q's device, {q.device}")
    if log_g is None:
        return
    _require(isinstance(log_g, Tensor), f"log_g is {type(log_g).__name__}; it must be a tensor, or None for no gates")
    _require(log_g.shape == (B, T, Hk), f"log_g is {_shape(log_g)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}]")
    allowed = (torch.float32, torch.float64) if q.dtype == torch.float64 else (torch.float32,)
    _require(log_g.dtype in allowed, f"log_g is {log_g.dtype}; with {q.dtype} q it must be {_either(allowed)}")
    _require(log_g.device == q.device, f"log_g is on {log_g.device}; it must be on q's device, {q.device}")


def _check_options(
    p: int, d: int, *, chunk_size: int | None, d_tile: int | None, scale: float | None, normalize: bool | None
) -> None:
    """Everything that is not a tensor and does not depend on a backend."""
    _require(_is_int(p) and p >= 1, f"p is {p!r}; it must be an integer from 1 to {MAX_DEGREE}")
    if p > MAX_DEGREE:
        raise ValueError(
            f"p is {p}; it must be from 1 to {MAX_DEGREE}: at head dimension {d} a state of degree {p} would have "
            f"{spow_dim(d, p):,} rows a head"
        )
    whole = chunk_size is None or (_is_int(chunk_size) and chunk_size >= 1)
    _require(whole, f"chunk_size is {chunk_size!r}; it must be an integer of at least 1, or None")
    divides = d_tile is None or (_is_int(d_tile) and d_tile in d_tiles(d))
    listed = ", ".join(map(str, d_tiles(d)))
    _require(divides, f"d_tile is {d_tile!r}; for head dimension {d} it must be one of {listed}, or None")
    number = scale is None or (isinstance(scale, int | float) and 0 < scale < math.inf)
    _require(number, f"scale is {scale!r}; it must be a positive, finite number, or None for 1 / sqrt(d)")
    known = normalize is None or isinstance(normalize, bool)
    _require(known, f"normalize is {normalize!r}; it must be True, False, or None for the default of p")
    odd = bool(normalize) and not normalized_by_default(p)
    _require(not odd, f"normalize is True with p = {p}; odd powers can sum to zero: only even p can be normalised")


def _check_state(state: PowerState, q: Tensor, k: Tensor, v: Tensor, dim: int) -> None:
    """The state that comes in, against what p, d_tile and the inputs make of it."""
    _require(
        isinstance(state, PowerState), f"initial_state is {type(state).__name__}; it must be a PowerState(s, z) or None"
    )
    B, _, Hk, e = v.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name, tensor, shape in (("s", state.s, (B, Hk, dim, e)), ("z", state.z, (B, Hk, dim))):
        _require(
            tensor.shape == shape,
            f"initial_state.{name} is {_shape(tensor)}; these inputs, p and d_tile need {list(shape)}: a state belongs "
            "to the p and d_tile it was made with",
        )
        _require(tensor.dtype == dtype, f"initial_state.{name} is {tensor.dtype}; with {q.dtype} q it must be {dtype}")
        device = f"initial_state.{name} is on {tensor.device}; it must be on q's device, {q.device}"
        _require(tensor.device == q.device, device)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(map(str, dtypes))
