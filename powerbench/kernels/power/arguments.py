"""The arguments that the operator and its decoding step share: what is allowed, checked, with one line that says so."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from powerbench.kernels.power.feature_map import d_tiles, spow_dim
from powerbench.kernels.power.state import LazyState, PowerState
from powerbench.kernels.power.state_size import normalized_by_default

MAX_DEGREE = 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def as_autocast(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """The inputs as torch.autocast wants them, and whether it is on: then the operator itself has to turn it off."""
    if not (isinstance(q, Tensor) and _under_autocast(q.device.type)):
        return q, k, v, log_g, False
    low = torch.get_autocast_dtype(q.device.type)
    q, k, v = (_cast(x, low) for x in (q, k, v))
    return q, k, v, _cast(log_g, torch.float32), True


def _under_autocast(device_type: str) -> bool:
    return device_type != "meta" and torch.is_autocast_enabled(device_type)  # torch knows no autocast for meta


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast casts: floating-point tensors other than float64."""
    eligible = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if eligible else x


def check_tensors(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None) -> None:
    """Shapes, dtypes and devices of the inputs."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        isinstance(tensor, Tensor) or refuse(f"{name} is {type(tensor).__name__}; it must be a tensor")
        four = tensor.ndim == 4 and tensor.numel() > 0
        four or refuse(f"{name} is {_shape(tensor)}; it must be [batch, time, heads, dim], with no size zero")
    B, T, H, d = q.shape
    Hk, e = k.shape[2], v.shape[3]
    q.dtype in DTYPES or refuse(f"q is {q.dtype}; allowed are {', '.join(map(str, DTYPES))}")
    k.shape == (B, T, Hk, d) or refuse(f"k is {_shape(k)}; with q {_shape(q)} it must be [{B}, {T}, kv_heads, {d}]")
    H % Hk == 0 or refuse(f"k has {Hk} heads; the number must divide q's {H} heads")
    v.shape == (B, T, Hk, e) or refuse(f"v is {_shape(v)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}, value_dim]")
    for name, tensor in (("k", k), ("v", v)):
        tensor.dtype == q.dtype or refuse(f"{name} is {tensor.dtype}; it must be q's dtype, {q.dtype}")
        tensor.device == q.device or refuse(f"{name} is on {tensor.device}; it must be on q's device, {q.device}")
    if log_g is None:
        return
    isinstance(log_g, Tensor) or refuse(f"log_g is {type(log_g).__name__}; it must be a tensor, or None for no gates")
    log_g.shape == (B, T, Hk) or refuse(f"log_g is {_shape(log_g)}; with k {_shape(k)} it must be [{B}, {T}, {Hk}]")
    allowed = (torch.float32, torch.float64) if q.dtype == torch.float64 else (torch.float32,)
    log_g.dtype in allowed or refuse(f"log_g is {log_g.dtype}; with {q.dtype} q it must be {_either(allowed)}")
    log_g.device == q.device or refuse(f"log_g is on {log_g.device}; it must be on q's device, {q.device}")


def check_options(
    p: int, d: int, *, chunk_size: int | None, d_tile: int | None, scale: float | None, normalize: bool | None
) -> None:
    """Everything that is not a tensor and does not depend on a backend."""
    (_is_int(p) and p >= 1) or refuse(f"p is {p!r}; it must be an integer from 1 to {MAX_DEGREE}")
    p <= MAX_DEGREE or refuse(
        f"p is {p}; it must be from 1 to {MAX_DEGREE}: at head dimension {d} a state of degree {p} would have "
        f"{spow_dim(d, p):,} rows a head"
    )
    whole = chunk_size is None or (_is_int(chunk_size) and chunk_size >= 1)
    whole or refuse(f"chunk_size is {chunk_size!r}; it must be an integer of at least 1, or None")
    divides = d_tile is None or (_is_int(d_tile) and d_tile >= 1 and d % d_tile == 0)
    divides or refuse(
        f"d_tile is {d_tile!r}; for head dimension {d} it must be one of {', '.join(map(str, d_tiles(d)))}, or None"
    )
    number = scale is None or (_is_a(Real, scale) and 0 < scale < math.inf)
    number or refuse(f"scale is {scale!r}; it must be a positive, finite number, or None for 1 / sqrt(d)")
    known = normalize is None or isinstance(normalize, bool | np.bool_)
    known or refuse(f"normalize is {normalize!r}; it must be True, False, or None for the default of p")
    odd = bool(normalize) and not normalized_by_default(p)
    if odd:
        refuse(f"normalize is True with p = {p}; odd powers can sum to zero: only even p can be normalised")


def check_kind(state: object, name: str) -> None:
    """That it is a PowerState of two tensors."""
    fold = "; fold_lazy_state makes one of a LazyState" if isinstance(state, LazyState) else ""
    isinstance(state, PowerState) or refuse(
        f"{name} is {type(state).__name__}; it must be a PowerState(s, z) or None{fold}"
    )
    for field, tensor in (("s", state.s), ("z", state.z)):
        isinstance(tensor, Tensor) or refuse(f"{name}.{field} is {type(tensor).__name__}; it must be a tensor")


def check_state(state: PowerState, q: Tensor, v: Tensor, dim: int, name: str, *, low: bool = False) -> None:
    """The state that comes in, against what p, d_tile and the inputs make of it. `low`: s may be in bfloat16."""
    check_kind(state, name)
    B, _, Hk, e = v.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    for field, tensor, shape in (("s", state.s, (B, Hk, dim, e)), ("z", state.z, (B, Hk, dim))):
        tensor.shape == shape or refuse(
            f"{name}.{field} is {_shape(tensor)}; these inputs, p and d_tile need {list(shape)}: a state belongs "
            "to the p and d_tile it was made with"
        )
        half = low and field == "s" and q.dtype in (torch.bfloat16, torch.float16)
        allowed = (dtype, torch.bfloat16) if half else (dtype,)
        tensor.dtype in allowed or refuse(
            f"{name}.{field} is {tensor.dtype}; with {q.dtype} q it must be {_either(allowed)}"
        )
        tensor.device == q.device or refuse(
            f"{name}.{field} is on {tensor.device}; it must be on q's device, {q.device}"
        )


def refuse(message: str) -> NoReturn:
    """`condition or refuse(f"...")`: the message is made only when it is needed, which halves what a call costs."""
    raise ValueError(message)


def _is_int(value: object) -> bool:
    return _is_a(Integral, value)


def _is_a(kind: type, value: object) -> bool:
    """Whether it is such a number: numpy's are, what is true or false is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _either(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(map(str, dtypes))
