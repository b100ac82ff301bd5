"""How a callable is timed: the only file with clocks, events, graphs and cache flushes.

A sample is one call. `Mode` says between what:

* `graph` (CUDA): two events around one replay of a CUDA graph that holds the whole call. No launch overhead.
* `events` (CUDA): two events around one call. Before it the device spins for about a millisecond, during which the
  host enqueues the whole call, so that launch overhead stays out (unless enqueueing takes longer than that: such a
  call is host bound, and its time says so).
* `wall`: the host's clock around one call and the device's end of it: what a user waits, launches included.

With a `cold` L2 the device overwrites its cache with a buffer of several times its size before each sample, outside
the clock; with a `hot` one it does not. The caches of a CPU are left as they are.

Beside these, `time_enqueue` takes the host's time for a row of launches, for the launch latency among the ceilings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from powerbench.errors import UserError

Mode = Literal["graph", "events", "wall"]
L2 = Literal["cold", "hot"]
Call = Callable[[], object]

SPIN_CYCLES = {
    "graph": 200_000,
    "events": 2_000_000,
}  # about 0.1 and 1 ms at an H200's 1.98 GHz; a replay is one launch
FLUSH_BYTES = 256 * 1024**2  # over four times the L2 of an H200 (60 MB); writing it takes about 60 us there
CAPTURE_WARM_UPS = 3  # on the stream that captures, as torch's documentation of CUDA graphs asks for
WALL_SAMPLES = 5  # beside device times: enough for a median


@dataclass(frozen=True)
class Method:
    """How to time. `mode` None: graph where the call can be captured, else events; on a CPU, wall."""

    mode: Mode | None = None
    l2: L2 = "cold"


def method(device_type: str, mode: Mode | None, l2: L2 | None) -> Method:
    """The method for `--timer` and `--l2` on a device. Raises UserError for what it cannot do."""
    if device_type == "cuda":
        return Method(mode, l2 or "cold")
    if mode not in (None, "wall"):
        raise UserError(f"--timer: {mode} needs a CUDA device; on a CPU allowed is wall")
    if l2 is not None:
        raise UserError(f"--l2: {l2} needs a CUDA device; the caches of a CPU are left as they are")
    return Method("wall", "hot")


@dataclass(frozen=True)
class Timer:
    """A call made ready for its samples. `name`: graph-cold, events-hot ...; on a CPU plainly wall."""

    name: str
    sample: Callable[[], float]  # ms of one call
    run: Call  # what `sample` times, without the clock; returns what the call returns
    reason: str | None = None  # why it is not timed by a graph, where that was tried


def timer(make: Callable[[], Call], device: torch.device, method: Method) -> Timer:
    """Make a call and the way to time it. The caller has warmed up such a call: nothing may compile or tune in here.

    `make` and not the call itself, because a graph wants all of it made on a stream of its own. Whatever the call
    raises comes out, and what keeps it from being captured too, if a graph was asked for by name.
    """
    if device.type != "cuda":
        call = make()
        return Timer("wall", lambda: _wall_ms(call, device, "hot"), call)
    if method.mode == "wall":
        call = make()
        return Timer(f"wall-{method.l2}", lambda: _wall_ms(call, device, method.l2), call)
    reason = None
    if method.mode != "events":
        try:
            replay = _capture(make, device)
            return Timer(f"graph-{method.l2}", lambda: _events_ms(replay, device, method.l2, "graph"), replay)
        except Exception as error:  # a contestant may raise anything when it is captured
            if method.mode == "graph":
                raise
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"
        torch.cuda.synchronize(device)  # raises where the failed capture has cost the device
    call = make()
    return Timer(f"events-{method.l2}", lambda: _events_ms(call, device, method.l2, "events"), call, reason)


def wall_beside(call: Call, device: torch.device, l2: L2) -> tuple[float, ...]:
    """Wall ms of a few calls, to hold against the device times; fewer where one takes a second."""
    first = _wall_ms(call, device, l2)
    return (first, *(_wall_ms(call, device, l2) for _ in range(WALL_SAMPLES - 1 if first < 1e3 else 0)))


def _capture(make: Callable[[], Call], device: torch.device) -> Call:
    """The call as a CUDA graph, made on the stream that captures: a backward pass runs where its forward ran."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(CAPTURE_WARM_UPS):
            call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call()
    held = (call, result)  # the call too: a captured backward pass reads what its forward saved

    def replay() -> object:
        graph.replay()
        return held[1]

    return replay


def _wall_ms(call: Call, device: torch.device, l2: L2) -> float:
    if device.type != "cuda":
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) / 1e6
    if l2 == "cold":
        _flush_buffer(device).zero_()
    torch.cuda.synchronize(device)
    start = time.perf_counter_ns()
    call()
    torch.cuda.synchronize(device)
    return (time.perf_counter_ns() - start) / 1e6


def _events_ms(call: Call, device: torch.device, l2: L2, mode: Mode) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SPIN_CYCLES[mode])  # private, but torch's own tests and benchmarks have used it for years
    if l2 == "cold":
        _flush_buffer(device).zero_()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


@lru_cache(maxsize=1)
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)


def release() -> None:
    """Give back what timing holds on the device, for a process that is done with it."""
    _flush_buffer.cache_clear()


@dataclass(frozen=True)
class Policy:
    """For ceilings and phases: at least `min_samples`, then until `min_seconds` are measured or `max_samples` taken."""

    min_samples: int = 5
    min_seconds: float = 0.5
    max_samples: int = 100


@dataclass(frozen=True)
class Samples:
    """Milliseconds of single calls, in the order taken, and the timer that took them."""

    ms: tuple[float, ...]
    timer: str


def time_call(call: Call, device: torch.device, policy: Policy | None = None, l2: L2 = "cold") -> Samples:
    """Time `call` by itself, by events on a GPU, by wall on a CPU. The caller has warmed it up."""
    policy = policy or Policy()
    clock = timer(lambda: call, device, Method("events", l2))
    ms: list[float] = []
    while len(ms) < policy.min_samples or (sum(ms) < policy.min_seconds * 1e3 and len(ms) < policy.max_samples):
        ms.append(clock.sample())
    return Samples(tuple(ms), clock.name)


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
