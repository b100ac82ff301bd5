"""How a callable is timed: the only file with clocks, events, graphs and cache flushes.

A sample is one call. `Mode` says between what:

* `graph` (CUDA): two events around one replay of a CUDA graph that holds the whole call. No launch overhead.
* `events` (CUDA): two events around one call, which the host enqueues while the device spins, so that launch overhead
  stays out (unless the call itself waits for the device).
* `wall`: the host's clock around one call and the device's end of it: what a user waits, launches included.

Before each sample by graph or events one thread of the device spins: long enough for the host to enqueue the call, and
for half as long as the call takes (`spin_ms`). Back to back, products at full rate run into the power limit within some
milliseconds, and clocks then wander by several per cent; a device that rests in between stays further from it.

With a `cold` L2 the device overwrites its cache with a buffer of several times its size before each sample, outside
the clock; with a `hot` one it does not. The caches of a CPU are left as they are.

Beside these, `time_enqueue` takes the host's time for a row of launches, for the launch latency among the ceilings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from powerbench.errors import UserError

Mode = Literal["graph", "events", "wall"]
L2 = Literal["cold", "hot"]
Call = Callable[[], object]

# The clocks, as they are before a contestant is imported that may put its own in their place.
_now = time.perf_counter_ns
_synchronize, _spin, _Event = torch.cuda.synchronize, torch.cuda._sleep, torch.cuda.Event  # `_sleep`: as below
_record, _wait, _elapsed_ms = _Event.record, _Event.synchronize, _Event.elapsed_time

SPIN_CYCLES_PER_MS = 2_000_000  # at about 2 GHz, as an H200's 1.98
MIN_SPIN_MS, MAX_SPIN_MS = 1.0, 20.0
REST = 0.5  # of the time that a call takes
FLUSH_BYTES = 256 * 1024**2  # over four times the L2 of an H200 (60 MB); writing it takes about 60 us there
CAPTURE_WARM_UPS = 3  # on the stream that captures, as torch's documentation of CUDA graphs asks for
SLOW_SECONDS = 1.0  # of a call: it is not made more often than it must be
WALL_SAMPLES = 5  # beside device times: enough for a median


@dataclass(frozen=True)
class Method:
    """How to time. `mode` None: graph where the call can be captured, else events; on a CPU, wall."""

    mode: Mode | None = None
    l2: L2 = "cold"

    def gives(self, timer: str | None, device_type: str) -> bool:
        """Whether a case may be timed so (a `Timer.name`): its times may then stand beside those that this gives."""
        if device_type != "cuda":
            return timer == "wall"
        modes = (self.mode,) if self.mode else ("graph", "events")
        return timer in {f"{mode}-{self.l2}" for mode in modes}


def method(device_type: str, mode: Mode | None, l2: L2 | None) -> Method:
    """The method for `--timer` and `--l2` on a device. Raises UserError for what it cannot do."""
    if device_type == "cuda":
        return Method(mode, l2 or "cold")
    if mode not in (None, "wall"):
        raise UserError(f"--timer: {mode} needs a CUDA device; on a CPU allowed is wall")
    if l2 is not None:
        raise UserError(f"--l2: {l2} needs a CUDA device; the caches of a CPU are left as they are")
    return Method("wall", "hot")


class Taken(NamedTuple):
    """One sample: its ms, what the call returned, and for how many ms other streams of the device then still worked."""

    ms: float
    result: object
    after_ms: float = 0.0


@dataclass(frozen=True)
class Timer:
    """A call made ready for its samples. `name`: graph-cold, events-hot ...; on a CPU plainly wall."""

    name: str
    sample: Callable[[], Taken]  # of one call
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
            return _device_timer(f"graph-{method.l2}", _capture(make, device), device, method.l2)
        except Exception as error:  # a contestant may raise anything when it is captured
            if method.mode == "graph":
                raise
            reason = _first_cause(error)
        torch.cuda.synchronize(device)  # raises where the failed capture has cost the device
    return _device_timer(f"events-{method.l2}", make(), device, method.l2, reason)


def _device_timer(name: str, call: Call, device: torch.device, l2: L2, reason: str | None = None) -> Timer:
    cycles = spin_cycles(call, device)
    return Timer(name, lambda: _events_ms(call, device, l2, cycles), call, reason)


def spin_ms(enqueue_ms: float, whole_ms: float) -> float:
    """How long to spin before a call whose enqueueing takes the host so long, and which takes so long in all."""
    return max(MIN_SPIN_MS, min(MAX_SPIN_MS, max(2 * enqueue_ms, REST * whole_ms)))


def spin_cycles(call: Call, device: torch.device) -> int:
    """The same in cycles of `torch.cuda._sleep`, for a call that is timed once for it."""
    _synchronize(device)
    start = _now()
    call()
    enqueued = _now()
    _synchronize(device)
    return int(spin_ms((enqueued - start) / 1e6, (_now() - start) / 1e6) * SPIN_CYCLES_PER_MS)


def _first_cause(error: BaseException) -> str:
    """In a line. What ends a capture raises once more, of an error in the capture; the first one says what it was."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def wall_beside(call: Call, device: torch.device, l2: L2) -> tuple[float, ...]:
    """Wall ms of a few calls, to hold against the device times; fewer where one takes a second.

    Each on a device as rested as for those: else a call at its power limit would pass for one that waits for the host.
    """
    cycles = spin_cycles(call, device) if device.type == "cuda" else 0

    def sample() -> float:
        if cycles:
            _spin(cycles)
        return _wall_ms(call, device, l2).ms

    first = sample()
    return (first, *(sample() for _ in range(WALL_SAMPLES - 1 if first < SLOW_SECONDS * 1e3 else 0)))


