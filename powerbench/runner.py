"""Runs a sweep: asks a measuring process for one thing after the other, and turns its answers into measurements.

A sweep makes several rounds of visits. In each, the contestants of a problem in one pass are opened first (gated and
warmed up), then sampled in turns, so that drift hits all alike, until each has met its stopping rule; the next visit
comes when all other problems have had theirs. What happens in the process is `powerbench.bench`, the process itself
`powerbench.worker`; the decisions are here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, TypeVar

from powerbench.device import Device
from powerbench.plan import PlannedCase
from powerbench.problem import Case
from powerbench.protocol import Closed, Fault, Opened, Reply, Sampled, Spoilt, Verb
from powerbench.results.model import INTERLEAVED, Measurement, Round
from powerbench.stopping import Stopping
from powerbench.turns import Turns
from powerbench.worker import WorkerLost

# How long a case may take in all, where the user does not say: compiling and tuning take minutes and are not predicted.
TIMEOUT_SECONDS = 300.0
TIMEOUT_FACTOR = 10.0  # times the predicted duration, which assumes a share of the roof

# What a round may take beside its samples, by the parent's clock, before they are doubted: machines may be busy.
ROUND_SECONDS, CALL_SECONDS = 0.05, {"cpu": 0.001, "cuda": 0.05}  # on a GPU the rest before each call, and its launches
BYTES_PER_SECOND = 1e9  # of inputs and results that are looked at and changed
CALL_FACTOR = 3.0  # the call before the samples, and freed memory
MAX_DOUBTS = 3
ALONE = "in turn: one of the contestants changes the inputs of all"

R = TypeVar("R", bound=Reply)


class _SpoiltError(Exception):
    """The inputs were changed by one of several contestants: each has to be measured alone."""


class Observer(Protocol):
    """What the runner tells whoever watches."""

    def started(self, planned: PlannedCase) -> None:
        """The case is about to run."""

    def finished(self, planned: PlannedCase, measurement: Measurement, visit: int) -> None:
        """The case has been measured in this visit, or refused or lost."""


class Host(Protocol):
    """Where a bench lives: `powerbench.worker.Worker`, or for tests this process."""

    def ask(self, verb: Verb, case: Case, argument: int | bool, timeout_s: float) -> Reply:
        """One request to the bench. Raises WorkerLost when its process does not live to answer."""

    def close(self) -> None:
        """End the process."""


def run(
    planned: Sequence[PlannedCase],
    device: Device,
    hire: Callable[[], Host],
    observer: Observer,
    *,
    timed: bool = True,
    timeout_s: float | None = None,
    stopping: Stopping | None = None,
    turns: Turns | None = None,
) -> Generator[Measurement, None, None]:
    """Measure the planned cases; a failure of one is its row, not the end. Each visit is yielded when it is complete.

    A case that failed is not visited again. `hire` starts a measuring process. `timed` False gates for correctness
    only. `timeout_s` is for one visit of a case; `stopping` is in the place of each case's own rule; `turns` are those
    taken with another sweep. Raises DeviceLostError when nothing more can be measured. Close the iterator
    (`contextlib.closing`): the measuring process ends with it.
    """
    sweep = _Sweep(hire, observer, timed, timeout_s, stopping, turns, device.type)
    left = _by_pass(planned)
    try:
        for visit in sorted({visit for item in planned for visit in item.visits}):
            sweep.visit = visit
            todo = [item for item in left if visit in item.visits]
            for _, items in groupby(todo, key=lambda item: (item.case.problem, item.case.pass_)):
                for item, measurement in _visit(sweep, list(items), device):
                    if measurement.status != "ok":
                        left.remove(item)
                    observer.finished(item, measurement, visit)
                    yield measurement
    finally:
        sweep.dismiss()


Finished = tuple[PlannedCase, Measurement]


def _visit(sweep: _Sweep, items: Sequence[PlannedCase], device: Device) -> Iterator[Finished]:
    """All contestants of a problem in one pass."""
    fit = []
    for item in items:
        refused = _refused(item, device)
        if refused:
            sweep.observer.started(item)
            yield item, refused
        else:
            fit.append(item)
    yield from _contest(sweep, fit, device)


def _by_pass(planned: Sequence[PlannedCase]) -> list[PlannedCase]:
    """Within each problem, pass by pass: only what is compared with each other is sampled in turns."""
    by_problem = (list(items) for _, items in groupby(planned, key=lambda item: item.case.problem))
    return [item for items in by_problem for item in sorted(items, key=lambda item: _first_of_pass(item, items))]


def _first_of_pass(item: PlannedCase, items: Sequence[PlannedCase]) -> int:
    return next(i for i, other in enumerate(items) if other.case.pass_ == item.case.pass_)


def _refused(item: PlannedCase, device: Device) -> Measurement | None:
    """The row of a case that is not even tried."""
    if item.reason:
        return Measurement(case=item.case, status="unsupported", message=item.reason)
    if item.memory_bytes <= device.memory_bytes:
        return None
    need, have = _gib(item.memory_bytes), _gib(device.memory_bytes)
    shared = _gib(item.memory_bytes - item.own_bytes)  # of a decode row all of its context, whatever the kernel keeps
    message = f"predicted: needs about {need}, {shared} of it for inputs and reference; the device has {have} free"
    return Measurement(case=item.case, status="oom", message=message, launches=item.launches)


def _contest(sweep: _Sweep, items: Sequence[PlannedCase], device: Device) -> Iterator[Finished]:
    """All contestants in turns if they fit into memory together, else one after the other."""
    together = sum(item.own_bytes for item in items)
    together += max((item.memory_bytes - item.own_bytes for item in items), default=0)
    if together <= device.memory_bytes:
        yield from sweep.rounds(items, INTERLEAVED)
        return
    order = f"in turn: all would need about {_gib(together)}, the device has {_gib(device.memory_bytes)} free"
    for item in items:
        yield from sweep.rounds([item], order)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


@dataclass
class _Entry:
    """A case on its way. `spent_s`: how long it has kept the worker busy."""

    item: PlannedCase
    order: str
    opened: Opened | None = None
    samples_ms: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    retaken: list[Round] = field(default_factory=list)
    spent_s: float = 0.0
    asked_s: float = 0.0  # how long the last question has taken
    doubts: int = 0  # rounds whose samples were far from filling the time that they took

    def again(self) -> _Entry:
        """From the beginning: in a new process tuning may choose anew, and its samples are not to be mixed."""
        return _Entry(self.item, self.order)

    def row(self, status: str, **values: Any) -> Measurement:
        item = self.item
        return Measurement(
            case=item.case, status=status, launches=item.launches, sequence_bytes=item.sequence_bytes,
            third_party=item.kernel.claims(item.case.pass_), **values,  # type: ignore[arg-type]
        )  # fmt: skip


@dataclass
class _Sweep:
    """The measuring process, hired when first needed and replaced when lost, and the rules of this sweep."""

    hire: Callable[[], Host]
    observer: Observer
    timed: bool
    timeout_s: float | None
    stopping: Stopping | None  # None: each case's own
    turns: Turns | None
    device_type: str
    visit: int = 0
    host: Host | None = None
    alone: bool = False  # the contestants of this problem, since one of them changes the inputs of all

    def rounds(self, items: Sequence[PlannedCase], order: str) -> Iterator[Finished]:
        """Open each, then take turns until all are complete. Those that lose their process to another begin again."""
        waiting = deque(_Entry(item, order) for item in items)
        live: list[_Entry] = []
        self.alone = False
        while waiting or live:
            for entry in [waiting.popleft()] if waiting and not (self.alone and live) else list(live):
                if entry.opened is None:
                    self.observer.started(entry.item)
                    live.append(entry)
                measurement = self._step(entry)
                if measurement:
                    live.remove(entry)
                    yield entry.item, measurement
                if self.host is None:
                    waiting.extend(other.again() for other in live)  # after those that were not tried yet
                    live.clear()
                    if self.alone:
                        for other in waiting:
                            other.order = ALONE
                    break

    def dismiss(self) -> None:
        """End the measuring process, if there is one."""
        host, self.host = self.host, None
        if host:
            host.close()

    def _step(self, entry: _Entry) -> Measurement | None:
        """The next thing for a case: gate it, or take a round of samples; its row when it is complete."""
        try:
            answer = self._advance(entry)
        except _SpoiltError:
            self.dismiss()
            self.alone = True
            return None
        except WorkerLost as lost:
            self.host = None
            return entry.row(lost.status, message=lost.message)
        if not isinstance(answer, Fault):
            return answer
        return entry.row(answer.status, message=answer.message, error=answer.error, tolerance=answer.tolerance)

    def _advance(self, entry: _Entry) -> Measurement | Fault | None:
        if entry.opened is None:
            opened = self._ask(entry, "open", self.timed, Opened)
            if isinstance(opened, Fault):
                return opened
            entry.opened = opened
            return None if self.timed else _complete(entry, opened)
        stopping = self.stopping or entry.item.stopping
        sampled = self._ask(entry, "sample", stopping.next_round(entry.samples_ms), Sampled)
        if isinstance(sampled, Fault):
            return sampled
        impossible, doubtful = implausible(sampled, entry.item.case, entry.asked_s, self.device_type)
        entry.doubts += bool(doubtful)
        if impossible or entry.doubts >= MAX_DOUBTS:
            return Fault("failed", impossible or doubtful or "")
        if doubtful:
            return None  # the machine may have stood still: once more
        taken = Round(len(sampled.ms), *sampled.state, visit=self.visit)
        if stopping.retake(taken, entry.retaken):
            entry.retaken.append(taken)
            time.sleep(stopping.pause_seconds)  # for the GPU to recover; the case's own time does not run
            return None
        entry.rounds.append(taken)
        entry.samples_ms += sampled.ms
        stop = stopping.reason(entry.samples_ms)
        if stop is None:
            return None
        closed = self._ask(entry, "close", entry.item.times_phases(self.visit), Closed)
        if isinstance(closed, Fault):
            return closed
        return _complete(
            entry, entry.opened, samples_ms=tuple(entry.samples_ms), stop=stop, order=entry.order,
            phases=closed.phases, rounds=tuple(entry.rounds), retaken=tuple(entry.retaken),
        )  # fmt: skip

    def _ask(self, entry: _Entry, verb: Verb, argument: int | bool, kind: type[R]) -> R | Fault:
        if self.host is None:
            self.host = self.hire()
        predicted, tuning = entry.item.visit_seconds(self.visit), entry.item.kernel.tuning_seconds
        limit = self.timeout_s or TIMEOUT_SECONDS + tuning + TIMEOUT_FACTOR * predicted
        start = time.monotonic()
        reply = self.host.ask(verb, entry.item.case, argument, max(0.0, limit - entry.spent_s))
        entry.asked_s = time.monotonic() - start
        entry.spent_s += entry.asked_s
        if self.turns:
            self.turns.hand_on()
        if isinstance(reply, Spoilt):
            raise _SpoiltError
        if isinstance(reply, Fault | Closed) and reply.lost:
            self.dismiss()
        assert isinstance(reply, kind | Fault)
        return reply


def implausible(sampled: Sampled, case: Case, elapsed_s: float, device_type: str) -> tuple[str | None, str | None]:
    """Why samples cannot be, and why they are doubtful, by how long the parent has waited for them; None: they are not.

    Their sum cannot exceed that; and where much else is not to be done, they have to fill it.
    """
    calls = len(sampled.ms) * sampled.calls
    total_s = sum(sampled.ms) * sampled.calls / 1e3
    text = f"its samples add up to {total_s * 1e3:.3g} ms, and were waited for for {elapsed_s * 1e3:.3g} ms"
    if total_s > 1.05 * elapsed_s + 0.002:
        return f"{text}: a clock runs fast", None
    problem = case.problem
    moved = 0 if case.pass_ == "decode" else 4 * (problem.q_bytes + problem.k_bytes + problem.v_bytes + problem.y_bytes)
    other_s = ROUND_SECONDS + calls * CALL_SECONDS[device_type] + moved / BYTES_PER_SECOND
    if elapsed_s > CALL_FACTOR * total_s * (calls + 1) / calls + other_s:
        return None, f"{text}: a clock runs slow, or the call goes on after it has returned"
    return None, None


def _complete(entry: _Entry, opened: Opened, **times: Any) -> Measurement:
    return entry.row(
        "ok", error=opened.error, tolerance=opened.tolerance, config=opened.config, timer=opened.timer,
        timer_reason=opened.timer_reason, wall_ms=opened.wall_ms, peak_memory_bytes=opened.peak_memory_bytes, **times,
    )  # fmt: skip
