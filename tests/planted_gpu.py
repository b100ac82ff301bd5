"""Contestants whose faults only a GPU has, for a real measuring process (`tests.planted_gpu:kernels`)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from powerbench.kernels.kernel import Kernel
from tests.fakes import fake, softmax
from tests.planted import Caching, sleeps

TWO_MINUTES = 240 * 10**9  # cycles, at about 2 GHz


@triton.jit
def _store_far_away(ptr):
    tl.store(ptr + (1 << 45), 1.0)


def _ooms(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty(2**50, dtype=torch.uint8, device=q.device)


def _strikes(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    _store_far_away[(1,)](q)
    return softmax(q, *rest)


def _asserts(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    return q[torch.full((1,), 2**40, device=q.device)]


def _hangs(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    torch.cuda._sleep(TWO_MINUTES)
    return softmax(q, *rest)


def _looks(*tensors: torch.Tensor) -> torch.Tensor:
    y = softmax(*tensors)
    assert float(y.abs().max()) >= 0  # a host that waits for the device cannot be captured
    return y


def _elsewhere(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    """Leaves its work on a stream of its own."""
    y = torch.empty_like(q)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20 * 10**6)  # about 10 ms
        y.copy_(softmax(q, *rest))
    return y


def _patches_events(q: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    """An event that says that nothing takes time."""

    class Event(torch.cuda.Event):
        def elapsed_time(self, end: torch.cuda.Event) -> float:
            return 1e-3

    torch.cuda.Event = Event
    torch.cuda._sleep(20 * 10**6)
    return softmax(q, *rest)


def kernels() -> Mapping[str, Kernel]:
    """All of them; two that are right at both ends."""
    table = [
        fake("first"),
        fake("ooms", _ooms),
        fake("strikes", _strikes),
        fake("asserts", _asserts),
        fake("hangs", _hangs),
        fake("sleeps", sleeps),
        fake("looks", _looks),
        fake("elsewhere", _elsewhere),
        fake("patches-events", _patches_events),
        fake("caches", prepare=lambda case: Caching()),
        fake("last"),
    ]
    return {kernel.name: kernel for kernel in table}
