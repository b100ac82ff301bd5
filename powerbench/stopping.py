"""When to stop sampling a case: a rule on the samples alone, so that it can be read and tested without a device.

The precision is that of the median, by order statistics: its 95 % interval (`results.statistics.median_interval`) is
taken between two of the samples themselves, and half its width over 1.96 stands for the standard error. The textbook
1.2533 s / sqrt(n) holds for normal samples only; times have a floor and a long tail, whose outliers blow it up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from powerbench.results.model import Round
from powerbench.results.statistics import median, median_interval

StopReason = Literal["precise", "time", "samples"]  # the precision, or which of the two caps was reached

ROUND_SECONDS = 0.05  # a turn of one contestant: long against changing over, short against drift
ROUND_SAMPLES = 25
NORMAL_95 = 1.96
VISITS = 5  # four degrees of freedom for what differs between visits; with three the interval is nearly twice as wide


@dataclass(frozen=True)
class Stopping:
    """At least `min_samples` and `min_seconds` of measured time, then until the median is precise or a cap is reached.

    Of calls longer than `slow_seconds`, `slow_samples` are enough. `precision` is the relative standard error of the
    median, of 1. `max_samples` also ends calls so short that `min_seconds` would take tens of thousands. A round of
    samples taken while the GPU was slowed down is taken again, up to `max_retakes` times, `pause_seconds` later.
    """

    min_samples: int = 10
    slow_samples: int = 5
    slow_seconds: float = 1.0
    min_seconds: float = 0.3
    precision: float = 0.0025
    max_seconds: float = 1.0
    max_samples: int = 500
    max_retakes: int = 5
    pause_seconds: float = 0.5

    def of_each(self, visits: int) -> Stopping:
        """The rule for each of several visits, so that they take as long together as one by this rule.

        The standard error that each may have is larger by the square root: their mean is what has to be precise.
        """
        return replace(
            self,
            min_samples=math.ceil(self.min_samples / visits),
            slow_samples=math.ceil(self.slow_samples / visits),
            min_seconds=self.min_seconds / visits,
            precision=self.precision * math.sqrt(visits),
            max_seconds=self.max_seconds / visits,
            max_samples=math.ceil(self.max_samples / visits),
            max_retakes=math.ceil(self.max_retakes / visits),
        )

    def reason(self, samples_ms: Sequence[float]) -> StopReason | None:
        """Why these samples (in ms, of single calls) are enough; None: go on."""
        if not samples_ms or len(samples_ms) < self._least(median(samples_ms) / 1e3):
            return None
        seconds = sum(samples_ms) / 1e3
        if seconds >= self.min_seconds and relative_error(samples_ms) <= self.precision:
            return "precise"
        if len(samples_ms) >= self.max_samples:
            return "samples"
        return "time" if seconds >= self.max_seconds else None

    def retake(self, taken: Round, retaken: Sequence[Round]) -> bool:
        """Whether the samples of the round just `taken` are to be dropped and taken again."""
        return bool(taken.slowdowns) and len(retaken) < self.max_retakes

    def next_round(self, samples_ms: Sequence[float]) -> int:
        """How many samples to take before the other contestants have their turn."""
        if not samples_ms:
            return 1
        fit = int(ROUND_SECONDS / max(median(samples_ms) / 1e3, 1e-9))
        return max(1, min(fit, ROUND_SAMPLES, self.max_samples - len(samples_ms)))

    def expected_seconds(self, call_seconds: float) -> float:
        """Measured time of a case whose calls take this long, for the plan: as if the shortest allowed were enough."""
        number = max(self._least(call_seconds), self.min_seconds / max(call_seconds, 1e-9))
        return call_seconds * min(number, self.max_samples)

    def _least(self, call_seconds: float) -> int:
        return self.slow_samples if call_seconds > self.slow_seconds else self.min_samples


def relative_error(samples_ms: Sequence[float]) -> float:
    """Relative standard error of the median, of 1; infinite where there are too few samples for an interval."""
    interval = median_interval(samples_ms)
    if interval is None:
        return float("inf")
    low, high = interval
    return (high - low) / 2 / NORMAL_95 / median(samples_ms)
