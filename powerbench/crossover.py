"""Where one kernel's time passes another's, as the context grows, and how far that place may be off.

Curves are {context in tokens: samples in ms of each visit}. Between measured contexts the logarithm of the speedup is a
monotone cubic of the logarithm of the context through the measured times: exact for times that grow as a power of the
context. The interval of a crossing covers the noise of the samples and how the curve may bend between the measured
contexts (`powerbench.interpolation`). Nothing is claimed outside the contexts that both measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import msgspec
import numpy as np

from powerbench.bootstrap import RESAMPLES, Visits, resampled_log_speedups
from powerbench.interpolation import COVERED, Array, change_of_sign
from powerbench.results.statistics import typical

Verdict = Literal["crosses", "always", "never", "several", "level", "unknown"]


class Crossing(msgspec.Struct, frozen=True):
    """One place where the lead changes, in tokens, with its 95 % interval; None below five samples at a bound.

    `leader`, from there on: 1 A, -1 B.
    """

    at: float
    leader: int
    low: float | None = None
    high: float | None = None

    @property
    def width(self) -> float | None:
        """The interval's width over the place: 0.1 reads as 10 %."""
        return None if self.low is None or self.high is None else (self.high - self.low) / self.at

    @property
    def text(self) -> str:
        """`5.2k (4.9k..5.6k)`, with as many digits as tell the three apart; without an interval `5.2k`."""
        if self.low is None or self.high is None:
            return context_text(self.at)
        places = (self.at, self.low, self.high)
        for digits in (1, 2, 3):
            texts = [context_text(place, digits) for place in places]
            if len(set(texts)) == len(set(places)):
                break
        return "{} ({}..{})".format(*texts)


class Crossover(msgspec.Struct, frozen=True):
    """How curve A stands against curve B over the contexts that both measured.

    verdict: `always` or `never` faster wherever one is; `crosses` once, in either direction (`leader_at_end` tells
    which); `several` times; `level`, as fast within the noise everywhere; `unknown` with fewer than two shared
    contexts.
    """

    verdict: Verdict
    contexts: tuple[int, ...]  # shared, ascending, in tokens
    speedups: tuple[float, ...]  # B's median time over A's at each of them: above 1, A is faster
    leads: tuple[int, ...] = ()  # at each: 1 where A is faster, -1 where B is, 0 where they are level within the noise
    crossings: tuple[Crossing, ...] = ()  # where the lead changes, ascending

    @property
    def speedup(self) -> float | None:
        """B's time over A's at the largest shared context; None when there is none."""
        return self.speedups[-1] if self.speedups else None

    @property
    def level_at(self) -> tuple[int, ...]:
        """The shared contexts at which neither is faster beyond the noise."""
        return tuple(ctx for ctx, lead in zip(self.contexts, self.leads, strict=True) if lead == 0)

    @property
    def leader_at_end(self) -> int:
        """Who was last seen faster as the context grows: 1 A, -1 B, 0 nobody."""
        return next((lead for lead in reversed(self.leads) if lead), 0)

    @property
    def faster_from(self) -> float | None:
        """The context from which A is faster and stays so within the range; None when A does not end up faster."""
        if self.leader_at_end != 1:
            return None
        return self.crossings[-1].at if self.crossings else float(self.contexts[0])

    @property
    def range_text(self) -> str:
        """The shared contexts in words: `1k..64k`, `64k`, or `no context`."""
        if not self.contexts:
            return "no context"
        ends = (self.contexts[0], self.contexts[-1])
        return "..".join(context_text(end) for end in dict.fromkeys(ends))

    @property
    def text(self) -> str:
        """From which context on A is faster, in words; A is the subject."""
        where = self._where.replace(" tokens", "") + self._touching(self.contexts)
        match self.verdict:
            case "always" | "crosses":
                return where
            case "never":
                return f"not {where}"
            case "level":
                return f"as fast within the noise at every measured context ({self.range_text})"
            case "several":
                end = "faster" if self.leader_at_end == 1 else "slower"
                last = max(ctx for ctx, lead in zip(self.contexts, self.leads, strict=True) if lead)
                return f"the lead changes {where}; {end} at {context_text(last)}"
            case _:
                return self._unknown_text()

    @property
    def sentence(self) -> str:
        """The contexts, as they stand after `A beats B`, `does not beat` or `changes places with`.

        Empty for other verdicts. How both stand at the largest context is left to be said.
        """
        return self._where + self._touching(self.contexts[:-1])

    @property
    def _where(self) -> str:
        places = ", ".join(crossing.text for crossing in self.crossings)
        match self.verdict:
            case "always" if self.level_at:
                ahead = [ctx for ctx, lead in zip(self.contexts, self.leads, strict=True) if lead]
                return f"at {contexts_text(ahead, self.contexts)}"
            case "always":
                return f"at every measured context ({self.range_text})"
            case "never":
                return f"within {self.range_text}"
            case "crosses":
                return f"from {places} tokens on" if self.leader_at_end == 1 else f"only up to {places} tokens"
            case "several":
                return f"at {places} tokens"
            case _:
                return ""

    def _touching(self, contexts: tuple[int, ...]) -> str:
        """Those of the contexts where both are as fast, other than where the lead may be changing anyway."""
        spans = [(crossing.low or crossing.at, crossing.high or crossing.at) for crossing in self.crossings]
        level = [ctx for ctx in self.level_at if ctx in contexts]
        found = [ctx for ctx in level if not any(low <= ctx <= high for low, high in spans)]
        return f", level at {', '.join(context_text(ctx) for ctx in found)}" if found and self._where else ""

    def _unknown_text(self) -> str:
        if self.speedup is None:
            return "no context was measured for both"
        return f"{ratio_text(self.speedup)} at {self.range_text}; a crossover needs more contexts"


