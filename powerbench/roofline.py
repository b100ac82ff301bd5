"""The roofline: how fast this machine could do a kernel's work, and how near the kernel comes.

Ceilings are measured by the run itself (`powerbench.ceilings`). The roofline time of a launch is
max(executed FLOPs / matmul rate, bytes / bandwidth), the bandwidth being the better of copy and read; that of an
operator is the sum over its launches, because a launch cannot overlap with the next one's arithmetic through device
memory (Williams et al., "Roofline", CACM 2009).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

import msgspec

from powerbench.bounds import RATES, Count, Number, fault_of_times
from powerbench.cost import Launch, total

Bound = Literal["compute", "memory"]

# A measured time this far under the roofline time is a mistake in the ledger or the clock, never a win.
ABOVE_ROOF_TOLERANCE = 1.02


CeilingKind = Literal["matmul", "copy", "read", "l2_read", "launch_device", "launch_host"]


class Ceiling(msgspec.Struct, frozen=True, omit_defaults=True):
    """One limit of the machine, as measured: raw samples of a known work. docs/measuring.md says what each kind is.

    A sample is the milliseconds of `work`: FLOPs of a matmul, bytes of a copy (read plus written) or a read, launches.
    Rates are that work per second, so for launches, launches per second.
    """

    kind: CeilingKind
    work: Number
    samples_ms: tuple[float, ...]
    timer: str  # as in a measurement
    of: str  # the shape or size that was measured: the best of the list
    dtype: str | None = None  # bf16, fp16, tf32, fp32, fp64 of a matmul
    threads: Count | None = None  # of a CPU

    @property
    def key(self) -> tuple[str, str | None, int | None]:
        """Two ceilings of one key measure the same thing."""
        return self.kind, self.dtype, self.threads

    @property
    def best_rate(self) -> float:
        """Work per second of the fastest sample: other load only ever takes from what a machine can do."""
        return self.work / min(self.samples_ms) * 1e3

    @property
    def median_rate(self) -> float:
        """Work per second of the median sample."""
        return self.work / statistics.median(self.samples_ms) * 1e3

    @property
    def spread(self) -> float | None:
        """Interquartile range of the samples over their median, as a fraction of 1; None of fewer than two."""
        if len(self.samples_ms) < 2:
            return None
        low, middle, high = statistics.quantiles(self.samples_ms, n=4, method="inclusive")
        return (high - low) / middle


class Ceilings(msgspec.Struct, frozen=True):
    """What the machine did at best. Rates in FLOP/s and bytes/s; copy bandwidth counts bytes read plus written.

    The rates are what the roofline uses; `measured` is what they came from and whatever else was measured with them.
    Runs of before it existed have the rates alone.
    """

    matmul_flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    source: str = "measured"
    measured: tuple[Ceiling, ...] = ()

    @property
    def memory_bytes_per_s(self) -> float:
        """The roof of device memory: what a copy reaches, or a read if that is more (decoding mostly reads)."""
        reads = (ceiling.best_rate for ceiling in self.measured if ceiling.kind == "read")
        return max(self.copy_bytes_per_s, *reads, 0.0)

    @classmethod
    def of(cls, measured: Sequence[Ceiling]) -> Ceilings:
        """The best of each. Raises ValueError without a copy: no roof can be drawn then."""
        matmul: dict[str, float] = {}
        for ceiling in measured:
            if ceiling.kind == "matmul" and ceiling.dtype:
                matmul[ceiling.dtype] = max(matmul.get(ceiling.dtype, 0.0), ceiling.best_rate)
        copies = [ceiling.best_rate for ceiling in measured if ceiling.kind == "copy"]
        if not copies:
            raise ValueError("the copy bandwidth is not among the ceilings")
        return cls(matmul, max(copies), measured=tuple(measured))

    def fault(self) -> str | None:
        """What contradicts the promise that these are positive, finite rates with samples; None: nothing does."""
        low, high = RATES
        if not all(low <= rate <= high for rate in (self.copy_bytes_per_s, *self.matmul_flops_per_s.values())):
            return f"a ceiling is not positive: between {low:g} and {high:g} a second"
        for ceiling in self.measured:
            timed = ceiling.samples_ms and not fault_of_times(ceiling.samples_ms)
            if not timed or ceiling.work <= 0:
                return f"ceiling {ceiling.kind} has to hold work and positive samples"
        return None

    def or_better(self, other: Ceilings) -> Ceilings:
        """The best of two measurements: other load only ever takes from what a machine can do."""
        mine, theirs = self.matmul_flops_per_s, other.matmul_flops_per_s
        best = {ceiling.key: ceiling for ceiling in self.measured}
        for ceiling in other.measured:
            if ceiling.key not in best or ceiling.best_rate > best[ceiling.key].best_rate:
                best[ceiling.key] = ceiling
        return Ceilings(
            {dtype: max(mine.get(dtype, 0.0), theirs.get(dtype, 0.0)) for dtype in mine | theirs},
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            self.source,
            tuple(best.values()),
        )


class Roof(msgspec.Struct, frozen=True, gc=False):
    """Where one measured time stands against the ceilings. Fractions are of 1; above 1.02 the point is invalid."""

    intensity: float  # executed FLOPs per byte
    bound: Bound  # which ceiling makes up most of the roofline time
    roof_ms: float
    attainable_tflops: float  # executed TFLOP/s at the roof
    roof_fraction: float
    mfu: float
    hfu: float

    @property
    def valid(self) -> bool:
        """False: the time is physically impossible, so the ledger or the clock is wrong."""
        return self.roof_fraction <= ABOVE_ROOF_TOLERANCE


def roof_seconds(launches: Sequence[Launch], dtype: str, ceilings: Ceilings) -> tuple[float, Bound]:
    """The least time the launches can take one after the other, and what bounds most of it.

    Raises KeyError when no matmul ceiling was measured for `dtype`.
    """
    peak = ceilings.matmul_flops_per_s[dtype]
    bandwidth = ceilings.memory_bytes_per_s
    seconds = {"compute": 0.0, "memory": 0.0}
    for launch in launches:
        compute = launch.cost.executed_flops / peak
        memory = launch.cost.bytes / bandwidth
        seconds["compute" if compute >= memory else "memory"] += max(compute, memory)
    bound: Bound = "compute" if seconds["compute"] >= seconds["memory"] else "memory"
    return seconds["compute"] + seconds["memory"], bound


def roof(launches: Sequence[Launch], dtype: str, ceilings: Ceilings, measured_s: float) -> Roof | None:
    """Place a measured time under the roof; None where the run has no ceiling for this dtype."""
    if dtype not in ceilings.matmul_flops_per_s:
        return None
    peak = ceilings.matmul_flops_per_s[dtype]
    cost = total(launches)
    seconds, bound = roof_seconds(launches, dtype, ceilings)
    return Roof(
        intensity=cost.executed_flops / cost.bytes,
        bound=bound,
        roof_ms=seconds * 1e3,
        attainable_tflops=cost.executed_flops / seconds / 1e12,
        roof_fraction=seconds / measured_s,
        mfu=cost.useful_flops / measured_s / peak,
        hfu=cost.executed_flops / measured_s / peak,
    )
