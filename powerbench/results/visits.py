"""The visits of a case put together: what a run file holds in several lines, read back as one measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from statistics import median, stdev

from msgspec.structs import replace as _replace

from powerbench.results.model import Measurement

_NO_TIMES = {"samples_ms": (), "rounds": (), "retaken": (), "wall_ms": (), "phases": ()}
PRECISE = 0.005  # relative standard error of a time that all visits together know well enough


def together(lines: Sequence[Measurement]) -> Measurement:
    """One measurement of the lines of one case, in the order of the file; of two of the same visit the last counts.

    A visit that failed is the fate of the case: what had been sampled before does not count. Nor do visits that were
    timed by different means, which are not to be mixed.
    """
    last = lines[-1]
    if last.status != "ok":
        before = any(line.status == "ok" for line in lines)
        return _replace(last, message=f"in a later visit: {last.message}") if before else last
    visits = sorted(_that_count(lines), key=lambda visit: min(visited(visit)))
    if len(visits) == 1:
        return visits[0]
    timers = list(dict.fromkeys(str(visit.timer) for visit in visits))
    if len(timers) > 1:
        message = f"timed by {timers[0]} in one visit and by {timers[1]} in another"
        return _replace(visits[-1], status="failed", message=message, **_NO_TIMES)
    first = visits[0]
    return _replace(
        first,
        samples_ms=tuple(chain.from_iterable(visit.samples_ms for visit in visits)),
        rounds=tuple(chain.from_iterable(visit.rounds for visit in visits)),
        retaken=tuple(chain.from_iterable(visit.retaken for visit in visits)),
        wall_ms=tuple(chain.from_iterable(visit.wall_ms for visit in visits)),
        stop=_stop(visits),
        error=max((visit.error for visit in visits if visit.error is not None), default=None),
        peak_memory_bytes=max(
            (visit.peak_memory_bytes for visit in visits if visit.peak_memory_bytes is not None), default=None
        ),
        config=_configs(visits),
        phases=next((visit.phases for visit in visits if visit.phases), ()),
        order=next((visit.order for visit in visits if visit.order != first.order), first.order),
    )


def _that_count(lines: Sequence[Measurement]) -> list[Measurement]:
    """The lines since the case last failed, none of which holds a visit that a later one holds too."""
    found: list[Measurement] = []
    seen: set[int] = set()
    for line in reversed(lines):
        if line.status != "ok":
            break
        held = visited(line)
        if seen.isdisjoint(held):
            found.append(line)
        seen |= held
    return found[::-1]


def _stop(visits: Sequence[Measurement]) -> str | None:
    """Why sampling stopped: the first visit's cap, or `visits` where each knows its own median and they differ."""
    cap = next((visit.stop for visit in visits if visit.stop != "precise"), "precise")
    return "visits" if cap == "precise" and _relative_error(visits) > PRECISE else cap


def _relative_error(visits: Sequence[Measurement]) -> float:
    """Standard error of the mean of the visits' log medians."""
    return stdev(math.log(median(visit.samples_ms)) for visit in visits) / math.sqrt(len(visits))


def visited(measurement: Measurement) -> frozenset[int]:
    """The visits that this holds; 0 alone for lines of before there were visits, and for those without samples."""
    return frozenset(one.visit for one in measurement.rounds) or frozenset({0})


def _configs(visits: Sequence[Measurement]) -> dict[str, str]:
    """What was chosen; where visits chose differently, each choice."""
    found: dict[str, dict[str, None]] = {}
    for visit in visits:
        for name, value in visit.config.items():
            found.setdefault(name, {})[value] = None
    return {name: " or ".join(values) for name, values in found.items()}
