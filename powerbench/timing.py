"""How a callable is timed: the only file with clocks, events and cache flushes.

* `perf_counter` (CPU): wall time of one call.
* `events-cold` (CUDA): time between two events around one call. Before each call the device spins for about a
  millisecond and then overwrites its L2 cache with a buffer of several times its size, both outside the events. While
  it spins, the host enqueues the whole call, so that launch overhead stays out of the number (unless enqueueing takes
  longer than that: a call of very many launches is then host bound, and its time says so).

* `host-enqueue`: time the host takes to enqueue a row of launches; nothing is waited for in between. For the launch
  latency among the ceilings alone.

Every call is one sample; samples are kept raw and in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

SPIN_CYCLES = 2_000_000  # about 1 ms at an H200's 1.98 GHz
FLUSH_BYTES = 256 * 1024**2  # over four times the L2 of an H200 (60 MB); writing it takes about 60 us there


@dataclass(frozen=True)
class Policy:
    """When to stop: at least `min_samples`, then until `min_seconds` are measured or `max_samples` are taken."""

    min_samples: int = 5
    min_seconds: float = 0.5
    max_samples: int = 100


@dataclass(frozen=True)
class Samples:
    """Milliseconds of single calls, in the order taken, and the timer that took them."""

    ms: tuple[float, ...]
    timer: str


def time_call(call: Callable[[], object], device: torch.device, policy: Policy | None = None) -> Samples:
    """Time `call` on `device`. The caller has warmed it up: nothing may compile or tune in here."""
    policy = policy or Policy()
    sample, timer = (_cuda_sample, "events-cold") if device.type == "cuda" else (_cpu_sample, "perf_counter")
    ms: list[float] = []
    while len(ms) < policy.min_samples or (sum(ms) < policy.min_seconds * 1e3 and len(ms) < policy.max_samples):
        ms.append(sample(call, device))
    return Samples(tuple(ms), timer)


def time_enqueue(launch: Callable[[], object], device: torch.device, number: int, samples: int) -> Samples:
    """Host time of `number` launches in a row, which all have to fit the device's queue (1024 on CUDA)."""
    ms: list[float] = []
    for _ in range(samples):
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # an idle device and an empty queue: the host never waits for either
        start = time.perf_counter()
        for _ in range(number):
            launch()
        ms.append((time.perf_counter() - start) * 1e3)
    return Samples(tuple(ms), "host-enqueue")


def _cpu_sample(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _cuda_sample(call: Callable[[], object], device: torch.device) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SPIN_CYCLES)  # private, but torch's own tests and benchmarks have used it for years
    _flush_buffer(device).zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@lru_cache(maxsize=1)
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
