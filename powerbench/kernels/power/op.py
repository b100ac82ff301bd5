"""The operator `power_attention`: checks its arguments, fills in what is left open, and hands over to a backend."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Literal, NoReturn, get_args

import torch
from torch import Tensor

from powerbench.kernels.power import tiling
from powerbench.kernels.power.choose import choose
from powerbench.kernels.power.feature_map import d_tiles, spow_dim, tspow_dim
from powerbench.kernels.power.state import PowerState
from powerbench.kernels.power.state_size import normalized_by_default
from powerbench.kernels.power.torch_backend import torch_forward

__all__ = ["MAX_DEGREE", "PowerState", "normalized_by_default", "power_attention"]

Backend = Literal["auto", "triton", "torch"]

MAX_DEGREE = 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


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
    p = 1 to 4, at most 3.6e-3 for bfloat16, 2.1e-4 for float16 (the rounding of y), 3.1e-7 for float32. States are
    summed in float32; for bfloat16 what a chunk adds to the state, and the state as queries read it, are rounded to
    bfloat16: without a state the error is 2.3e-3 to 3.2e-3.

    Accuracy of the Triton backend, on an H200, against float64: in bfloat16 y 2.2e-3 to 2.8e-3 over p = 1 to 4, dq, dk
    and dv 2.5e-3 to 5.6e-3, dlog_g 4e-3 to 1.4e-2 with slow gates; in float32 about 1e-7 to 1e-6. States between the
    launches are bfloat16 for bfloat16 and float16 inputs, those that go out to the caller float32.

    Raises:
        ValueError: names the argument that is wrong, what it was and what is allowed.
    """
    cast = isinstance(q, Tensor) and _under_autocast(q.device.type)
    if cast:
        low = torch.get_autocast_dtype(q.device.type)
        q, k, v, log_g = _cast(q, low), _cast(k, low), _cast(v, low), _cast(log_g, torch.float32)
    _check_tensors(q, k, v, log_g)
    # Numbers to torch.compile, which leaves B, T and H open: these choose the kernels.
    d, e = operator.index(q.shape[-1]), operator.index(v.shape[-1])
    _check_options(p, d, chunk_size=chunk_size, d_tile=d_tile, scale=scale, normalize=normalize)
    p, d_tile = operator.index(p), None if d_tile is None else operator.index(d_tile)
    streaming = initial_state is not None or return_state
    chunk_size, d_tile = choose(p, d, e, q.shape[1], q.device.type, chunk_size, d_tile, streaming=streaming)
    if initial_state is not None:
        _check_state(initial_state, q, v, tspow_dim(d, p, d_tile))
    forward = _triton_attention() if _use_triton(backend, q, v) else torch_forward
    with torch.autocast(q.device.type, enabled=False) if cast else nullcontext():
        y, state = forward(
            q, k, v, log_g,
            p=p,
            chunk_size=chunk_size,
            d_tile=d_tile,
            scale=d**-0.5 if scale is None else float(scale),
            normalize=normalized_by_default(p) if normalize is None else normalize,
            initial_state=initial_state,
            return_state=return_state,
        )  # fmt: skip
    return y if state is None else (y, state)


def _under_autocast(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch knows no autocast for meta


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast casts: floating-point tensors other than float64."""
    eligible = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if eligible else x


def _use_triton(backend: str, q: Tensor, v: Tensor) -> bool:
    """Which backend runs; ValueError when the one that was asked for cannot."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(get_args(Backend))}")
    if backend == "auto":
        sizes = q.shape[-1] in tiling.HEAD_DIMS and v.shape[-1] in tiling.HEAD_DIMS and q.dtype != torch.float64
        return q.is_cuda and sizes and _has_triton()
    if backend == "triton" and not _has_triton():
        raise ValueError('backend is "triton", and triton is not installed (pip install powerbench[gpu])')
    if backend == "triton" and not q.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f'backend is "triton" with tensors on {q.device}; it needs CUDA tensors, or TRITON_INTERPRET=1 set before '
            "triton is imported, to interpret its kernels"
        )
    return backend == "triton"


