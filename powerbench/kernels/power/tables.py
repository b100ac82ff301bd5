"""Constant tables on a device, copied there once: the only owner of tensors that outlive a call.

A tensor made under somebody's mode belongs to that mode: one made under FakeTensorMode (torch.export, make_fx, flop
counters on fake tensors) has no data, one made inside a functorch transform is wrapped, one made under inference mode
cannot serve autograd. So tensors are kept only when made outside of all that, and with every other mode off; under a
tracer or a transform a table is made for the call, as a part of what is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from powerbench.kernels.power.dynamo import constant_result

Make = Callable[..., Any]  # from sizes, a numpy array or a tuple (named or not) of arrays

TRACERS = tuple(torch._C._TorchDispatchModeKey.__members__.values())  # fake tensors, proxies, functionalisation


def on_device(device: torch.device, make: Make, *sizes: Any, dtype: torch.dtype | None = None) -> Any:
    """make(*sizes) as a tensor on `device`, or as a tuple of tensors of make's own type; nobody may write to them.

    `sizes` must be hashable. dtype None: that of the arrays. Kept between calls unless a tracer or a transform is on.
    Raises RuntimeError where a CUDA graph is being captured and the table is not there yet: the copy cannot be part of
    the graph.
    """
    if traced():
        return _tensors(_arrays(make, sizes), device, dtype)
    return _kept(device, make, sizes, dtype)


def mode_of(x: Tensor) -> AbstractContextManager[object]:
    """The mode of a fake x, which an operation on it need not be inside of, but everything that it makes must be."""
    return x.fake_mode if isinstance(x, FakeTensor) else nullcontext()


@constant_result  # torch.compile asks while it traces, when the levels of torch.func that it is inside of are on
def traced() -> bool:
    """Whether tensors that are made now belong to a tracer, or to a transform of torch.func."""
    return transformed() or any(torch._C._get_dispatch_mode(key) is not None for key in TRACERS)


@constant_result
def transformed() -> bool:
    """Whether a transform of torch.func is running: vmap, grad, vjp, jvp, functionalize and what is made of them."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@constant_result
def differentiated_forward() -> bool:
    """Whether tensors may carry tangents of forward mode, which nothing can be written into."""
    return forward_ad._current_level >= 0


@lru_cache(maxsize=256)
def _kept(device: torch.device, make: Make, sizes: tuple[Any, ...], dtype: torch.dtype | None) -> Any:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a CUDA graph is being captured, and power attention has no tables for these sizes on the device yet; make "
            "one call of the same sizes before the capture"
        )
    with torch.inference_mode(False), _disable_current_modes(), torch._C.DisableTorchFunction():
        return _tensors(make(*sizes), device, dtype)


@lru_cache(maxsize=32)
def _arrays(make: Make, sizes: tuple[Any, ...]) -> Any:
    return make(*sizes)


def _tensors(arrays: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Copies, so that no tensor shares the memory of an array."""
    if isinstance(arrays, np.ndarray):
        return torch.tensor(arrays, device=device, dtype=dtype)
    tensors = [_tensors(array, device, dtype) for array in arrays]
    return type(arrays)(*tensors) if hasattr(arrays, "_fields") else tuple(tensors)
