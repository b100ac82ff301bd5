"""The roofline: how fast this machine could do a kernel's work, and how near the kernel comes.

Ceilings are measured by the run itself (`powerbench.device.measure_ceilings`). The roofline time of a launch is
max(executed FLOPs / matmul rate, bytes / bandwidth); that of an operator is the sum over its launches, because a
launch cannot overlap with the next one's arithmetic through device memory (Williams et al., "Roofline", CACM 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from powerbench.cost import Launch, total

Bound = Literal["compute", "memory"]

# A measured time this far under the roofline time is a mistake in the ledger or the clock, never a win.
ABOVE_ROOF_TOLERANCE = 1.02


class Ceilings(msgspec.Struct, frozen=True):
    """What the machine did at best. Rates in FLOP/s and bytes/s; copy bandwidth counts bytes read plus written."""

    matmul_flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    source: str = "measured"

    def or_better(self, other: Ceilings) -> Ceilings:
        """The best of two measurements: other load only ever takes from what a machine can do."""
        mine, theirs = self.matmul_flops_per_s, other.matmul_flops_per_s
        return Ceilings(
            {dtype: max(mine.get(dtype, 0.0), theirs.get(dtype, 0.0)) for dtype in mine | theirs},
            max(self.copy_bytes_per_s, other.copy_bytes_per_s),
            self.source,
        )


class Roof(msgspec.Struct, frozen=True):
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
    seconds = {"compute": 0.0, "memory": 0.0}
    for launch in launches:
        compute = launch.cost.executed_flops / peak
        memory = launch.cost.bytes / ceilings.copy_bytes_per_s
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
