"""How large a number in a run file may be: beyond any machine's, and small enough for all that is computed from it.

Checked when a file is loaded (msgspec checks `Meta` while it decodes), so that no file can keep a reader busy: a state
of degree p has about d^p / p! rows, which of d = p = 10^7 is a number of millions of digits.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

_WORD = 2**63 - 1  # msgspec's own limit of a bound

Tokens = Annotated[int, Meta(ge=1, le=2**40)]  # as `powerbench.wsfr.LONGEST`
Batch = Annotated[int, Meta(ge=1, le=2**32)]
Width = Annotated[int, Meta(ge=1, le=2**20)]  # heads, dimensions of a head and tiles of them
Degree = Annotated[int, Meta(ge=0, le=32)]
Count = Annotated[int, Meta(ge=0, le=2**32)]  # samples, visits, cores, MHz ...
Number = Annotated[int, Meta(ge=0, le=_WORD)]  # bytes, seeds
Difference = Annotated[int, Meta(ge=-_WORD, le=_WORD)]  # bytes: a peak less what was there before
Work = Annotated[int, Meta(ge=0)]  # of a launch, in FLOPs or bytes; at most MOST_WORK, which Meta cannot say
Name = Annotated[str, Meta(max_length=1000)]
Command = Annotated[str, Meta(max_length=2**17)]  # what Linux takes as one argument

MOST_WORK = 2**80
TIMES_MS = (1e-9, 1e12)  # a picosecond, thirty years
RATES = (1.0, 1e24)  # of ceilings, per second
MOST_MHZ = 1e6


def fault_of_times(*samples: tuple[float, ...]) -> str | None:
    """What is wrong with times in ms; None: nothing."""
    low, high = TIMES_MS
    for times in samples:
        # the sum of what holds a NaN is one
        if times and not (low <= min(times) and max(times) <= high and sum(times) < float("inf")):
            return f"a sample is not a positive, finite time: between {low:g} and {high:g} ms"
    return None