def crossover(a: Mapping[int, Visits], b: Mapping[int, Visits]) -> Crossover:
    """Where curve A becomes faster than curve B and stays so; samples in ms in the order taken, positive and finite.

    A leads at a context only where it is faster beyond the noise, jointly for all contexts at 95 %; with a single visit
    of fewer than five samples, by its median. Where nobody leads nothing changes: a curve that only touches the other
    does not cross it. Raises ValueError for a sample or a context that is not positive and finite.
    """
    for context, visits in (*a.items(), *b.items()):
        if not (context > 0 and visits and all(samples and _good(samples) for samples in visits)):
            raise ValueError(f"samples and contexts have to be positive and finite, not {visits} ms at {context}")
    contexts = tuple(sorted(a.keys() & b.keys()))
    speedups = tuple(typical(b[context]) / typical(a[context]) for context in contexts)
    known, resampled = _log_speedups([(a[context], b[context]) for context in contexts], speedups)
    leads = tuple(_leads(resampled))
    if len(contexts) < 2:
        return Crossover("unknown", contexts, speedups, leads)
    decided = [i for i, lead in enumerate(leads) if lead]
    if not decided:
        return Crossover("level", contexts, speedups, leads)
    x, y = np.log(np.array(contexts, dtype=float)), np.log(np.array(speedups))
    crossings = tuple(
        _crossing(x, y, resampled, (first, last), leads[last], known=all(known[first : last + 1]))
        for first, last in pairwise(decided)
        if leads[first] != leads[last]
    )
    verdict: Verdict = "several"
    if len(crossings) < 2:
        verdict = "crosses" if crossings else ("always" if leads[decided[0]] == 1 else "never")
    return Crossover(verdict, contexts, speedups, leads, crossings)


def _good(samples: Sequence[float]) -> bool:
    return all(0 < ms < math.inf for ms in samples)


def _log_speedups(both: Sequence[tuple[Visits, Visits]], speedups: Sequence[float]) -> tuple[list[bool], Array]:
    """Logarithms of resampled speedups [RESAMPLES, contexts]; where a side has too few samples, the medians' own."""
    columns = np.tile(np.log(np.array(speedups, dtype=float)), (RESAMPLES, 1))
    known = []
    for i, (a, b) in enumerate(both):
        resampled = resampled_log_speedups(a, b)
        known.append(resampled is not None)
        if resampled is not None:
            columns[:, i] = resampled
    return known, columns


def _leads(resampled: Array) -> list[int]:
    """Who is faster at each context beyond the noise; jointly at 95 %, so each context at its part of the 5 %."""
    number = resampled.shape[1]
    if not number:
        return []
    tail = (1 - COVERED) / 2 / number
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return [int(lead) for lead in (low > 0).astype(int) - (high < 0).astype(int)]


def _crossing(x: Array, y: Array, resampled: Array, between: tuple[int, int], leader: int, *, known: bool) -> Crossing:
    at, low, high = (round(math.exp(place), 3) for place in change_of_sign(x, y, resampled, *between))
    return Crossing(at, leader, low, high) if known else Crossing(at, leader)


def context_text(context: float, digits: int = 1) -> str:
    """A context in the CLI's own notation: 65536 -> 64k, 5325.3 -> 5.2k, 1000 -> 1000, 1048576 -> 1m.

    `digits` after the point are for contexts that are no whole number of tokens; at 100k and above, one less.
    """
    for unit, suffix in ((1 << 20, "m"), (1 << 10, "k")):
        if context >= unit and context % unit == 0:
            return f"{int(context) // unit}{suffix}"
    if float(context).is_integer():
        return str(int(context))
    unit, suffix = (1 << 20, "m") if context >= 1 << 20 else (1 << 10, "k")
    if context < 1 << 10:
        return f"{context:.0f}"
    return f"{context / unit:.{digits if context < 100 * unit else digits - 1}f}{suffix}"


def contexts_text(contexts: Collection[int], measured: Collection[int]) -> str:
    """1k, 4k..16k: three or more that follow each other among the measured ones are a range."""
    runs: list[list[int]] = [[]]
    for ctx in sorted(measured):
        if ctx in contexts:
            runs[-1].append(ctx)
        elif runs[-1]:
            runs.append([])
    return ", ".join(
        f"{context_text(run[0])}..{context_text(run[-1])}" if len(run) > 2 else ", ".join(map(context_text, run))
        for run in runs
        if run
    )


def ratio_text(speedup: float) -> str:
    """A speedup as a comparison: 2.9 -> 2.9x faster, 0.5 -> 2.0x slower, 1.001 -> as fast."""
    ratio = max(speedup, 1 / speedup)
    if ratio < 1.005:
        return "as fast"
    digits = 2 if ratio < 1.95 else (1 if ratio < 99.5 else 0)
    return f"{ratio:.{digits}f}x {'faster' if speedup > 1 else 'slower'}"


def percent_text(fraction: float) -> str:
    """A fraction of 1 as a percentage: 0.41 -> 41 %, 0.031 -> 3.1 %."""
    return f"{fraction * 100:.{0 if fraction >= 0.0995 else 1}f} %"
