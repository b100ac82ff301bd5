"""Where one kernel's time passes another's, as the context grows.

Curves are {context in tokens: milliseconds}. Between measured contexts both are straight lines in log-log, which is
exact for times that grow as a power of the context. Nothing is claimed outside the contexts that both measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import msgspec

Verdict = Literal["crosses", "always", "never", "several", "unknown"]


class Crossover(msgspec.Struct, frozen=True):
    """How curve A stands against curve B over the contexts that both measured.

    verdict: `always` or `never` faster at every shared context; `crosses` once, in either direction (`faster_from`
    tells which); `several` times; `unknown` with fewer than two shared contexts.
    """

    verdict: Verdict
    contexts: tuple[int, ...]  # shared, ascending, in tokens
    speedups: tuple[float, ...]  # B's time over A's at each of them: above 1, A is faster
    at: tuple[float, ...] = ()  # contexts where the lead changes, ascending, in tokens

    @property
    def speedup(self) -> float | None:
        """B's time over A's at the largest shared context; None when there is none."""
        return self.speedups[-1] if self.speedups else None

    @property
    def faster_from(self) -> float | None:
        """The context from which A is faster and stays so within the range; None when A does not end up faster."""
        if self.verdict == "always":
            return float(self.contexts[0])
        if self.verdict in ("crosses", "several") and _leads(self.speedups)[-1]:
            return self.at[-1]
        return None

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
        match self.verdict:
            case "always":
                return f"at every measured context ({self.range_text})"
            case "never":
                return f"not within {self.range_text}"
            case "crosses" if self.faster_from is not None:
                return f"from {context_text(self.at[0])} on"
            case "crosses":
                return f"only up to {context_text(self.at[0])}"
            case "several":
                changes = ", ".join(context_text(x) for x in self.at)
                end = "faster" if self.faster_from is not None else "slower"
                return f"the lead changes at {changes}; {end} at {context_text(self.contexts[-1])}"
            case _:
                return self._unknown_text()

    def _unknown_text(self) -> str:
        if self.speedup is None:
            return "no context was measured for both"
        return f"{ratio_text(self.speedup)} at {self.range_text}; a crossover needs more contexts"


def crossover(a: Mapping[int, float], b: Mapping[int, float]) -> Crossover:
    """Where curve A becomes faster than curve B and stays so; times in ms, positive and finite.

    Equal times never change the lead: a curve that only touches the other does not cross it, and from the start A
    leads only where it is strictly faster. Raises ValueError for a time or a context that is not positive and finite.
    """
    for context, ms in (*a.items(), *b.items()):
        if not (context > 0 and 0 < ms < math.inf):
            raise ValueError(f"times and contexts have to be positive and finite, not {ms} ms at {context}")
    contexts = tuple(sorted(a.keys() & b.keys()))
    speedups = tuple(b[context] / a[context] for context in contexts)
    if len(contexts) < 2:
        return Crossover("unknown", contexts, speedups)
    leads = _leads(speedups)
    at = tuple(
        _log_log_root(contexts[i], speedups[i], contexts[i + 1], speedups[i + 1])
        for i, (before, after) in enumerate(pairwise(leads))
        if before != after
    )
    verdict: Verdict = "several"
    if len(at) < 2:
        verdict = "crosses" if at else ("always" if leads[0] else "never")
    return Crossover(verdict, contexts, speedups, at)


def _leads(speedups: tuple[float, ...]) -> list[bool]:
    """Whether A leads at each context; where the times are equal, whoever led before does."""
    leads: list[bool] = []
    for speedup in speedups:
        leads.append(speedup > 1 or (speedup == 1 and bool(leads) and leads[-1]))
    return leads


def _log_log_root(x0: float, speedup0: float, x1: float, speedup1: float) -> float:
    """The context between x0 and x1 where the speedup, a straight line in log-log, is 1."""
    y0, y1 = math.log(speedup0), math.log(speedup1)
    return min(x1, x0 * math.pow(x1 / x0, y0 / (y0 - y1)))


def context_text(context: float) -> str:
    """A context in the CLI's own notation: 65536 -> 64k, 5325.3 -> 5.2k, 1000 -> 1000, 1048576 -> 1m."""
    for unit, suffix in ((1 << 20, "m"), (1 << 10, "k")):
        if context >= unit and context % unit == 0:
            return f"{int(context) // unit}{suffix}"
    if float(context).is_integer():
        return str(int(context))
    unit, suffix = (1 << 20, "m") if context >= 1 << 20 else (1 << 10, "k")
    if context < 1 << 10:
        return f"{context:.0f}"
    digits = 1 if context < 100 * unit else 0
    return f"{context / unit:.{digits}f}{suffix}"


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
