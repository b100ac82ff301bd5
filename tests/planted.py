"""Contestants with planted faults, for a real measuring process: it finds them by `tests.planted:kernels`."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping

import torch

from powerbench.kernels.kernel import Kernel
from tests.fakes import fake, softmax

SLEEP_SECONDS = 0.02


def _ooms(*_: object) -> torch.Tensor:
    return torch.empty(2**60, dtype=torch.uint8)


def _hangs(*_: object) -> torch.Tensor:
    time.sleep(3600)
    raise AssertionError("a test does not wait for an hour")


def _aborts(*_: object) -> torch.Tensor:
    print("terminate called after a planted fault", file=sys.stderr, flush=True)
    os.abort()


def _exits(*_: object) -> torch.Tensor:
    sys.exit(3)


def _exits_at_once(*_: object) -> torch.Tensor:
    os._exit(0)


def _reads_where_it_must_not(*_: object) -> torch.Tensor:
    ctypes.string_at(0)
    raise AssertionError("address 0 was readable")


def _wrong(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return softmax(q, *rest) + 0.01


def _writes_nothing(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_g: torch.Tensor | None) -> torch.Tensor:
    right = softmax(q, k, v, log_g)
    del right  # its memory is what the next tensor of that size gets
    return torch.empty_like(q)


def sleeps(*tensors: torch.Tensor) -> torch.Tensor:
    time.sleep(SLEEP_SECONDS)
    return softmax(*tensors)


class _Counting:
    """Right until the call of a number; which comes after the gate and in the rounds."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        return softmax(*tensors) if self.left > 0 else _aborts()


class Caching:
    """Computes once, and returns that ever after."""

    def __init__(self) -> None:
        self.y: torch.Tensor | None = None

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        self.y = softmax(*tensors) if self.y is None else self.y
        return self.y


def kernels() -> Mapping[str, Kernel]:
    """All of them; two that are right at both ends."""
    table = [
        fake("first"),
        fake("ooms", _ooms),
        fake("hangs", _hangs),
        fake("aborts", _aborts),
        fake("exits", _exits),
        fake("exits-at-once", _exits_at_once),
        fake("segfaults", _reads_where_it_must_not),
        fake("wrong", _wrong),
        fake("writes-nothing", _writes_nothing),
        fake("caches", prepare=lambda case: Caching()),
        fake("aborts-later", prepare=lambda case: _Counting(8)),
        fake("sleeps", sleeps),
        fake("last"),
    ]
    return {kernel.name: kernel for kernel in table}


ABORTS = fake("aborts", _aborts)  # what entry points of the tests name
HANGS = fake("hangs", _hangs)