def _capture(make: Callable[[], Call], device: torch.device) -> Call:
    """The call as a CUDA graph, made on the stream that captures: a backward pass runs where its forward ran."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call = make()
        start = time.perf_counter()
        for _ in range(CAPTURE_WARM_UPS):
            call()
            stream.synchronize()
            if time.perf_counter() - start > SLOW_SECONDS:  # what warms up in several short calls does so in a long one
                break
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            result = call()
    except Exception:
        _end_failed_capture(stream)
        raise
    held = (call, result)  # the call too: a captured backward pass reads what its forward saved

    def replay() -> object:
        graph.replay()
        return held[1]

    return replay


def _end_failed_capture(stream: torch.cuda.Stream) -> None:
    """After a failed capture torch's random generator still believes in it and raises; one that succeeds ends that."""
    with torch.cuda.stream(stream):
        x = torch.zeros(1, device=stream.device)
    torch.cuda.synchronize(stream.device)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
        x.neg_()


def _wall_ms(call: Call, device: torch.device, l2: L2) -> Taken:
    if device.type != "cuda":
        start = _now()
        result = call()
        return Taken((_now() - start) / 1e6, result)
    if l2 == "cold":
        _flush_buffer(device).zero_()
    _synchronize(device)
    start = _now()
    result = call()
    _synchronize(device)
    return Taken((_now() - start) / 1e6, result)


def _events_ms(call: Call, device: torch.device, l2: L2, spin_cycles: int) -> Taken:
    start, end = _Event(enable_timing=True), _Event(enable_timing=True)
    _spin(spin_cycles)  # private, but torch's own tests and benchmarks have used it for years
    if l2 == "cold":
        _flush_buffer(device).zero_()
    _record(start)
    result = call()
    _record(end)
    _wait(end)
    done = _now()
    _synchronize(device)  # all streams: one that the call left at work ends later
    return Taken(float(_elapsed_ms(start, end)), result, (_now() - done) / 1e6)


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
        ms.append(clock.sample().ms)
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
