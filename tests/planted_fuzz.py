"""Faults planted into the processes that check random problems: a `sitecustomize` of the tests plants them there."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Any

SITE = """
import os, sys
if os.environ.get("PLANTED") and "powerbench.fuzz.worker" in sys.orig_argv:
    from tests.planted_fuzz import plant
    plant(os.environ["PLANTED"])
"""


def plant(name: str) -> None:
    """Put the fault of that name in the way of the PyTorch backend."""
    import torch

    from powerbench.kernels.power import op

    calls = 0
    right = op.torch_forward

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, dx: torch.Tensor) -> torch.Tensor:
            return 1.5 * dx

    def wrong_dk(q: Any, k: Any, *rest: Any, **options: Any) -> Any:
        return right(q, Scaled.apply(k) if q.shape[1] > 8 else k, *rest, **options)

    def nan(q: Any, k: Any, v: Any, log_g: Any, **options: Any) -> Any:
        y, state = right(q, k, v, log_g, **options)
        return (y if log_g is None else y * float("nan")), state

    def other_bits(*inputs: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        y, state = right(*inputs, **options)
        return y * (1 + calls % 2 * 1e-5), state

    def aborts(q: Any, *rest: Any, **options: Any) -> Any:
        if q.shape[1] > 20:
            print("terminate called after a planted fault", file=sys.stderr, flush=True)
            os.abort()
        return right(q, *rest, **options)

    def strikes(q: Any, *rest: Any, **options: Any) -> Any:
        if q.shape[1] > 20:
            ctypes.string_at(0)
        return right(q, *rest, **options)

    def hangs(q: Any, *rest: Any, **options: Any) -> Any:
        if q.shape[1] > 20:
            time.sleep(3600)
        return right(q, *rest, **options)

    def raises(q: Any, *rest: Any, **options: Any) -> Any:
        if q.shape[2] > 1:
            raise RuntimeError("a planted fault\nand its second line")
        return right(q, *rest, **options)

    faults: dict[str, Callable[..., Any]] = {
        "wrong dk": wrong_dk, "nan": nan, "other bits": other_bits, "aborts": aborts,
        "strikes": strikes, "hangs": hangs, "raises": raises,
    }  # fmt: skip
    op.torch_forward = faults[name]