@torch.compiler.assume_constant_result  # torch.compile cannot trace the search for a package, and need not
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _triton_attention() -> Callable[..., tuple[Tensor, PowerState | None]]:
    from powerbench.kernels.power.triton_op import triton_attention  # noqa: PLC0415  triton is optional

    return triton_attention


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> None:
    """Shapes, dtypes and devices of the inputs."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        isinstance(tensor, Tensor) or _refuse(f"{name} is {type(tensor).__name__}; it must be a tensor")
        four = tensor.ndim == 4 and tensor.numel() > 0
        four or _refuse(f"{name} is {_shape(tensor)}; it must be [batch, time, heads, dim], with no size zero")
    B, T, H, d = q.shape
    Hk, e = k.shape[2], v.shape[3]
    q.dtype in DTYPES or _refuse(f"q is {q.dtype}; allowed are {', '.join(map(str, DTYPES))}")
    k.shape == (B, T, Hk, d) or _refuse(f"k is {_shape(k)}; with q {_shape(q)} it must be [{B}, {T}, kv_heads, {d}]")
    H % Hk == 0 or _refuse(f"k has {Hk} heads; the number must divide q's {H} heads")
    v.shape == (B, T, Hk, e) or _refuse(f"v is {_shape(v)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}, value_dim]")
    for name, tensor in (("k", k), ("v", v)):
        tensor.dtype == q.dtype or _refuse(f"{name} is {tensor.dtype}; it must be q's dtype, {q.dtype}")
        tensor.device == q.device or _refuse(f"{name} is on {tensor.device}; it must be on q's device, {q.device}")
    if log_g is None:
        return
    isinstance(log_g, Tensor) or _refuse(f"log_g is {type(log_g).__name__}; it must be a tensor, or None for no gates")
    log_g.shape == (B, T, Hk) or _refuse(f"log_g is {_shape(log_g)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}]")
    allowed = (torch.float32, torch.float64) if q.dtype == torch.float64 else (torch.float32,)
    log_g.dtype in allowed or _refuse(f"log_g is {log_g.dtype}; with {q.dtype} q it must be {_either(allowed)}")
    log_g.device == q.device or _refuse(f"log_g is on {log_g.device}; it must be on q's device, {q.device}")


def _check_options(
    p: int, d: int, *, chunk_size: int | None, d_tile: int | None, scale: float | None, normalize: bool | None
) -> None:
    """Everything that is not a tensor and does not depend on a backend."""
    (_is_int(p) and p >= 1) or _refuse(f"p is {p!r}; it must be an integer from 1 to {MAX_DEGREE}")
    p <= MAX_DEGREE or _refuse(
        f"p is {p}; it must be from 1 to {MAX_DEGREE}: at head dimension {d} a state of degree {p} would have "
        f"{spow_dim(d, p):,} rows a head"
    )
    whole = chunk_size is None or (_is_int(chunk_size) and chunk_size >= 1)
    whole or _refuse(f"chunk_size is {chunk_size!r}; it must be an integer of at least 1, or None")
    divides = d_tile is None or (_is_int(d_tile) and d_tile >= 1 and d % d_tile == 0)
    divides or _refuse(
        f"d_tile is {d_tile!r}; for head dimension {d} it must be one of {', '.join(map(str, d_tiles(d)))}, or None"
    )
    number = scale is None or (isinstance(scale, int | float) and 0 < scale < math.inf)
    number or _refuse(f"scale is {scale!r}; it must be a positive, finite number, or None for 1 / sqrt(d)")
    known = normalize is None or isinstance(normalize, bool)
    known or _refuse(f"normalize is {normalize!r}; it must be True, False, or None for the default of p")
    odd = bool(normalize) and not normalized_by_default(p)
    if odd:
        _refuse(f"normalize is True with p = {p}; odd powers can sum to zero: only even p can be normalised")


def _check_state(state: PowerState, q: Tensor, v: Tensor, dim: int) -> None:
    """The state that comes in, against what p, d_tile and the inputs make of it."""
    isinstance(state, PowerState) or _refuse(
        f"initial_state is {type(state).__name__}; it must be a PowerState(s, z) or None"
    )
    B, _, Hk, e = v.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    for name, tensor, shape in (("s", state.s, (B, Hk, dim, e)), ("z", state.z, (B, Hk, dim))):
        tensor.shape == shape or _refuse(
            f"initial_state.{name} is {_shape(tensor)}; these inputs, p and d_tile need {list(shape)}: a state belongs "
            "to the p and d_tile it was made with"
        )
        tensor.dtype == dtype or _refuse(f"initial_state.{name} is {tensor.dtype}; with {q.dtype} q it must be {dtype}")
        tensor.device == q.device or _refuse(
            f"initial_state.{name} is on {tensor.device}; it must be on q's device, {q.device}"
        )


def _refuse(message: str) -> NoReturn:
    """`condition or _refuse(f"...")`: the message is made only when it is needed, which halves what a call costs."""
    raise ValueError(message)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(map(str, dtypes))
